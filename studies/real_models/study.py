"""What the study consists of: its sizes, and the stages that each takes, with what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from studies.real_models import models, texts, training
from studies.real_models.training import Training

#: CPU seconds of a machine that multiplies at 50 GFLOP a second and core: a token forward and backward, and an update.
TOKEN, UPDATE = {"smollm2": 0.017, "gemma3": 0.036}, {"smollm2": 0.5, "gemma3": 1.0}
#: A LoRA's gradients are small: what is left of the work of a token.
LORA = 0.75
#: MiB of a model in float32.
MIB = {"smollm2": 515, "gemma3": 1025}


@dataclass(frozen=True)
class Size:
    """How much is done within a budget.

    Args:
        minutes: of two cores, that it takes about.
        names: the models.
        domains: what each is tuned on.
        methods: full, lora.
        seeds: of every fine-tune.
        steps: of a fine-tune, 256 tokens each.
        held_out: texts of a domain on which losses are measured.
        prompts: texts of a domain that the runs read.
        checkpoints: of the trajectory.
    """

    minutes: int
    names: tuple[str, ...]
    domains: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    held_out: int
    prompts: int
    checkpoints: int


SIZES = (
    Size(10, ("smollm2",), ("medical", "math"), ("full",), (0,), 6, 4, 3, 2),
    Size(240, ("smollm2", "gemma3"), tuple(texts.FILES), ("full", "lora"), (0, 1), 48, 24, 12, 6),
    Size(480, ("smollm2", "gemma3"), tuple(texts.FILES), ("full", "lora"), (0, 1), 128, 48, 24, 8),
)


@dataclass(frozen=True)
class Study:
    """Where a study reads and writes.

    Args:
        size: how much is done.
        texts: the folder of the data sets.
        work: weights, runs and the journal.
    """

    size: Size
    texts: Path
    work: Path

    def base(self, name: str) -> Path:
        """The pretrained model."""
        return self.work / "bases" / name

    def tuned(self, one: Training) -> Path:
        """A fine-tuned model or adapter."""
        return self.work / "tuned" / one.name


@dataclass(frozen=True)
class Stage:
    """One piece of work, done by a process of its own and never twice.

    Args:
        name: unique in the study.
        work: what is done.
        cpu: estimated CPU seconds on a machine that computes at pace 1.
        memory: estimated peak, MiB.
        disk: estimated, MiB.
        needs: names of stages that come before.
        out: what is there once it is done.
    """

    name: str
    work: Callable[[], object]
    cpu: float
    memory: float
    disk: float
    out: Path
    needs: tuple[str, ...] = ()


def trainings(size: Size) -> list[Training]:
    """Every fine-tune; of the first model, domain and seed a trajectory is kept."""
    grid = product(size.seeds, size.names, size.methods, size.domains)
    first = (size.seeds[0], size.names[0], "full", size.domains[0])
    return [
        Training(
            name, domain, method, seed, size.steps,
            checkpoints=size.checkpoints if (seed, name, method, domain) == first else 0,
        )
        for seed, name, method, domain in grid
    ]  # fmt: skip


def stages(study: Study) -> list[Stage]:
    """All stages, in the order in which they are done."""
    return [*_bases(study), *_trainings(study)]


def _bases(study: Study) -> list[Stage]:
    return [
        Stage(f"base-{name}", partial(_write_base, study, name), 60, 4 * MIB[name], MIB[name] / 2, study.base(name))
        for name in study.size.names
    ]


def _write_base(study: Study, name: str) -> None:
    models.write_base(models.gguf_of(name, study.work), study.base(name))


def _trainings(study: Study) -> list[Stage]:
    return [_training(study, one) for one in trainings(study.size)]


def _training(study: Study, one: Training) -> Stage:
    full = one.method == "full"
    tokens = training.WINDOW * one.steps * (1 if full else LORA) + 2 * study.size.held_out * 130 / 3
    cost = 15 + tokens * TOKEN[one.model] + one.steps * UPDATE[one.model] * full
    work = partial(
        training.train, one, study.base(one.model), study.texts, study.tuned(one), held_out=study.size.held_out
    )
    memory = (5 if full else 3) * MIB[one.model] + 1500
    disk = MIB[one.model] * (1 + max(0, one.checkpoints - 1)) if full else 40
    return Stage(f"tune-{one.name}", work, cost, memory, disk, study.tuned(one), (f"base-{one.model}",))


def within(minutes: float, sizes: tuple[Size, ...] = SIZES) -> Size:
    """The largest size that takes no longer than the budget; the smallest where none does."""
    fitting = [size for size in sizes if size.minutes <= minutes]
    return fitting[-1] if fitting else sizes[0]


def estimates(all_stages: list[Stage], pace: float) -> Mapping[str, float]:
    """CPU seconds of each stage on this machine."""
    return {stage.name: stage.cpu * pace for stage in all_stages}
