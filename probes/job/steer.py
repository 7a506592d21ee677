"""Steering on a finished run: its models are opened again, and what one vector does is added to its tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probes.attribution.metric import require_answers, require_metric
from probes.capture.editing import site_at
from probes.capture.loading import attributing
from probes.job.effects import effects_of
from probes.job.further import Tables, add, named, reopened
from probes.store.prompts import prompts_of
from probes.store.run import Run
from probes.suite import load_suite
from tv.runtime.compute import Compute

#: The tables that steering alone makes, and those of attribution of which its rows are replaced.
_OWN, _SHARED = ("direction_effects", "one_vector", "direction_samples"), ("effects", "prompt_effects")
#: The options of the method as arguments here.
_OPTIONS = {
    "direction": "direction",
    "op": "direction_op",
    "site": "direction_site",
    "layers": "direction_layers",
    "positions": "direction_positions",
    "doses": "doses",
    "placebos": "placebos",
    "samples": "steered_samples",
    "tokens": "steered_tokens",
}


def steer(
    run: Run,
    *,
    direction: str = "mean",
    op: str = "add",
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    positions: str = "target",
    doses: Sequence[float] = (0.25, 0.5, 2.0, 4.0),
    placebos: int = 20,
    samples: int = 3,
    tokens: int = 16,
    metric: str | None = None,
    tuned: str | Sequence[str] | None = None,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Is the behaviour one vector? Add one to the base's states, take it away from the tuned model's, beside placebos.

    The prompts are in two halves. The vector, its layer and its dose come from one half, and the effect is read on the
    other, both ways. The tables `direction_effects`, `one_vector` and `direction_samples` are added to the run, and
    rows of the method `direction` to its `effects`; those of an earlier call are replaced.

    Args:
        run: A finished run.
        direction: `mean`: the mean change of states on the prompts of the domain where behaviour changes most;
            `mean:DOMAIN`; `mean:RUN`, of another run's prompts, such as a discovery's; `singular:MODULE`, T's first
            left singular direction (`singular:down:2`: the second); `ledger:MODULE`, the mean direct term T·x;
            `probe:LABEL` or `probe:LABEL=CLASS`, the base's probe of `probes.probe`; a .npy or .safetensors file.
        op: `add` a dose of it, `ablate` (project it out), or `clamp` its coordinate to the other model's mean.
        site: Where: resid_post, resid_pre, resid_mid, attn_out or mlp_out.
        layers: Of these the best is chosen; of all layers without it.
        positions: Of each prompt: `target`, `last`, `all`, `from answer`, `from user` or `after template`.
        doses: Multiples of the vector, beside 1.
        placebos: Random vectors of its length, and as many of what tells the prompts' Δh apart. Below 20 nothing can
            be told from them.
        samples: Prompts that both models go on with, steered and not.
        tokens: Of each continuation, at most.
        metric: The behaviour that effects are measured on; the run's own, else logit_diff.
        tuned: One or several of its tuned models; all without it.
        compute: Where models compute.

    Returns:
        The table `one_vector`: by domain, the share of the whole change that the chosen vector carries, with interval
        and p by rank among the placebos.

    Raises:
        InputError: Bad input, in one line, before models are loaded where that is possible.

    Source: Turner et al., arXiv 2308.10248 (adding vectors); Arditi et al., arXiv 2406.11717 (projecting them out).

    Examples:
        >>> run = probes.load("reports/demo")
        >>> found = probes.steer(run, layers=[3], placebos=1, doses=[2.0], samples=0, tuned=["medical"])
        >>> found.columns.isin(["share", "random_p", "answer"]).sum().item(), "direction_effects" in run.tables
        (3, True)
    """
    own_probe = direction.startswith("probe:") and "#" not in direction
    given = {
        "direction": f"probe:{run.path}#{direction.removeprefix('probe:')}" if own_probe else direction,
        "op": op,
        "site": site,
        "layers": layers or (),
        "positions": positions,
        "doses": doses,
        "placebos": placebos,
        "samples": samples,
        "tokens": tokens,
    }
    section = {"methods": ["direction"], "curves": False, "controls": []}
    section |= {_OPTIONS[name]: value for name, value in given.items()}
    before = run.manifest["suite"].get("attribute") or {}
    section |= {"metric": metric or before.get("metric", "logit_diff"), "discovered": before.get("discovered")}
    suite = load_suite({**run.manifest["suite"], "attribute": section})
    assert suite.attribute is not None
    require_metric(suite.attribute.metric)
    require_answers(prompts_of(run), suite.attribute.metric)
    names = named(run, tuned)
    models = reopened(run, attributing(compute, suite.attribute), suite)
    for layer in layers or ():
        site_at(models.opened().architecture, site, layer)  # before a model is loaded
    by_name: dict[str, Tables] = {}
    for name in names:
        tables = effects_of(models, run, name, compute)
        shared = {table: tables[table][tables[table].method == "direction"] for table in _SHARED}
        by_name[name] = shared | {table: tables[table].assign(source=direction) for table in _OWN if table in tables}
    add(run, by_name, {table: {"method": "direction"} for table in _SHARED})
    return run["one_vector"]
