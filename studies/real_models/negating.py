"""Question 4: what is left of a fine-tune as its vector is taken away, on every axis, beside a random vector.

Axes: held-out loss, a choice among answers, benchmarks, instructions that a program checks, and how a model writes.
Lineage: is a fine-tune of the pretrained model taken away as easily as one of a model that was tuned before?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, product
from pathlib import Path

import pandas as pd

import tv
from studies.real_models import tasks
from studies.real_models.models import SOURCES
from studies.real_models.reading import write
from studies.real_models.stage import Stage
from studies.real_models.study import Study, deep, training_stage
from studies.real_models.texts import SHORTER, benchmark, domain, shortest
from studies.real_models.training import Training
from tv.checkpoints.live import load_model, load_tokenizer
from tv.experiments import lineage, negation

#: λ beside 0; 1 alone in a small study.
SCALES = (0.25, 0.5, 1.0, 1.5)
#: λ at which models write.
WRITTEN = (0.0, 0.5, 1.0, 1.5)
#: Models that nobody tuned before: the other lineage first follows instructions.
PRETRAINED = ("gemma3",)
#: Tokens that a model writes to instructions, and to a held-out question.
INSTRUCTED, ANSWERED = 32, 24
#: A batch's logits over a large vocabulary take most of the memory.
BATCH = 4
#: CPU seconds to start with lm-evaluation-harness; to put 1 MiB of a model at a point, with a random vector half the
#: time; to write one token after each of a batch's prompts, as tokens forward.
START, POINT, STEP = 10, 0.006, 32
#: Tokens of a choice with its four answers, and of a benchmark's question.
CHOICE = {"medical": 110, "math": 360, "instructions": 115, "svamp": 145}
QUESTION = {"pubmedqa": 186, "mmlu": 68, "svamp": CHOICE["svamp"]}


def stages(study: Study) -> list[Stage]:
    """`negate-…` a model and domain; where a model is a pretrained one, the further tune and `lineage-…`."""
    size = study.size
    if "full" not in size.methods:
        return []
    negated = [_negate(study, one.model, one.domain) for one in deep(size)]
    lines = [name for name in size.names if name in PRETRAINED and {"medical", "instructions"} <= {*size.domains[name]}]
    return negated + [stage for model in lines for stage in _lineage(study, model)]


def require_benchmarks(study: Study) -> None:
    """Read what the stages ask. Raises PromptError where a file of it is missing."""
    for name in dict.fromkeys(["ifeval", *chain.from_iterable(tasks.OF_DOMAIN.get(of, ()) for of in study.size.deep)]):
        benchmark(name, study.texts)


def _negate(study: Study, model: str, name: str) -> Stage:
    one, stage = _tuned(study, model, name), f"negate-{model}-{name}"
    source, points = SOURCES[model], 2 + 2 * len(_scales(study))
    few, several = _items(study), study.size.held_out // 2
    own = _domains(name)
    tokens: float = several * sum(SHORTER[each] for each in own) + few * CHOICE[name]
    tokens += few * sum(QUESTION[each] for each in tasks.OF_DOMAIN.get(name, ()))
    batches = -(-few // BATCH)
    step = STEP * min(few, BATCH) / BATCH
    tokens += step * INSTRUCTED * batches
    written = step * ANSWERED * batches * (2 * len(_written(study)) - 1)
    cost = START + (points * tokens + written) * source.forward + 2 * points * POINT * source.mib
    work = partial(negate, study, model, name, stage)
    needs = f"base-{model}", f"tune-{one.name}"
    return Stage(stage, work, cost, source.memory(4, 10), 5, study.results(stage), needs)


def negate(study: Study, model: str, name: str, stage: str) -> None:
    """`negation.csv` and `returned.csv`, tables of `tv experiment negation`; `negation_items.csv`; `quality.csv`.

    Items have no text. `quality` has a row per point, prompt and metric of `tv quality`.
    """
    base, one = study.base(model), _tuned(study, model, name)
    tokenizer, folder = load_tokenizer(base), study.work / "tasks" / stage
    read = _domains(name)
    few, several = _items(study), study.size.held_out // 2
    specs = []
    for each in read:
        held_out = domain(each, study.texts).held_out
        specs.append(tasks.loss_task(each, shortest(held_out[: study.size.held_out], several), tokenizer, folder))
    specs.append(tasks.choice_task(name, domain(name, study.texts).held_out, few, folder))
    specs += [*tasks.benchmark_tasks(name, study.texts, few, folder), tasks.ifeval_task(study.texts, few, folder)]
    found = negation(
        base,
        {name: study.tuned(one)},
        specs,
        scales=_scales(study),
        out=study.work / "experiments" / stage,
        new_tokens=INSTRUCTED,
        batch_size=BATCH,
    )
    items = found["items"].drop(columns=["tuned", "response", "target"])
    tables = {
        "negation": found["negation"].drop(columns="tuned"),
        "returned": found["summary"].drop(columns="tuned"),
        "negation_items": items,
        "quality": _quality(study, model, one),
    }
    write(study.results(stage), tables, model=model, domain=name, method=one.method, seed=one.seed)


def _quality(study: Study, model: str, one: Training) -> pd.DataFrame:
    """What the tuned model writes to held-out questions, as its vector or a random one is taken away."""
    base, few = study.base(model), _items(study)
    texts = shortest(domain(one.domain, study.texts).held_out[: study.size.held_out], few)
    prompts = [
        tv.Prompt(text.id, one.domain, one.domain, text.text, target=text.target.strip(), cluster=text.cluster)
        for text in texts
    ]
    live, frames = load_model(study.tuned(one), base=base), []
    vector = tv.extract(base, study.tuned(one))
    vectors = {"T": vector, "random": tv.control(vector, "random", one.seed)}
    with tv.Mover(live, list(vectors.values())) as mover:
        for kind, scale in _points(study):
            mover.to({vectors[kind]: -scale})
            items = tv.quality(live, prompts, tokenizer=base, new_tokens=ANSWERED, batch_size=BATCH)
            frames.append(items.assign(vector=kind, scale=scale))
    return pd.concat(frames)[["vector", "scale", "task", "item_id", "metric", "value", "cluster"]]


def _points(study: Study) -> Iterator[tuple[str, float]]:
    """Without any of it T and the random vector are one point."""
    yield "T", 0.0
    yield from product(("T", "random"), _written(study)[1:])


def _lineage(study: Study, model: str) -> list[Stage]:
    """The fine-tune of the model that follows instructions, and its comparison with that of the pretrained one."""
    parent, own = _tuned(study, model, "instructions"), _tuned(study, model, "medical")
    further = Training(model, "medical", "full", own.seed, own.steps, start=parent.name)
    tune = training_stage(study, further, study.tuned(parent), (f"tune-{parent.name}",))
    stage, source = f"lineage-{model}", SOURCES[model]
    points = 2 * (2 + 3 * len(_scales(study)))
    tokens = points * (study.size.held_out // 2) * sum(SHORTER[name] for name in ("medical", "instructions"))
    cost = START + tokens * source.forward + points * POINT * source.mib
    lineages = {
        "pretrained": (study.base(model), study.tuned(own)),
        "instructed": (study.tuned(parent), study.tuned(further)),
    }
    work = partial(compare_lineages, study, model, lineages, own.seed, stage)
    needs = f"base-{model}", *(f"tune-{one.name}" for one in (own, parent, further))
    return [tune, Stage(stage, work, cost, source.memory(4, 10), 5, study.results(stage), needs)]


def compare_lineages(
    study: Study, model: str, lineages: Mapping[str, tuple[Path, Path]], seed: int, stage: str
) -> None:
    """`lineage.csv`, `robustness.csv` and `lineage_difference.csv`, tables of `tv experiment lineage`."""
    tokenizer, folder = load_tokenizer(study.base(model)), study.work / "tasks" / stage
    specs = []
    for name in ("medical", "instructions"):
        held_out = domain(name, study.texts).held_out[: study.size.held_out]
        specs.append(tasks.loss_task(name, shortest(held_out, study.size.held_out // 2), tokenizer, folder))
    found = lineage(lineages, specs, scales=_scales(study), out=study.work / "experiments" / stage, batch_size=BATCH)
    tables = {
        "lineage": found["lineage"],
        "robustness": found["robustness"],
        "lineage_difference": found["difference"],
    }
    write(study.results(stage), tables, model=model, domain="medical", method="full", seed=seed)


def _tuned(study: Study, model: str, name: str) -> Training:
    return Training(model, name, "full", study.size.seeds[0], study.size.steps)


def _domains(name: str) -> tuple[str, str]:
    """What is asked: of its own, and general text."""
    return name, "general"


def _items(study: Study) -> int:
    """Of a task in which several answers are read, or one is written."""
    return max(2, study.size.held_out // 3)


def _scales(study: Study) -> tuple[float, ...]:
    return (1.0,) if study.size.short else SCALES


def _written(study: Study) -> tuple[float, ...]:
    return (0.0, 1.0) if study.size.short else WRITTEN
