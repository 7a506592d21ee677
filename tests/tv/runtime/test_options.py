"""The options of a function are what its signature says."""

from typing import Annotated

import pytest
from pydantic import Field

from tv.errors import InputError
from tv.runtime.options import options_of, validated


def trim(
    values: list[float],
    *,
    density: Annotated[float, Field(gt=0, le=1, description="the share that stays")] = 0.2,
    rounds: int = 3,
) -> None:
    """Has two options."""


def test_what_has_a_default_is_an_option() -> None:
    options = options_of(trim)
    assert list(options) == ["density", "rounds"]
    assert options["density"].default == 0.2 and options["density"].description == "the share that stays"


def test_only_what_is_given_is_handed_on() -> None:
    assert validated(trim, {"density": "0.5"}, "trim") == {"density": 0.5}
    assert validated(trim, {}, "trim") == {}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"density": 0}, "trim: density 0 should be greater than 0"),
        ({"density": 1.5}, "trim: density 1.5 should be less than or equal to 1"),
        ({"rounds": "many"}, "trim: rounds 'many' should be a valid integer"),
        ({"depth": 1}, "trim has no option 'depth'; there are density, rounds"),
    ],
)
def test_a_mistake_is_one_line(given: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as error:
        validated(trim, given, "trim")
    assert str(error.value).startswith(line)


def test_a_function_without_options_says_so() -> None:
    with pytest.raises(InputError, match="sort has no option 'depth'; there are none"):
        validated(lambda values: None, {"depth": 1}, "sort")


def test_types_of_other_parameters_need_not_be_known() -> None:
    """A method declares its options before what it computes with is imported."""

    def method(work: "Nowhere", *, rounds: "int" = 3) -> "Nothing":  # type: ignore[name-defined]
        """Has one option."""

    assert {name: option.annotation for name, option in options_of(method).items()} == {"rounds": int}
