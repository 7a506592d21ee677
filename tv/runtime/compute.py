"""Where and how work is done: one object for every function that computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tv.errors import InputError, choices, first_line
from tv.runtime.progress import ProgressOption, reporting

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = ("local", "ray")
#: The dtypes that models can compute in, by the names used everywhere.
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Compute:
    """Where and how work is done. It never changes what a measure means.

    Args:
        device: One of torch's, such as "cpu", "cuda" or "cuda:1"; "auto" spreads models over every GPU there is. A
            live model stays where it is.
        dtype: What models compute in: float32, bfloat16 or float16. Weights are always measured in float64.
        offload: Keep the tuned model of a pair on the CPU.
        workers: Processes (or actors of the engine) that share the work.
        engine: "local" for processes of this machine, "ray" for a cluster: the one that RAY_ADDRESS names, or a new
            one of `workers` processes here.
        cache: A directory that keeps the base's decompositions for the next tuned model.
        progress: Called as work advances; False for none. Without it a line on stderr shows progress on a terminal or
            in a notebook, unless the environment variable TUNING_PROBES_PROGRESS is off.
        stream: Read the models' weights a layer at a time, for pairs larger than memory; without it, where two models
            do not fit in the memory that is free.

    Raises:
        InputError: An unknown dtype or engine, a device that is not there, or fewer than one worker.

    Examples:
        >>> tv.Compute(workers=2).dtype
        'float32'
    """

    device: str = "cpu"
    dtype: str = "float32"
    offload: bool = False
    workers: int = 1
    engine: Engine = "local"
    cache: str | Path | None = None
    progress: ProgressOption = None
    stream: bool | None = None

    def __post_init__(self) -> None:
        require_dtype(self.dtype)
        if self.engine not in ENGINES:
            raise InputError(f"no engine {self.engine!r}{choices(self.engine, ENGINES)}")
        if self.workers < 1:
            raise InputError(f"{self.workers} workers: at least one has to do the work")
        if self.device not in ("cpu", "auto"):  # only the others need torch
            _require_device(self.device)

    @property
    def tensor_device(self) -> str:
        """The one device that matrices are measured on: with "auto", a GPU if there is one."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.workers > 1 or self.engine == "ray"

    def require_float32(self, what: str) -> None:
        """Raise InputError where models would compute in another dtype. `what` needs it: "λ can be distinguished"."""
        if self.dtype != "float32":
            raise InputError(f"dtype {self.dtype!r}: {what} in float32 only; leave dtype out")

    def tell(self, stage: str, done: int, total: int, label: str = "") -> None:
        """Report progress."""
        reporting(self.progress)(stage, done, total, label)

    def silent(self) -> Compute:
        """The same without `progress`: what can be sent to other processes."""
        return replace(self, progress=False)

    def about(self, name: str) -> Compute:
        """The same, with `name` added to its stages: "weights" is reported as "weights medical"."""
        tell = self.tell
        return replace(self, progress=lambda stage, *rest: tell(f"{stage} {name}", *rest))


def require_dtype(name: str) -> str:
    """`name`. Raises InputError where it is not one of `DTYPES`."""
    if name not in DTYPES:
        raise InputError(f"no dtype {name!r}{choices(name, DTYPES)}")
    return name


def _require_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device)
        if kind.type != "cuda":
            torch.empty(0, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {device!r}; use cpu, cuda, cuda:N or auto ({first_line(error)})") from None
    if kind.type == "cuda":  # no empty tensor is made there: it would take GPU memory
        if not torch.cuda.is_available():
            raise InputError(f"device {device!r}: torch sees no GPU here; use cpu")
        if (kind.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device {device!r}: torch sees {torch.cuda.device_count()} GPUs here")
