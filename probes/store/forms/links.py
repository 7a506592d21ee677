"""The tables of the link: weights beside activations beside causes."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, Role, keys

_SIDES = {"left": "output side", "right": "input side", "two_sided": "both sides"}


def _role(side: str) -> Role:
    """Both sides together are shown and not ranked."""
    return "" if side == "two_sided" else "weight"


def _measured(name: str, title: str, side: str, null: str | float | None = None) -> Column:
    words = f"{title}, {_SIDES[side]}"
    return Column(
        f"{name}_{side}", words, words=words, null=null, centre=0.0 if null == 0.0 else None, role=_role(side)
    )


def _ssa(side: str) -> tuple[Column, ...]:
    return (
        _measured("ssa", "raw SSA (ε = 0.05)", side, f"ssa_null_{side}"),
        Column(f"ssa_null_{side}", f"the null of ssa_{side}"),
        _measured("kappa", "κ (ε = 0.05)", side, 0.0),
    )


def _leading(side: str) -> tuple[Column, ...]:
    return _measured("ssa10", "SSA in the leading 10 %", side), _measured("kappa10", "κ in the leading 10 %", side, 0.0)


#: Columns of a unit's weights.
WEIGHTS = (
    Column("relative_norm", "‖T‖/‖W‖", words="relative norm ‖T‖/‖W‖", role="weight"),
    Column("cosine", "of W and W + T"),
    Column("cos_weight_delta", "of W and T", centre=0.0),
    Column("noise_share", "of ‖T‖² that rounding explains"),
    *_ssa("left"),
    *_ssa("right"),
    *_ssa("two_sided"),
    *_leading("left"),
    *_leading("right"),
)
#: Columns of activations, means over prompts with intervals; nulls have none.
ACTIVATIONS = (
    Column("direct_norm", "the ledger's direct term", words="direct term ‖T x‖", interval=True, role="activation"),
    Column("inherited_norm", "what came in", words="inherited term ‖W Δx‖", interval=True, role="activation"),
    Column("interaction_norm", "both at once", words="interaction ‖T Δx‖", interval=True),
    Column("ledger_delta_norm", "‖Δy‖", words="whole change of the output ‖Δy‖", interval=True, role="activation"),
    Column(
        "direct_share",
        "⟨direct, Δy⟩/‖Δy‖², as in `ledger`",
        words="direct share of the change",
        interval=True,
        role="activation",
    ),
    Column("new_share_null", "the null of new_share"),
    Column("new_share", "the direct term's share in new directions", interval=True, null="new_share_null"),
    Column("new_share_10", "the same outside the leading 10 %", interval=True),
    Column(
        "change_delta_norm",
        "‖Δ‖ of the contribution",
        words="contribution change ‖Δ‖",
        interval=True,
        role="activation",
    ),
    Column(
        "change_relative", "‖Δ‖/‖contribution‖", words="relative contribution change", interval=True, role="activation"
    ),
    Column("change_cosine", "of the two contributions", interval=True, null=1.0),
    Column("dla_change", "change of direct logit attribution", unit="logits", interval=True, null=0.0, centre=0.0),
    Column("chance_flip_rate", "the null of flip_rate"),
    Column(
        "flip_rate",
        "of gates that flipped",
        words="gate flip rate",
        interval=True,
        null="chance_flip_rate",
        role="activation",
    ),
)
#: Columns of the causes of behaviour.
CAUSES = tuple(
    Column(
        method,
        f"the {method} effect, all prompts",
        words=f"{method} effect, all prompts",
        interval=True,
        null=0.0,
        centre=0.0,
        role="cause",
    )
    for method in ("path", "graft", "revert")
)

table(
    "link",
    "module of a layer, and component of a layer",
    (
        *keys("tuned"),
        Column("kind", "`module` or `component`", "name"),
        *keys("layer component module"),
        *WEIGHTS,
        *ACTIVATIONS,
        *CAUSES,
    ),
)
table(
    "correlations",
    "weight measure and what happened, over units",
    (
        *keys("tuned"),
        Column("kind", "of the units: `module` or `component`", "name"),
        Column("over", "which units: all, one module type, or one layer", "name"),
        Column("weight_measure", "a column of `link`", "name"),
        Column("activation_measure", "a column of `link`", "name"),
        Column("rho", "Spearman's rank correlation, within module or component type", words="ρ", null=0.0, centre=0.0),
        Column("lo", "the lower end of its 95 % interval over layers and prompts"),
        Column("hi", "the upper end"),
        Column("n", "units that moved", "int32", unit="units"),
        Column("null_lo", "where the lowest 2.5 % fall when layers are shuffled"),
        Column("null_hi", "where the highest 2.5 % fall"),
        Column("p", "of shuffled orders that are as far from 0, for this pair alone"),
        Column("p_family", "of those in which any pair of this model and `over` is", since=5),
    ),
)


def measures(role: str) -> tuple[str, ...]:
    """The columns of `link` of one role, in order.

    Examples:
        >>> measures("cause")
        ('path', 'graft', 'revert')
    """
    return tuple(column.name for column in (*WEIGHTS, *ACTIVATIONS, *CAUSES) if column.role == role)
