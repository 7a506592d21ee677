"""From a suite to a job: everything that can be wrong is reported before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from probes.attribution.attributor import require_precision
from probes.attribution.metric import require_answers, require_metric
from probes.capture.final_answers import require_answers_in
from probes.capture.loading import Pairs, as_model, attributing, require_backend, require_streamable
from probes.capture.shards import require_sources
from probes.discovery.discover import discovering, require_discovery, require_parameters
from probes.discovery.finding import is_discovered, require_finding, require_readable
from probes.errors import RunError, SuiteError
from probes.job.identity import identity_of
from probes.job.job import Job
from probes.job.pairs import noted, open_pairs
from probes.store.manifest import STAGES, stages_of
from probes.store.schemas import ALL_DOMAINS
from probes.store.writer import extendable, finished, require_place
from probes.suite import Suite, load_suite
from tv.checkpoints.adapters.live import base_beside, holds_adapter
from tv.checkpoints.live import LiveSource
from tv.errors import choices
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt, read_prompts
from tv.runtime.compute import Compute


def prepare(
    suite: str | Path | Mapping[str, Any],
    *,
    base: LiveSource | None = None,
    tuned: LiveSource | Mapping[str, LiveSource] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    stages: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    remote: bool = False,
    compute: Compute = Compute(),
) -> Job:
    """The job of `probes.run`, its input checked and nothing done yet.

    Args:
        suite: As in `probes.run`, and so are all that follow.
        base: In place of the suite's.
        tuned: In place of the suite's, one or several by name.
        out: A directory or a URL; reports/<suite name> without it.
        force: Make the run again, and replace another that is there.
        stages: Which to do; all without it.
        settings: Keys that win over the suite's.
        remote: Let nnsight's server capture.
        compute: Where and how.

    Returns:
        The job, which knows its size on disk and whether it is done, and runs.

    Raises:
        InputError: Bad input, in one line.

    Examples:
        >>> job = probes.prepare("data/suites/demo.yaml", out="reports/new", stages=["weights", "capture"])
        >>> job.stages, len(job.prompts), os.path.exists("reports/new")
        (('weights', 'capture'), 144, False)
    """
    base = as_model(base)
    tuned = {name: as_model(of) for name, of in tuned.items()} if isinstance(tuned, Mapping) else as_model(tuned)
    sides = list(tuned.values()) if isinstance(tuned, Mapping) else [tuned]
    if base is None and isinstance(suite, Mapping) and "base" not in suite:
        base = next((side for side in sides if isinstance(side, PreTrainedModel) and holds_adapter(side)), None)
    base = base_beside(base, *sides)
    live = _live_models(base, tuned)
    chosen = load_suite(suite, base=_name(base), tuned=_names(tuned), settings=settings)
    wanted = _stages(stages, chosen)
    if chosen.attribute is not None and "attribute" in wanted:
        compute = attributing(compute, chosen.attribute)
    if chosen.discover is not None and "discover" in wanted:
        compute = discovering(compute, chosen.discover)
    models = Pairs(chosen, compute.silent(), live, remote)
    require_sources(models)
    require_backend(models)
    require_streamable(models)
    prompts = read_prompts(chosen.prompts)
    _require_domains(prompts)
    if chosen.answer_pattern is not None:
        require_answers_in(prompts, chosen.answer_pattern)
    if chosen.attribute is not None and "attribute" in wanted:
        require_metric(chosen.attribute.metric)
        require_finding(chosen, wanted)
        require_answers(prompts, chosen.attribute.metric)
        require_precision(chosen.attribute, compute.dtype)
    if chosen.discover is not None and "discover" in wanted:
        require_discovery(chosen.discover, [prompt.cluster or prompt.id for prompt in prompts], compute)
    pairs = [noted(pair, models, prompts) for pair in open_pairs(models)]
    if chosen.attribute is not None and "attribute" in wanted:
        require_readable(chosen, models.tokenizer)
    if chosen.discover is not None and "discover" in wanted:
        require_parameters(chosen.discover, pairs[0].base.values)
    place, identity = out or Path("reports") / chosen.name, identity_of(prompts, pairs, models)
    there, added = None if force else finished(place, identity), None
    if there is None and not force and (extended := extendable(place, identity)):
        there, added = extended
    if there is not None:
        done = stages_of(there.manifest)
        wanted = tuple(stage for stage in STAGES if stage in wanted or stage in done)
    require_place(place, force=force, extends=there)
    job = Job(models, pairs, prompts, place, identity, wanted, compute, force, there, added)
    if added is not None and added.prompts:
        _require_places(job)
    return job


def _require_places(job: Job) -> None:
    """Raise RunError where more prompts move the places at which the others of their set are measured."""
    old = [prompt for prompt in job.prompts if prompt.id in job.measured]
    alone = encode(old, job.models.tokenizer, job.pairs[0].base.architecture.context)
    there = {item.prompt.id: item for item in job.encoded}
    for item in alone:
        if there[item.prompt.id] != item:
            raise RunError(
                f"{job.out} holds another run: with the new prompts, those of {item.prompt.set} share another "
                f"beginning, so that {item.prompt.id!r} is measured at other places; choose another --out or pass "
                "--force"
            )


def _stages(names: Sequence[str] | None, suite: Suite) -> tuple[str, ...]:
    """The stages in order. Raises SuiteError for an unknown stage, and for one that lacks a stage it reads.

    Effects on a finding need what discovered it alone, which `require_finding` looks for.
    """
    found = suite.attribute is not None and is_discovered(suite.attribute.metric)
    chosen = STAGES if names is None else tuple(names)
    for name in chosen:
        if name not in STAGES:
            raise SuiteError(f"no stage {name!r}{choices(name, STAGES)}")
        for other in () if found and name == "attribute" else _NEEDS.get(name, ()):
            if other not in chosen:
                raise SuiteError(f"stage {name!r} reads the tables of stage {other!r}; name both")
    if not chosen:
        raise SuiteError(f"no stages: name at least one of {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in chosen)


#: The stages whose tables a stage reads.
_NEEDS = {"attribute": ("weights", "capture"), "link": ("weights", "capture")}


def _require_domains(prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if prompt.domain == ALL_DOMAINS:
            raise SuiteError(
                f"prompt {prompt.id!r} of {prompt.set}: a domain cannot be called {ALL_DOMAINS!r}, which means every "
                "prompt; give its set another `domain` in the suite (--domain)"
            )


def _live_models(
    base: LiveSource | None, tuned: LiveSource | Mapping[str, LiveSource] | None
) -> dict[str, PreTrainedModel]:
    named = dict(tuned) if isinstance(tuned, Mapping) else {"tuned": tuned}
    return {name: model for name, model in {"base": base, **named}.items() if isinstance(model, PreTrainedModel)}


def _name(source: LiveSource | None) -> str | None:
    if isinstance(source, PreTrainedModel):
        return str(source.config.name_or_path or type(source).__name__)
    return None if source is None else str(source)


def _names(tuned: LiveSource | Mapping[str, LiveSource] | None) -> Any:
    if isinstance(tuned, Mapping):
        return {name: _name(source) for name, source in tuned.items()}
    return {"tuned": _name(tuned)} if isinstance(tuned, PreTrainedModel) else _name(tuned)
