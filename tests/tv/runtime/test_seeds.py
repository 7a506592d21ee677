"""Seeds depend on their words alone."""

from tv.runtime.seeds import seed_of


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert seed_of("random 0 weight") == seed_of(b"random 0 weight") == 8715666069956791520
    assert seed_of("random 1 weight") != seed_of("random 0 weight")
