"""The list of faults is about the code as it is."""

import pytest

from tests.mutants import PAGE, ROOT, Mutant, mutants

EVERY = list(mutants())


def test_the_page_is_read_whole() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(EVERY) == text.count("\n## ") == len({mutant.name for mutant in EVERY}) >= 80


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name) for mutant in EVERY])
def test_a_fault_can_be_made_and_its_test_is_there(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.before) == 1 and mutant.before != mutant.after
    file, _, name = mutant.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")
