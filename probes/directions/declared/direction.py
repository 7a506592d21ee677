"""Steering by one vector, as suites and command lines know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Rows, Work
    from tv.architecture.anatomy import Architecture

#: Where directions come from that no file holds, and what may follow a colon.
SOURCES = {"mean": "DOMAIN or a run", "singular": "MODULE", "ledger": "MODULE", "probe": "LABEL of probes probe"}
#: Files that hold directions.
FILES = (".npy", ".safetensors")


def _source(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    if kind in SOURCES:
        if spec == "mean:" or (kind in ("singular", "probe") and not rest):
            raise ValueError(f"{spec!r} names no {SOURCES[kind].split()[0].lower()}; write {kind}:{SOURCES[kind]}")
        return spec
    if not spec.endswith(FILES):
        forms = ", ".join(f"{name}:{what}" for name, what in SOURCES.items())
        raise ValueError(
            f"{spec!r} is no source of directions; there are mean, {forms}, and files ({', '.join(FILES)})"
        )
    if not Path(spec).is_file():
        raise ValueError(f"{spec!r}: there is no such file")
    return spec


def _listed(given: Any) -> Any:
    """A command line gives several values as "1,2,4"."""
    return [part for part in given.split(",") if part] if isinstance(given, str) else given


_SITES = Literal["resid_post", "resid_pre", "resid_mid", "attn_out", "mlp_out"]
_POSITIONS = Literal["target", "last", "all", "from answer", "from user", "after template"]


def _cost(architecture: Architecture, units: Sequence[Unit], settings: Any) -> Cost:
    """Every layer with both halves' vectors, doses beside four placebos each, all placebos; from both models."""
    layers, doses = len(settings.direction_layers) or architecture.n_layers, len(settings.doses) + 1
    return Cost(1 + 2 * (1 + 2 * layers + 6 * doses + 1 + 2 * settings.placebos))


@attribution_method(
    "direction",
    words="direction effect",
    explains="Steer: add one vector to the base's states, and take it away from the tuned model's.",
    tables=("direction_effects", "one_vector", "direction_samples"),
    order=60,
    cost=_cost,
)
def direction(
    work: Work,
    units: Sequence[Unit],
    *,
    direction: Annotated[
        str,
        AfterValidator(_source),
        Field(description="mean, mean:DOMAIN, mean:RUN, singular:MODULE, ledger:MODULE, probe:LABEL or a file."),
    ] = "mean",
    direction_op: Annotated[
        Literal["add", "ablate", "clamp"],
        Field(description="add, ablate (project it out) or clamp (to the other model's mean along it)."),
    ] = "add",
    direction_site: Annotated[_SITES, Field(description="The site that is steered.")] = "resid_post",
    direction_layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        BeforeValidator(_listed),
        Field(description="The layers, as 2,3; of all of them the best is chosen on half of the prompts."),
    ] = (),
    direction_positions: Annotated[
        _POSITIONS, Field(description="The positions where the vector is made, and where it is added.")
    ] = "target",
    doses: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
        BeforeValidator(_listed),
        Field(description="Multiples of the vector, beside 1."),
    ] = (0.25, 0.5, 2.0, 4.0),
    placebos: Annotated[
        int, Field(strict=True, ge=1, le=10_000, description="Random vectors, and as many shuffled ones.")
    ] = 20,
    steered_samples: Annotated[
        int, Field(strict=True, ge=0, le=1000, description="Prompts that both models go on with, steered and not.")
    ] = 3,
    steered_tokens: Annotated[int, Field(strict=True, ge=1, le=1000, description="Tokens of each continuation.")] = 16,
) -> Iterator[Effects | Rows]:
    """See `probes.directions.one_vector.direction`."""
    from probes.directions.choosing import Wanted
    from probes.directions.one_vector import direction as run

    wanted = Wanted(
        direction,
        direction_op,
        direction_site,
        direction_layers,
        direction_positions,
        doses,
        placebos,
        steered_samples,
        steered_tokens,
    )
    return run(work, wanted)
