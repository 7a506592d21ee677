"""The main job: two checkpoints in, linked tables and a report out, stage by stage."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from probes.attribute import METHODS, METRICS, prompt_effects, summarise
from probes.errors import RunError
from probes.link import link
from probes.pair import Pair, make_pair, require_sites
from probes.report import report
from probes.runner import Session, output_bases, run_shard, shards
from probes.store import Run, RunWriter, load
from probes.suite import Suite, load_suite
from tv.checkpoint import Checkpoint, open_checkpoint
from tv.live import LiveSource, load_model, load_tokenizer
from tv.measure import weights
from tv.pairing import PairFacts, check_pair
from tv.prompts import Encoded, Prompt, batches, encode, read_prompts

#: Called as stage(name, done, total, label).
Stage = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Opened:
    """A checked pair of checkpoints, not yet loaded as live models."""

    name: str
    base: Checkpoint
    tuned: Checkpoint
    facts: PairFacts


def run(
    suite: str | Path | Mapping[str, Any],
    *,
    base: LiveSource | None = None,
    tuned: LiveSource | Mapping[str, LiveSource] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    stage: Stage | None = None,
    found: Callable[[Opened], None] | None = None,
) -> Run:
    """Run a probe suite: check the pairs, measure weights, capture activations, attribute, link, report.

    `base` and `tuned` override the suite's: directories, hub ids, or live Hugging Face models (`tuned` may be a mapping
    by name). `out` defaults to reports/<suite name>. `force` replaces a run that is there. `stage` and `found` are told
    of progress and of every pair that passed its checks. Bad input raises an InputError and leaves nothing behind.
    """
    live = _live_models(base, tuned)
    settings = load_suite(suite, base=_name(base), tuned=_names(tuned))
    with RunWriter(out or Path("reports") / settings.name, force=force) as writer:
        prompts = read_prompts(settings.prompts)
        pairs = open_pairs(settings, live)
        for pair in pairs:
            if found:
                found(pair)
        _write_prompts(writer, prompts)
        _write_weights(writer, settings, pairs, stage)
        encoded = _run_models(writer, settings, prompts, pairs, live, stage)
        unpublished = writer.finish(_manifest(settings, pairs, encoded))
        for name, step in (("link", link), ("report", report)):
            _tell(stage, name, 0, 1)
            step(unpublished)
            _tell(stage, name, 1, 1)
    return load(writer.directory)


def open_pairs(suite: Suite, live: Mapping[str, PreTrainedModel] | None = None) -> list[Opened]:
    """Open and check every pair of a suite, before any is loaded.

    Raises CheckpointError where two do not belong together, ArchitectureError where no activations can be read.
    """
    models = live or {}
    base = open_checkpoint(models.get("base", suite.base))
    require_sites(base.architecture)
    opened = []
    for name, source in suite.tuned.items():
        tuned = open_checkpoint(models.get(name, source), base=base)
        opened.append(Opened(name, base, tuned, check_pair(base, tuned)))
    return opened


def attribute(
    run: Run, *, method: str | Sequence[str] = ("graft", "revert"), metric: str = "logit_diff"
) -> pd.DataFrame:
    """Attribute a run's behaviour change again, from the checkpoints it names; replaces its `effects`. Returns them."""
    settings = load_suite(run.manifest["suite"])
    prompts = prompts_of(run)
    methods = [method] if isinstance(method, str) else list(method)
    for name, known, what in [(metric, METRICS, "metric"), *((m, METHODS, "method") for m in methods)]:
        if name not in known:
            raise RunError(f"attribution: unknown {what} {name!r}; there are {', '.join(known)}")
    effects, per_prompt = [], []
    for name, source in settings.tuned.items():
        pair = make_pair(
            load_model(settings.base), load_model(source, base=settings.base), load_tokenizer(settings.base)
        )
        found = _effects(pair, name, settings, _encode(pair, prompts), methods, metric, None)
        per_prompt.append(found[0])
        effects.append(found[1])
    run.add("prompt_effects", pd.concat(per_prompt, ignore_index=True))
    run.add("effects", pd.concat(effects, ignore_index=True))
    return run["effects"]


def prompts_of(run: Run) -> list[Prompt]:
    """The prompts that a run was made with, out of its own table."""
    rows = run.arrow("prompts").rename_columns({"prompt_id": "id"}).to_pylist()
    return [Prompt(**row) for row in rows]


def _run_models(
    writer: RunWriter,
    suite: Suite,
    prompts: Sequence[Prompt],
    pairs: Sequence[Opened],
    live: Mapping[str, PreTrainedModel],
    stage: Stage | None,
) -> list[Encoded]:
    start = live.get("base", suite.base)
    base, tokenizer = load_model(start), load_tokenizer(start)
    bases, effects, per_prompt = None, [], []
    encoded: list[Encoded] = []
    for i, opened in enumerate(pairs):
        pair = make_pair(base, load_model(live.get(opened.name, suite.tuned[opened.name]), base=start), tokenizer)
        encoded = _encode(pair, prompts)
        if bases is None:
            bases = output_bases(pair) if "ledger" in suite.measure else {}
        session, done = Session.open(pair, suite, bases), 0

        def told(prompts: int, name: str = opened.name, total: int = len(encoded)) -> None:
            nonlocal done
            done += prompts
            _tell(stage, f"capture {name}", done, total)

        for shard in shards(encoded, suite, opened.name, pair.architecture, with_base=i == 0):
            writer.record(run_shard(shard, session, writer.path, told)["tables"])
        if suite.attribute is not None:
            methods, metric = suite.attribute.methods, suite.attribute.metric
            found = _effects(pair, opened.name, suite, encoded, methods, metric, stage)
            per_prompt.append(found[0])
            effects.append(found[1])
    if effects:
        writer.write("prompt_effects", pd.concat(per_prompt, ignore_index=True), shard="00000")
        writer.write("effects", pd.concat(effects, ignore_index=True), shard="00000")
    return encoded


def _effects(
    pair: Pair,
    name: str,
    suite: Suite,
    encoded: Sequence[Encoded],
    methods: Sequence[str],
    metric: str,
    stage: Stage | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    answerable = [item for item in encoded if (item.foil_id >= 0 if metric == "logit_diff" else len(item.scored) > 0)]
    if not answerable:
        needed = "a target and a foil" if metric == "logit_diff" else "a target"
        raise RunError(
            f"attribution by {metric}: no prompt has {needed}; "
            "add them to the prompt set, or leave `attribute` out of the suite"
        )
    work = batches(answerable, 4 * suite.batch_size, pair.pad_id)
    per_prompt = prompt_effects(pair, work, methods, metric, partial(_tell, stage, f"attribute {name}"))
    domains = {item.prompt.id: item.prompt.domain for item in answerable}
    summary = summarise(per_prompt, domains, draws=suite.bootstrap, seed=suite.seed)
    return per_prompt.assign(tuned=name), summary.assign(tuned=name)


def _encode(pair: Pair, prompts: Sequence[Prompt]) -> list[Encoded]:
    return encode(prompts, pair.tokenizer, pair.architecture.context)


def _write_prompts(writer: RunWriter, prompts: Sequence[Prompt]) -> None:
    columns = {"prompt_id": [prompt.id for prompt in prompts]}
    columns |= {name: [getattr(p, name) for p in prompts] for name in ("set", "domain", "text", "target", "foil")}
    writer.write("prompts", pd.DataFrame(columns), shard="00000")


def _write_weights(writer: RunWriter, suite: Suite, pairs: Sequence[Opened], stage: Stage | None) -> None:
    tables: dict[str, list[pd.DataFrame]] = {"weights": [], "alignment": []}
    for pair in pairs:
        told = partial(_tell, stage, f"weights {pair.name}")
        found = weights(pair.base, pair.tuned, epsilons=suite.epsilons, progress=told)
        for name, frame in zip(tables, found, strict=True):
            tables[name].append(frame.assign(tuned=pair.name))
    for name, frames in tables.items():
        writer.write(name, pd.concat(frames, ignore_index=True), shard="00000")


def _manifest(suite: Suite, pairs: Sequence[Opened], encoded: Sequence[Encoded]) -> dict[str, Any]:
    architecture = pairs[0].base.architecture
    packages = ("tuning-probes", "torch", "transformers", "pandas", "pyarrow")
    return {
        "suite": suite.model_dump(mode="json"),
        "seed": suite.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "threads": torch.get_num_threads(),
        "architecture": {
            "name": architecture.name,
            "n_layers": architecture.n_layers,
            "d_model": architecture.d_model,
            "n_heads": architecture.n_heads,
            "n_kv_heads": architecture.n_kv_heads,
            "gated": architecture.gated,
        },
        "checkpoints": {
            "base": {"source": pairs[0].base.source, "fingerprint": pairs[0].base.fingerprint()},
            **{p.name: {"source": p.tuned.source, "fingerprint": p.tuned.fingerprint()} for p in pairs},
        },
        "notes": {pair.name: list(pair.facts.notes) for pair in pairs},
        "n_prompts": len(encoded),
        "n_tokens": sum(len(item.ids) for item in encoded),
    }


def _tell(stage: Stage | None, name: str, done: int, total: int, label: str = "") -> None:
    if stage:
        stage(name, done, total, label)


def _live_models(
    base: LiveSource | None, tuned: LiveSource | Mapping[str, LiveSource] | None
) -> dict[str, PreTrainedModel]:
    named = dict(tuned) if isinstance(tuned, Mapping) else {"tuned": tuned}
    return {name: model for name, model in {"base": base, **named}.items() if isinstance(model, PreTrainedModel)}


def _name(source: LiveSource | None) -> str | None:
    if isinstance(source, PreTrainedModel):
        return str(source.config._name_or_path or type(source).__name__)
    return None if source is None else str(source)


def _names(tuned: LiveSource | Mapping[str, LiveSource] | None) -> Any:
    if isinstance(tuned, Mapping):
        return {name: _name(source) for name, source in tuned.items()}
    return {"tuned": _name(tuned)} if isinstance(tuned, PreTrainedModel) else _name(tuned)
