"""Sparse features of a finished run's change: dictionaries of both models, beside those of two null pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from probes.attribution.attributor import Attributor
from probes.attribution.floors import floors_of
from probes.attribution.metric import answerable, require_answers, require_metric
from probes.capture.loading import Pairs
from probes.directions.features.dictionary import Dictionary
from probes.directions.features.kept import kept_states
from probes.directions.features.public import read_public
from probes.directions.features.study import Study, Wanted, study
from probes.directions.features.training import Training
from probes.discovery.own_texts import paragraphs
from probes.errors import NothingMoved, RunError
from probes.job.further import Tables, add, encoded_of, named, reopened
from probes.job.reading import SITES
from probes.store.prompts import prompts_of
from probes.store.run import Run
from probes.suite import load_suite
from tv.errors import choices
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt, PromptSet, read_prompts
from tv.runtime.compute import Compute

#: The tables of latents that are moved one by one; rows of an earlier dictionary go even where there are no new ones.
_CAUSES = ("effects", "prompt_effects", "feature_curves")


def features(
    run: Run,
    *,
    tuned: str | Sequence[str] | None = None,
    form: Literal["crosscoder", "delta"] = "crosscoder",
    dictionary: str | Path | None = None,
    site: str | None = None,
    layer: int | None = None,
    latents: int = 1024,
    k: int | None = None,
    steps: int = 450,
    seeds: int = 2,
    seed: int = 0,
    texts: Sequence[str | Path] = (),
    tokens: int = 60_000,
    metric: str | None = None,
    effects: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Sparse features of the change: which latents of both models are new, lost or shifted beyond two null pairs.

    Rerun the same call to resume one that was killed. The dictionaries are in the run's folder `features`.

    Args:
        run: A finished run on this machine; its models are opened again.
        tuned: One or several of its tuned models; all without it.
        form: "crosscoder" reads base and tuned together, "delta" their difference.
        dictionary: The directory of a public dictionary of the base, which both models are then read through: of
            SAELens, or of the dictionary-learning format. Nothing is trained.
        site: "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out"; resid_post without it.
        layer: From 0; the middle one without it.
        latents: Of a dictionary.
        k: Latents that fire at a token, on average; 16, and 4 of the form delta, without it.
        steps: Of training, each of 512 tokens.
        seeds: Trainings of each side: the first is read, the others say how stable it is, and test the thresholds.
        seed: Of the first training, and of all draws.
        texts: Files of texts to read, as `probes.discover` takes them; the run's prompts without any, whose states are
            not read again where the suite keeps this site at every place.
        tokens: Of the texts, at most; which texts, the seed draws.
        metric: The behaviour that effects are measured on; without it the run's, else logit_diff where the prompts have
            answers, else kl.
        effects: Latents that are moved one by one; 0 for none.
        compute: The device and dtype, and the progress callback.

    Returns:
        The table `features`: a row per latent, what moved first. The run also gets `dictionaries feature_rates
        feature_texts feature_words feature_curves`, and rows of the method `feature` in `effects`.

    Raises:
        RunError: An unknown model, site or layer, settings that make no dictionary, a public dictionary that cannot be
            read, or a checkpoint that is no longer what the run read.

    Examples:
        >>> run = probes.load("reports/demo")
        >>> few = {"latents": 32, "k": 4, "steps": 5, "seeds": 1, "effects": 0}
        >>> found = probes.features(run, tuned=["medical"], **few)
        >>> set(found["class"]) <= {"new", "lost", "shifted", "shared", "dead"}, len(found)
        (True, 32)
    """
    k = k if k is not None else 4 if form == "delta" else 16
    training = Training(form, latents, k, steps, seed=seed)
    _require(run, training, seeds, tokens, effects, site)
    names = named(run, tuned)
    public = None if dictionary is None else read_public(Path(dictionary))
    given = [prompt for path in texts for prompt in _texts(Path(path))]
    if texts and not given:
        raise RunError(f"features: no text in {', '.join(map(str, texts))}")
    wanted_metric = _metric(run, metric) if effects else None
    place = _place(run, site, layer, {} if public is None else public[1])
    models = reopened(run, compute)
    by_name: dict[str, Tables] = {}
    for name in names:
        pair = models.pair(name)
        own = encoded_of(run, models, name)
        encoded = encode(given, pair.tokenizer, pair.architecture.context) if given else own
        wanted = Wanted(
            place,
            training,
            seeds if public is None else 1,
            tokens,
            models.suite.batch_size,
            device="cpu" if compute.device == "auto" else compute.device,
            public=None if public is None else (public[0], str(public[1]["source"])),
            kept=None if given else partial(kept_states, run, name, place),
        )
        folder = Path(run.path) / "features" / name / f"{_form(form, public)}-{place[0]}-{place[1]}"
        found = study(pair, encoded, wanted, folder, _stamp(run, name, encoded), partial(_told, compute, name))
        tables = {table: run[table].iloc[:0] for table in _CAUSES if table in run.tables} | dict(found.tables)
        if wanted_metric is not None:
            tables |= _effects(run, models, name, own, found, wanted_metric, effects, compute)
            if "effects" in tables:
                tables |= found.listed(tables["effects"].neuron.astype(int).tolist(), pair)
        by_name[name] = tables
    add(run, by_name, {"effects": {"method": "feature"}, "prompt_effects": {"method": "feature"}})
    return run["features"]


def _require(run: Run, training: Training, seeds: int, tokens: int, effects: int, site: str | None) -> None:
    """Raise RunError, before any model is loaded, for what makes no dictionary."""
    if not isinstance(run.path, Path):
        raise RunError(f"{run.path}: dictionaries are written into the run; copy the run to this machine first")
    if training.form not in ("crosscoder", "delta"):
        raise RunError(f"features: no form {training.form!r}; there are crosscoder, delta")
    if site is not None and site not in SITES:
        raise RunError(f"features: no site {site!r}{choices(site, SITES)}")
    least = {"latents": 2, "k": 1, "steps": 5, "seeds": 1, "tokens": 64, "effects": 0}
    given = {**vars(training), "seeds": seeds, "tokens": tokens, "effects": effects}
    for name, value in least.items():
        if given[name] < value:
            raise RunError(f"features: {name} {given[name]} is too small; give at least {value}")
    if training.k > training.latents:
        raise RunError(f"features: k {training.k} is larger than the number of latents, {training.latents}")


def _metric(run: Run, metric: str | None) -> str:
    """The metric of effects. Raises RunError where no prompt has what it needs."""
    prompts = prompts_of(run)
    before = (run.manifest["suite"].get("attribute") or {}).get("metric")
    if metric is None and before is not None and not before.startswith("discovered:"):
        metric = before
    if metric is None:
        metric = "logit_diff" if any(prompt.target and prompt.foil for prompt in prompts) else "kl"
    load_suite({**run.manifest["suite"], "attribute": {"methods": ["feature"], "metric": metric}})  # is it a metric?
    require_metric(metric)
    require_answers(prompts, metric)
    return metric


def _texts(path: Path) -> list[Prompt]:
    if path.suffix.lower() in (".txt", ".md"):
        name = path.stem
        return [Prompt(f"{name}-{i:04d}", name, name, text) for i, text in enumerate(paragraphs(path))]
    chosen = {"file": path} if path.suffix and not path.is_dir() else {"dataset": str(path)}
    return list(read_prompts([PromptSet(**chosen)]))


def _place(run: Run, site: str | None, layer: int | None, said: dict[str, object]) -> tuple[str, int]:
    """The site and layer: as asked for, else what a public dictionary says, else resid_post in the middle."""
    n = int(run.manifest["architecture"]["n_layers"])
    own = said.get("layer")
    layer = layer if layer is not None else int(str(own)) if own is not None else n // 2
    if not 0 <= layer < n:
        raise RunError(f"features: no layer {layer}; the models have layers 0 to {n - 1}")
    return site or str(said.get("site", "resid_post")), layer


def _form(form: str, public: tuple[Dictionary, object] | None) -> str:
    return form if public is None else f"public-{public[0].form}"


def _stamp(run: Run, name: str, encoded: Sequence[Encoded]) -> str:
    """What states are of: the weights of both models and the tokens that they read."""
    content = [run.manifest["checkpoints"][side]["fingerprint"]["content"] for side in ("base", name)]
    tokens = hashlib.sha256(repr([(item.prompt.id, item.ids) for item in encoded]).encode()).hexdigest()[:16]
    return " ".join((*content, tokens))


def _effects(
    run: Run, models: Pairs, name: str, encoded: Sequence[Encoded], found: Study, metric: str, n: int, compute: Compute
) -> dict[str, pd.DataFrame]:
    """`effects prompt_effects feature_curves` of the method `feature`."""
    section = {"methods": ["feature"], "metric": metric, "controls": [], "curves": False}
    suite = load_suite({**run.manifest["suite"], "attribute": section | {"dictionary": str(found.file), "features": n}})
    assert suite.attribute is not None
    work = Attributor(
        models.pair(name),
        answerable(encoded, metric),
        suite.attribute,
        batch_size=suite.batch_size,
        seed=suite.seed,
        floors=floors_of(run, metric),
    )
    progress = partial(compute.tell, f"features {name}")
    try:
        tables = work.tables(bootstrap=suite.bootstrap, bases=dict, scores={}, progress=progress)
    except NothingMoved:
        return {}  # as where T = 0, or where no latent fires at the run's prompts
    return {table: tables[table] for table in _CAUSES if table in tables}


def _told(compute: Compute, name: str, label: str, done: int, total: int) -> None:
    compute.tell(f"features {name}", done, total, label)
