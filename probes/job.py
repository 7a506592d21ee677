"""The main job: two checkpoints in, linked tables and a report out, stage by stage."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from probes.attribution.dla import dla_completeness
from probes.attribution.methods import Attributor, require_precision
from probes.attribution.metric import answerable, require_metric
from probes.attribution.scores import component_scores
from probes.capture.continuations import with_continuations
from probes.capture.estimate import estimate, require_space
from probes.capture.loading import Pairs, Placement, as_model, require_backend
from probes.capture.noise_floor import noise_floor
from probes.capture.pair import require_sites
from probes.capture.runner import shards
from probes.capture.workers import require_sources, run_shards
from probes.errors import SuiteError
from probes.linking import link
from probes.reporting.report import report
from probes.store.run import Run, load
from probes.store.schemas import ALL_DOMAINS, SCHEMA_VERSION, SCHEMAS
from probes.store.writer import RunWriter, finished
from probes.suite import Suite, load_suite
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.live import LiveSource
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.pairing import PairFacts, check_pair
from tv.measures.cosine import cosine
from tv.measures.tables import measured
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt, read_prompts
from tv.runtime.compute import Compute, Engine
from tv.runtime.workers import ray_cluster

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
    generate: Mapping[str, Any] | None = None,
    force: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    offload: bool = False,
    workers: int = 1,
    engine: Engine = "local",
    backend: str | None = None,
    keep: Sequence[str] | None = None,
    remote: bool = False,
    stage: Stage | None = None,
    found: Callable[[Opened], None] | None = None,
    sized: Callable[[Mapping[str, int]], None] | None = None,
) -> Run:
    """Run a probe suite: check the pairs, measure weights, capture activations, attribute, link, report.

    `base` and `tuned` override the suite's: directories, hub ids, or live models, Hugging Face's or TransformerBridges
    (`tuned` may be a mapping by name). `out`, a directory or a URL (s3://bucket/run), defaults to reports/<suite name>.
    A run that was killed is gone on with by the same call, and one that is finished is returned as it is; `force`
    makes it again, and replaces another that is there.

    `generate` overrides the suite's: {"tokens": N, "from": "base"} reads both models over what the base would say.
    Models compute on `device` ("auto": over every GPU) in `dtype`; with `offload` the tuned one stays on the CPU.
    `backend` and `keep` override the suite's; with `remote`, nnsight's server captures. `workers` processes, or actors
    of `engine` "ray", share the work; the tables are the same. `stage`, `found` and `sized` are told of progress, of
    every pair that passed its checks, and of the bytes that each table will take. Bad input raises an InputError and
    leaves nothing behind.
    """
    base = as_model(base)
    tuned = {name: as_model(of) for name, of in tuned.items()} if isinstance(tuned, Mapping) else as_model(tuned)
    live = _live_models(base, tuned)
    settings = load_suite(suite, base=_name(base), tuned=_names(tuned), generate=generate, backend=backend, keep=keep)
    models = Pairs(settings, Placement(device, dtype, offload, remote), live)
    require_sources(models, workers, engine)
    require_backend(models)
    if settings.attribute is not None:
        require_metric(settings.attribute.metric)
    prompts = read_prompts(settings.prompts)
    _require_domains(prompts)
    pairs = open_pairs(settings, live)
    for pair in pairs:
        if found:
            found(pair)
    out, identity = out or Path("reports") / settings.name, _identity(settings, prompts, pairs, models.placement)
    if not force and (there := finished(out, identity)) is not None:
        return there
    with RunWriter(out, force=force) as writer:
        writer.begin(identity)
        encoded = encode(prompts, models.tokenizer, pairs[0].base.architecture.context)
        if settings.attribute is not None:
            answerable(encoded, settings.attribute.metric)
            require_precision(settings.attribute, models.placement.dtype)
        read = encoded  # what the hooks read both models over
        if settings.generate is not None:
            read = with_continuations(models.pair(pairs[0].name), encoded, settings.generate)
        config = pairs[0].base.config.get_text_config()
        per_token = int(getattr(config, "num_experts_per_tok", None) or 0)
        expected = estimate(settings, pairs[0].base.architecture, read, per_token)
        if sized:
            sized(expected)
        require_space(writer.path, sum(expected.values()))
        _write_prompts(writer, read)
        with ray_cluster(workers) if engine == "ray" else nullcontext():
            _write_weights(writer, settings, pairs, workers, engine, stage)
            _capture(writer, models, pairs, read, workers, engine, stage)
        _noise_floor(writer, models, pairs, read)
        manifest = _manifest(settings, pairs, models.placement, read)
        _attribute(writer, models, pairs, manifest, stage)
        unpublished = writer.finish(manifest)
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
    run: Run,
    *,
    method: str | Sequence[str] | None = None,
    metric: str | None = None,
    granularity: str | Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    offload: bool = False,
    stage: Stage | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Attribute a run's behaviour change again, from the checkpoints it names; replaces the tables. Returns `effects`.

    What is not given is as in the run's suite; `settings` are the other keys of its `attribute` section (nodes,
    tolerance, controls, curves …). Tables: see `probes.attribute.methods.Attributor`. Raises RunError and SuiteError.
    """
    given = {"methods": method, "metric": metric, "granularity": granularity, **settings}
    told = {name: [value] if name in _LISTS and isinstance(value, str) else value for name, value in given.items()}
    own = dict(run.manifest["suite"].get("attribute") or {})
    own |= {name: value for name, value in told.items() if value is not None}
    suite = load_suite({**run.manifest["suite"], "attribute": own})
    models = Pairs(suite, Placement(device, dtype, offload))
    found = [_effects(models, run, name, stage) for name in suite.tuned]
    run.manifest.pop("identity", None)  # it is no longer what its suite asks for
    for table in ATTRIBUTED - {name for tables in found for name in tables}:
        run.drop(table)  # of methods that were not asked for again
    for table in dict.fromkeys(name for tables in found for name in tables):
        run.add(table, pd.concat([tables[table] for tables in found if table in tables], ignore_index=True))
    return run["effects"]


#: The tables of an attribution.
ATTRIBUTED = {
    *(
        "effects",
        "prompt_effects",
        "token_effects",
        "neuron_effects",
        "depth",
        "curves",
        "areas",
        "agreement",
        "checks",
    ),
}
_LISTS = ("methods", "granularity", "controls")


def prompts_of(run: Run) -> list[Prompt]:
    """The prompts that a run was made with, out of its own table."""
    rows = run.arrow("prompts").drop_columns(["answer_pos"]).rename_columns({"prompt_id": "id"}).to_pylist()
    return [Prompt(**row) for row in rows]


def _capture(
    writer: RunWriter,
    models: Pairs,
    pairs: Sequence[Opened],
    encoded: Sequence[Encoded],
    workers: int,
    engine: Engine,
    stage: Stage | None,
) -> None:
    """Every tuned model's shards, but for those that a killed run left whole."""
    for i, pair in enumerate(pairs):
        work = shards(encoded, models.suite, pair.name, pair.base.architecture, with_base=i == 0)
        left = [shard for shard in work if not writer.has("capture", shard.name)]
        done = len(encoded) - sum(len(shard.encoded) for shard in left)

        def told(prompts: int, name: str = pair.name) -> None:
            nonlocal done
            done += prompts
            _tell(stage, f"capture {name}", done, len(encoded))

        told(0)
        rows = run_shards(left, models, writer.path, workers=workers, engine=engine, via=writer.via, progress=told)
        for row in rows:
            writer.complete("capture", row)


def _noise_floor(writer: RunWriter, models: Pairs, pairs: Sequence[Opened], encoded: Sequence[Encoded]) -> None:
    """How far the base is from itself in another precision; not where it is spread over devices, which no copy is."""
    suite = models.suite
    if not suite.noise_floor or "gates" not in suite.measure or models.placement.device == "auto":
        return

    def made() -> dict[str, pd.DataFrame]:
        options = {"batch_size": suite.batch_size, "draws": suite.bootstrap, "seed": suite.seed}
        return {"noise_floor": noise_floor(models.pair(pairs[0].name), encoded, **options)}

    writer.stage("noise_floor", "00000", made)


def _attribute(
    writer: RunWriter, models: Pairs, pairs: Sequence[Opened], manifest: Mapping[str, Any], stage: Stage | None
) -> None:
    if models.suite.attribute is None:
        return
    for i, opened in enumerate(pairs):

        def made(name: str = opened.name) -> dict[str, pd.DataFrame]:
            return _effects(models, writer.so_far(manifest), name, stage)

        writer.stage("effects", f"{i:05d}", made)


def _effects(models: Pairs, run: Run, name: str, stage: Stage | None) -> dict[str, pd.DataFrame]:
    """Every table of one pair's attribution, out of the models and what the run has measured of them."""
    suite, pair = models.suite, models.pair(name)
    assert suite.attribute is not None
    encoded = encode(prompts_of(run), pair.tokenizer, pair.architecture.context)
    work = Attributor(pair, encoded, suite.attribute, batch_size=suite.batch_size, seed=suite.seed)
    tables = work.tables(
        bootstrap=suite.bootstrap,
        bases=models.bases,
        scores=component_scores(run, name) if suite.attribute.curves else {},
        progress=partial(_tell, stage, f"attribute {name}"),
    )
    sums = [check.row("logit_diff") for check in dla_completeness(pair, run, name, encoded)]
    tables["checks"] = pd.concat([tables["checks"], pd.DataFrame(sums)], ignore_index=True)
    return {table: rows.assign(tuned=name) for table, rows in tables.items()}


def _require_domains(prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if prompt.domain == ALL_DOMAINS:
            raise SuiteError(
                f"prompt {prompt.id!r} of {prompt.set}: no domain can be called {ALL_DOMAINS!r}, which means every "
                "prompt; give its set another `domain` in the suite"
            )


def _write_prompts(writer: RunWriter, encoded: Sequence[Encoded]) -> None:
    rows = pd.DataFrame([asdict(item.prompt) | {"answer_pos": item.answer_pos} for item in encoded])
    rows = rows.rename(columns={"id": "prompt_id"})
    writer.write("prompts", rows, shard="00000")


def _write_weights(
    writer: RunWriter, suite: Suite, pairs: Sequence[Opened], workers: int, engine: Engine, stage: Stage | None
) -> None:
    for i, opened in enumerate(pairs):

        def made(pair: Opened = opened) -> dict[str, pd.DataFrame]:
            compute = Compute(workers=workers, engine=engine, progress=stage).about(pair.name)
            elsewhere = compute.elsewhere  # other processes open the checkpoints themselves
            base, tuned = (suite.base, suite.tuned[pair.name]) if elsewhere else (pair.base, pair.tuned)
            found = measured(base, tuned, _OF_WEIGHTS, suite.epsilons, compute=compute)
            return {name: found[name].assign(tuned=pair.name) for name in _OF_WEIGHTS}

        writer.stage("weights", f"{i:05d}", made)
    if len(pairs) > 1:
        writer.stage("cosines", "00000", partial(_cosines, pairs, stage))


_OF_WEIGHTS = ("weights", "alignment", "spectra")


def _cosines(pairs: Sequence[Opened], stage: Stage | None) -> dict[str, pd.DataFrame]:
    """How the tuning vectors lie to each other, over all parameters and layer by layer."""
    tuned = {pair.name: pair.tuned for pair in pairs}
    rows = cosine(pairs[0].base, tuned, level="layer", compute=Compute(progress=stage))
    return {"cosines": rows.rename(columns={"a": "tuned", "b": "reference"})[SCHEMAS["cosines"].names]}


def _identity(suite: Suite, prompts: Sequence[Prompt], pairs: Sequence[Opened], placement: Placement) -> dict[str, Any]:
    """Whatever the rows of a run depend on. Who does the work is not among it."""
    rows = json.dumps([asdict(prompt) for prompt in prompts], ensure_ascii=False)
    return {
        "suite": suite.model_dump(mode="json"),
        "prompts": hashlib.sha256(rows.encode()).hexdigest(),
        "checkpoints": {name: found["fingerprint"] for name, found in _checkpoints(pairs).items()},
        "computed": asdict(placement),
        "versions": _versions(suite),
        "schema_version": SCHEMA_VERSION,
    }


def _checkpoints(pairs: Sequence[Opened]) -> dict[str, dict[str, Any]]:
    named = {"base": pairs[0].base, **{pair.name: pair.tuned for pair in pairs}}
    return {
        name: {"source": checkpoint.source, "fingerprint": checkpoint.fingerprint()}
        for name, checkpoint in named.items()
    }


def _versions(suite: Suite) -> dict[str, str]:
    packages = dict.fromkeys(("tuning-probes", "torch", "transformers", "pandas", "pyarrow", suite.backend))
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _manifest(
    suite: Suite, pairs: Sequence[Opened], placement: Placement, encoded: Sequence[Encoded]
) -> dict[str, Any]:
    architecture = pairs[0].base.architecture
    return {
        "suite": suite.model_dump(mode="json"),
        "seed": suite.seed,
        "versions": _versions(suite),
        "threads": torch.get_num_threads(),
        "computed": asdict(placement),
        "architecture": {
            "name": architecture.name,
            "n_layers": architecture.n_layers,
            "d_model": architecture.d_model,
            "n_heads": architecture.n_heads,
            "n_kv_heads": architecture.n_kv_heads,
            "gated": architecture.gated,
        },
        "checkpoints": _checkpoints(pairs),
        "notes": {pair.name: list(pair.facts.notes) for pair in pairs},
        "shards": {
            shard.name: [item.prompt.id for item in shard.encoded]
            for pair in pairs
            for shard in shards(encoded, suite, pair.name, architecture)
        },
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
