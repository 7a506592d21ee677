"""What the study consists of: its sizes, and the stages that each takes, with what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from studies.real_models import texts, training
from studies.real_models.models import SOURCES, gguf_of, write_base
from studies.real_models.stage import Stage
from studies.real_models.training import Training
from tv.errors import InputError

#: A LoRA's gradients are small: what is left of the work of a token.
LORA = 0.85
#: CPU seconds in which 1 MiB of a base is read from its quantised file and written.
WRITTEN = 0.08


@dataclass(frozen=True)
class Size:
    """How much is done within a budget.

    Args:
        minutes: of two cores, that it takes about.
        domains: what each model is tuned on, by its name.
        deep: domains whose fine-tunes are attributed, searched and negated.
        methods: full, lora.
        seeds: of every fine-tune.
        steps: of a fine-tune, 256 tokens each.
        held_out: texts of a domain on which losses are measured.
        prompts: texts of a domain that the runs read.
        checkpoints: of the trajectory.
    """

    minutes: int
    domains: Mapping[str, tuple[str, ...]]
    deep: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    held_out: int
    prompts: int
    checkpoints: int

    @property
    def names(self) -> tuple[str, ...]:
        """The models."""
        return (*self.domains,)

    @property
    def short(self) -> bool:
        """Whether it only shows that everything runs: with fewer nulls, points and ways, on `deep` alone."""
        return self.minutes <= 10


#: All domains, and the three that the larger model is tuned on where there is less time.
ALL, THREE = tuple(texts.FILES), ("medical", "math", "instructions")
SIZES = (
    Size(10, {"smollm2": ("medical", "math")}, ("medical",), ("full",), (0,), 6, 4, 2, 2),
    Size(300, {"smollm2": ALL, "gemma3": THREE}, THREE, ("full", "lora"), (0, 1), 48, 24, 8, 6),
    Size(480, {"smollm2": ALL, "gemma3": ALL}, THREE, ("full", "lora"), (0, 1), 48, 24, 8, 6),
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

    def results(self, stage: str) -> Path:
        """What a stage measured: CSV files, which `tables.collect` joins over stages by their names."""
        return self.work / "results" / stage


def trainings(size: Size) -> list[Training]:
    """Every fine-tune; of the first model, domain and seed a trajectory is kept."""
    first = (size.seeds[0], size.names[0], "full", size.domains[size.names[0]][0])
    return [
        Training(
            name, domain, method, seed, size.steps,
            checkpoints=size.checkpoints if (seed, name, method, domain) == first else 0,
        )
        for seed, name, method in product(size.seeds, size.names, size.methods)
        for domain in size.domains[name]
    ]  # fmt: skip


def stages(study: Study) -> list[Stage]:
    """All stages, in the order in which they are done."""
    tunes = [training_stage(study, one, study.base(one.model), (f"base-{one.model}",)) for one in trainings(study.size)]
    # they are made of what stands here
    from studies.real_models import adding, along, causing, finding, negating, program, reading

    parts = (reading, causing, finding, adding, negating, along, program)
    return [*_bases(study), *tunes, *(stage for part in parts for stage in part.stages(study))]


def deep(size: Size) -> list[Training]:
    """The full fine-tunes of the first seed that are looked into further."""
    return [
        one for one in trainings(size) if one.method == "full" and one.seed == size.seeds[0] and one.domain in size.deep
    ]


def _bases(study: Study) -> list[Stage]:
    found = []
    for name in study.size.names:
        source, work = SOURCES[name], partial(_write_base, study, name)
        cost, memory, disk = WRITTEN * source.mib, source.memory(2.4, 0), source.mib / 2
        found.append(Stage(f"base-{name}", work, cost, memory, disk, study.base(name)))
    return found


def _write_base(study: Study, name: str) -> None:
    write_base(gguf_of(name, study.work), study.base(name))


def training_stage(
    study: Study, one: Training, start: Path, needs: tuple[str, ...], adapter: Path | None = None
) -> Stage:
    """The stage `tune-NAME`, from the model in `start`."""
    full, source, n = one.method == "full", SOURCES[one.model], study.size.held_out
    trained, read = training.WINDOW * one.steps * (1 if full else LORA), 2 * n * texts.TOKENS[one.domain]
    cost = 5 + trained * source.token + read * source.forward + one.steps * source.update * full
    work = partial(training.train, one, start, study.texts, study.tuned(one), held_out=n, adapter=adapter)
    memory = source.memory(4, 7) if full else source.memory(2, 4)
    disk = source.mib * max(1, one.checkpoints) if full else source.mib / 20
    return Stage(f"tune-{one.name}", work, cost, memory, disk, study.tuned(one), needs)


def within(minutes: float, sizes: tuple[Size, ...] = SIZES) -> Size:
    """The largest size that takes no longer than the budget; the smallest where none does."""
    fitting = [size for size in sizes if size.minutes <= minutes]
    return fitting[-1] if fitting else sizes[0]


def of_models(size: Size, names: Sequence[str]) -> Size:
    """The part of a size that these models take; all of it without names.

    Raises:
        InputError: where the size has no such model.
    """
    for name in names:
        if name not in size.domains:
            raise InputError(f"--models {name}: this budget has {', '.join(size.names)}")
    return replace(size, domains={name: size.domains[name] for name in names or size.names})
