"""Numbers and names as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from probes.store.forms.links import ACTIVATIONS, CAUSES, WEIGHTS
from probes.store.schemas import ALL_DOMAINS
from tv.prompts.metric import METRICS as REGISTERED
from tv.stats.means import FEWEST

#: The metrics that come first in a report; other registered ones follow.
_FIRST = ("exact_match", "target_nll_per_token", "token_accuracy", "logit_diff")
#: Every behaviour metric: what it is called, its unit, and whether more of it is better (None: neither).
METRICS: dict[str, tuple[str, str, bool | None]] = {
    "final_answer": ("final answer", "share of prompts", True),
    **{
        name: (REGISTERED[name].words, REGISTERED[name].unit, REGISTERED[name].better)
        for name in dict.fromkeys((*_FIRST, *REGISTERED))
    },
    "kl": ("KL(base ‖ tuned)", "nats", None),
    "first_divergence": ("first divergence", "tokens of the answer", None),
}
_OF_EFFECTS = {"kl": "KL(tuned ‖ model)", "first_divergence": "logit difference where the models part"}
#: Measures of the link, in words.
MEASURES = {column.name: column.title for column in (*WEIGHTS, *ACTIVATIONS, *CAUSES) if column.role}
#: What components are called in a sentence; one of another name has that of its module.
COMPONENTS = {
    "embed": "the embedding",
    "attn": "attention",
    "linear_attn": "linear attention",
    "ssm": "a state space",
    "conv": "a short convolution",
    "rnn": "a recurrence",
    "mlp": "the MLP",
}
SIDES = {"left": "output side", "right": "input side", "two_sided": "both sides"}


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, a real minus sign, and an en dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 10_000:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:.{decimals}f}"
        return (text if float(text) else "0").replace("-", "−")
    return f"{value:.{digits - 1}e}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """`number`, with its sign always there."""
    text = number(value, digits)
    return text if text in ("–", "0") or text.startswith("−") else f"+{text}"


def percent(value: float | None) -> str:
    """A share as a percentage; a small one is never written as 0."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(100 * value)
    if 0 < size < 0.01:
        return "< 0.01 %"
    decimals = 0 if size >= 10 or size == 0 else 1 if size >= 1 else 2
    return f"{100 * value:.{decimals}f} %".replace("-", "−")


def points(value: float | None) -> str:
    """A difference of shares, in percentage points."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:+.1f} pp".replace("-", "−").replace(".0 pp", " pp") if value else "0 pp"


def interval(lo: float | None, hi: float | None, form: Callable[[float | None], str] = number) -> str:
    """[lo, hi], or nothing where there is none."""
    if lo is None or hi is None or not (math.isfinite(lo) and math.isfinite(hi)):
        return ""
    return f"[{form(lo)}, {form(hi)}]"


def estimate(
    value: float | None, lo: float | None, hi: float | None, form: Callable[[float | None], str] = number
) -> str:
    """value [lo, hi], all written alike: rounded one way, an estimate never leaves its own interval."""
    return f"{form(value)} {interval(lo, hi, form)}".rstrip()


def is_share(metric: str) -> bool:
    """Whether a metric is a share, which is written as a percentage."""
    return METRICS.get(metric, ("", "", None))[1].startswith("share")


def value_form(metric: str) -> Callable[[float | None], str]:
    """How a metric's value is written."""
    return percent if is_share(metric) else number


def change_form(metric: str) -> Callable[[float | None], str]:
    """How a metric's change is written."""
    return points if is_share(metric) else signed


def smallest_that_matters(metric: str) -> float:
    """The smallest mean change of a metric that matters; 0 where every one does."""
    metric = "exact_match" if metric == "final_answer" else metric
    return REGISTERED[metric].matters if metric in REGISTERED else 0.0


def q_value(q: float | None) -> str:
    """A false-discovery rate, never written as 0."""
    if q is None or not math.isfinite(q):
        return "q –"
    return "q < 0.001" if q < 0.001 else f"q = {q:.2g}"


def p_value(p: float | None) -> str:
    """A p value, never written as 0."""
    if p is None or not math.isfinite(p):
        return "p –"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def metric_name(metric: str) -> str:
    """What a metric is called."""
    return METRICS.get(metric, (metric, "", None))[0]


def effect_metric_name(metric: str) -> str:
    """What the metric of effects is called, which may differ from the metric of that name in `behaviour`."""
    return _OF_EFFECTS.get(metric) or metric_name(metric)


def chosen_by_halves(row: Mapping[Any, Any]) -> str:
    """The layer and dose that each half of the prompts chose, of a row of `one_vector`; once where they agree.

    Examples:
        >>> chosen_by_halves({"layer_0": 3, "dose_0": 2.0, "layer_1": 2, "dose_1": 0.5})
        '3 × 2, 2 × 0.5'
    """
    halves = (f"{row[f'layer_{half}']} × {float(row[f'dose_{half}']):g}" for half in (0, 1))
    return ", ".join(dict.fromkeys(halves))


def prompts_of(domain: str) -> str:
    """The prompts of a domain, or all of them."""
    if domain == ALL_DOMAINS:
        return "all prompts"
    return domain if domain.lower().endswith("prompts") else f"{domain} prompts"


def components_in_words(components: Iterable[str]) -> str:
    """What short names of components mean; nothing where all are of an ordinary block, attention and MLP."""
    told = {name: words for name, words in COMPONENTS.items() if name in set(components)}
    if not set(told) - {"embed", "attn", "mlp"}:
        return ""
    return f"Here {listing([f'{name} is {words}' for name, words in told.items() if name != 'embed'])}."


def layer_name(layer: int, n_layers: int) -> str:
    """−1 is the embedding, n_layers the final norm and the unembedding."""
    return "embed" if layer < 0 else "unembed" if layer >= n_layers else str(layer)


def listing(parts: list[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def too_few(domains: Iterable[str], counts: Iterable[float]) -> str:
    """Which domains have fewer prompts, or clusters of them, than an interval needs."""
    named = listing([f"{domain} ({n:.0f})" for domain, n in zip(domains, counts, strict=True)])
    return f"too few prompts or clusters for an interval, which needs {FEWEST}: {named}"


def ending(text: str, most: int = 240) -> str:
    """The last characters of a text, as a line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"…{line[-most:]}"
