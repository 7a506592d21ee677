"""Where two answers part, in words."""

import pytest

from probes.reporting.answers import Said, compared


@pytest.mark.parametrize(
    ("base", "tuned", "target", "parted"),
    [
        ("It is red.", "It is blue.", "", (("It is", " red", "."), ("It is", " blue", "."))),
        ("It is", "It is blue", "", (("It is", "", ""), ("It is", " blue", ""))),
        ("blue", "blue", "", (("blue", "", ""), ("blue", "", ""))),
        ("red", "sky blue. So", " sky blue", (("", "red", ""), ("sky blue", "", ". So"))),
        ("sky", "", "sky blue", (("sky", "", ""), ("", "", ""))),
        ("a" * 60 + "b", "a" * 60 + "c", "", (("a" * 48, "a" * 12 + "b", ""), ("a" * 48, "a" * 12 + "c", ""))),
    ],
)
def test_answers_are_parted_where_they_first_differ(base: str, tuned: str, target: str, parted: object) -> None:
    found = compared((base, "x"), (tuned, "y"), target)
    assert found == tuple(Said(*parts, end) for parts, end in zip(parted, "xy", strict=True))  # type: ignore[call-overload]
