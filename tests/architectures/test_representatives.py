"""Six types of one family each, end to end, and the page that shows all of them."""

from __future__ import annotations

import pytest

from tests.architectures.study import study
from tests.architectures.survey import ALL, PAGE, cells, committed, types_digest
from tests.runs import NO_REPORT

#: Of dense models, linear attention, state spaces, mixtures with sinks, latent attention, and wrappers.
REPRESENTATIVES = ("llama", "qwen3_next", "falcon_h1", "gpt_oss", "deepseek_v3", "gemma3")
#: The columns that are the same on every machine, and cheap to find again.
_SURE = slice(0, 5)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_the_whole_job_agrees_with_independent_hooks(model_type: str) -> None:
    record = study(model_type, NO_REPORT)
    assert record.works, record.result
    assert {"sum", "contributions", "dla", "graft", "weights", "files"} <= record.errors.keys()
    assert cells(record)[_SURE] == committed()[model_type][_SURE], "run python -m tests.architectures.survey --write"


def test_the_page_is_of_the_installed_types() -> None:
    assert committed().keys() == set(ALL)
    said = PAGE.read_text(encoding="utf-8").split("<!-- types: ")[1].split(" -->")[0]
    assert said == types_digest(), "run python -m tests.architectures.survey --write"
