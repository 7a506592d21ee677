"""What a vector's provenance says of its base, dtype and rounding, through arithmetic and out of files."""

import json
from typing import Any

import pytest

from tv.checkpoints.noise import Noise
from tv.checkpoints.provenance import Provenance

PAIR = Provenance(
    base={"source": "base", "content": "b"},
    tuned={"source": "tuned", "dtype": "BF16", "other_dtypes": {"norm": "F32"}},
    noise={"most": [0.3, 0.1], "others": {"norm": [0.0, 0.0]}},
)
OTHER = Provenance(base={"source": "other"}, tuned={"dtype": "F16"}, noise={"most": [0.4, 0.2]})


def test_scaling_scales_what_is_relative_to_the_weight() -> None:
    assert PAIR.noise("up") == Noise(0.3, 0.1) and PAIR.noise("norm") == Noise(0.0, 0.0)
    assert PAIR.scaled(-2).noise("up") == Noise(0.6, 0.1)


def test_a_sum_has_the_first_base_the_coarsest_dtype_and_errors_in_squares() -> None:
    both = PAIR.plus(OTHER)
    assert both.base == PAIR.base and both.dtype("up") == "BF16" and both.dtype("norm") == "F16"
    assert both.noise("up") == Noise(pytest.approx(0.5), 0.2)


def test_a_control_stands_in_with_the_rounding_and_base_of_what_it_replaces() -> None:
    control = PAIR.scaled(0.5).control("random", 4)
    assert control["control"] == "random" and control["seed"] == 4
    assert (control.base, control.dtype("up"), control.noise("up")) == (PAIR.base, "BF16", Noise(0.15, 0.1))


def test_nothing_said_is_nothing_known() -> None:
    assert (Provenance().base, Provenance().dtype("up"), Provenance().noise("up")) == (None, "F32", Noise(0.0, 0.0))


ODD: dict[str, Any] = {
    "a list": [1],
    "no mapping": 3,
    "an operand of text": {"of": "a"},
    "an operand of numbers": {"sum": [1, None]},
    "noise a list": {"noise": []},
    "noise of others a list": {"noise": {"others": []}},
    "noise of one number": {"noise": {"others": {"up": 1}}},
    "noise of three": {"noise": {"most": [1, 2, 3]}},
    "scale of text": {"scale": "x", "of": PAIR},
    "dtypes a list": {"tuned": {"other_dtypes": []}},
    "deep inside": {"sum": [{"of": {"control_of": {"noise": 7}}}]},
}


@pytest.mark.parametrize("told", ODD.values(), ids=list(ODD))
def test_what_is_no_provenance_is_said(told: Any) -> None:
    with pytest.raises(ValueError, match=r"^its provenance cannot be read: "):
        Provenance.parse(json.dumps(told), ["up"])


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"^its provenance cannot be read: "):
        Provenance.parse(text, ["up"])


def test_it_is_json() -> None:
    made = PAIR.scaled(2).plus(OTHER.control("random", 0))
    assert Provenance.parse(json.dumps(made), ["up", "norm"]) == made
