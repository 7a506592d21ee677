"""Where neurons are most open: the values are those of a plain forward pass, and the command adds them to the page."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import probes
from probes.capture.pair import make_pair
from probes.cli import main
from probes.directions.neuron_tokens import TOKENS, neuron_tokens
from tests.command import call
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_suite
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt


@pytest.mark.parametrize(("architecture", "gate"), [("llama", "gate_proj"), ("neox", "dense_h_to_4h")])
def test_values_are_those_of_a_plain_forward(architecture: str, gate: str) -> None:
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.05, seed=1)
    pair = make_pair(base, tuned, build_tokenizer())
    texts = [Prompt(id=row["id"], text=row["text"], set="s", domain="d") for row in PROMPTS]
    encoded = encode(texts, pair.tokenizer, 64)
    rows = neuron_tokens(pair, encoded, pd.DataFrame({"layer": [1, 1], "neuron": [3, 7]}), "new", batch_size=3)
    assert (
        rows.groupby(["neuron", "model"]).size().eq(min(TOKENS, len(encoded))).all() and len(rows.model.unique()) == 2
    )
    assert not rows.duplicated(["neuron", "model", "prompt_id"]).any()
    for model, side in ((base, "base"), (tuned, "new")):
        best: dict[str, tuple[float, int]] = {}
        for item in encoded:
            seen: list[torch.Tensor] = []
            (at,) = (module for name, module in model.named_modules() if f"layers.1.mlp.{gate}" in name)
            hook = at.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output[0, :, 7]))
            with torch.no_grad():
                model(input_ids=torch.tensor([item.ids]))
            hook.remove()
            counted = seen[0][item.user_pos :]
            best[item.prompt.id] = float(counted.max()), int(counted.argmax()) + item.user_pos
        own = rows[(rows.neuron == 7) & (rows.model == side)].sort_values("rank")
        wanted = sorted(best, key=lambda prompt: -best[prompt][0])[:TOKENS]
        assert own.prompt_id.tolist() == wanted and own.pos.tolist() == [best[prompt][1] for prompt in wanted]
        values = own["value_base" if side == "base" else "value_tuned"]
        assert values.tolist() == pytest.approx([best[prompt][0] for prompt in wanted], abs=1e-5)
    ids = {item.prompt.id: item.ids for item in encoded}
    whole = pair.tokenizer.decode(ids[rows.prompt_id[0]])
    assert f"{rows.before[0]}{rows.token[0]}{rows.after[0]}".strip() in whole


def test_the_command_adds_a_table_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path, step=0.2), measure=["gates"], attribute=None, bootstrap=20)
    run = probes.run(suite, out=tmp_path / "run", stages=["capture", "report"])
    assert "probes neurons RUN" in (Path(run.path) / "report.html").read_text()
    code, _, stderr = call(monkeypatch, capsys, main, "neurons", run.path, "--json")
    assert code == 0, stderr
    page, rows = (Path(run.path) / "report.html").read_text(), probes.load(run.path)["neuron_tokens"]
    first = rows[rows["rank"] == 1].iloc[0]
    assert f"layer {first.layer} neuron {first.neuron}, largest in {first.model}</caption>" in page
    shown = page.count("<mark>")
    assert shown == len(rows) > 0 and "<mark><script>" not in page
    code, _, stderr = call(monkeypatch, capsys, main, "neurons", run.path, "--prompts", 0)
    assert code == 2 and "at least 1" in stderr
    less = probes.run(suite, out=tmp_path / "less", stages=["capture"], settings={"measure": ["behaviour"]})
    code, _, stderr = call(monkeypatch, capsys, main, "neurons", less.path)
    assert code == 2 and "did not measure gates" in stderr and stderr.count("\n") <= 2
