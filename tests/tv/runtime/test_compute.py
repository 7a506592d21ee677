"""Where and how work is done: said once, checked when it is said."""

import subprocess
import sys

import pytest
import torch

import tv
from tv.errors import InputError


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"dtype": "int8"}, "no dtype 'int8'; there are float32, bfloat16, float16"),
        ({"engine": "spark"}, "no engine 'spark'; there are local, ray"),
        ({"workers": 0}, "0 workers: at least one has to do the work"),
        ({"device": "nowhere"}, "no device 'nowhere'; use cpu, cuda, cuda:N or auto"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(given: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        tv.Compute(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda': torch sees no GPU here; use cpu"):
        tv.Compute("cuda")
    assert tv.Compute("auto").tensor_device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="device 'cuda:2': torch sees 2 GPUs here"):
        tv.Compute("cuda:2")
    assert tv.Compute("cuda:1").tensor_device == "cuda:1" and tv.Compute("auto").tensor_device == "cuda"


def test_making_one_loads_nothing_heavy() -> None:
    program = "import sys, tv\ntv.Compute(workers=2, dtype='bfloat16')\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_progress_is_told_of_a_stage_by_name() -> None:
    told: list[tuple[object, ...]] = []
    compute = tv.Compute(progress=lambda *now: told.append(now))
    compute.tell("cosine", 1, 2, "q 0")
    compute.about("medical").tell("weights", 2, 2)
    compute.silent().tell("cosine", 2, 2)
    tv.Compute().about("medical").tell("weights", 1, 2)
    assert told == [("cosine", 1, 2, "q 0"), ("weights medical", 2, 2, "")]


def test_what_needs_float32_says_so() -> None:
    tv.Compute().require_float32("λ can be distinguished")
    with pytest.raises(InputError, match="dtype 'float16': λ can be distinguished in float32 only"):
        tv.Compute(dtype="float16").require_float32("λ can be distinguished")
