"""Logs of Inspect over embedded models: `python data/logs/with_inspect.py`, where inspect-ai and torch are installed.

One sample ends in an error on purpose, and every other one is asked twice: what a reader of logs must get right.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS, SAMPLES, ROWS = ("base", "medical"), ROOT / "data" / "tasks" / "medical_cloze.jsonl", range(0, 96, 8)


class _Words:
    def encode(self, text: str, **_: object) -> list[str]:
        return text.split()


# Inspect counts tokens of models that it does not know by a vocabulary which it would fetch.
tiktoken = types.ModuleType("tiktoken")
tiktoken.get_encoding = tiktoken.encoding_for_model = lambda *_: _Words()  # type: ignore[attr-defined]
sys.modules["tiktoken"] = tiktoken

import torch  # noqa: E402
from inspect_ai import Task, eval  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import read_eval_log, write_eval_log  # noqa: E402
from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, get_model, modelapi  # noqa: E402
from inspect_ai.scorer import Score, Target, match, mean, scorer  # noqa: E402
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


@modelapi(name="embedded")
class Embedded(ModelAPI):
    """An embedded model that writes greedily, and in the second epoch by chance."""

    def __init__(self, model_name: str, **options: object) -> None:
        super().__init__(model_name)
        place = ROOT / "data" / "models" / model_name
        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
        self.asked: dict[str, int] = {}

    async def generate(self, input, tools, tool_choice, config: GenerateConfig) -> ModelOutput:  # type: ignore[no-untyped-def]
        text = input[-1].text
        self.asked[text] = self.asked.get(text, 0) + 1
        torch.manual_seed(0)
        read = self.tokenizer(text, return_tensors="pt")
        chance = {"do_sample": True, "temperature": 1.5} if self.asked[text] > 1 else {"do_sample": False}
        ids = self.model.generate(**read, max_new_tokens=4, **chance)[0, read["input_ids"].shape[1] :]
        return ModelOutput.from_content(self.model_name, self.tokenizer.decode(ids).split(".")[0])


@scorer(metrics={"begins": [mean()], "letters": [mean()]})
def form():  # type: ignore[no-untyped-def]
    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion
        return Score(value={"begins": said.strip()[:1] == target.text[:1], "letters": len(said.strip())}, answer=said)

    return score


@solver
def failing(sample: str) -> Solver:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if state.sample_id == sample:
            raise ValueError("on purpose")
        return state

    return solve


def main() -> None:
    rows = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    samples = [
        Sample(id=rows[i]["id"].replace("-", "/"), input=rows[i]["text"], target=rows[i]["target"]) for i in ROWS
    ]
    for name in MODELS:
        task = Task(
            name="medical_cloze",
            dataset=samples,
            solver=[failing(str(samples[-1].id)), generate()],
            scorer=[match(location="begin"), form()],
            epochs=2,
            fail_on_error=False,
        )
        folder = tempfile.mkdtemp()
        (log,) = eval(task, model=get_model(f"embedded/{name}"), log_dir=folder, display="none", max_samples=1)
        whole = read_eval_log(log.location)
        for sample in whole.samples or ():
            if sample.error is not None:  # where it was raised is nobody's business
                sample.error.traceback = sample.error.traceback_ansi = ""
            sample.events = [event for event in sample.events if event.event in ("sample_init", "score")]
        write_eval_log(whole, str(ROOT / "data" / "logs" / "inspect" / f"{name}.eval"))


if __name__ == "__main__":
    main()
