"""A training run watched from inside: a callback for transformers' Trainer and TRL, and `step` for plain loops."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from probes.errors import RunError
from probes.watch.movement import Movement
from probes.watch.pacing import Every, Pace
from probes.watch.reading import Base, Pass, Prompted
from probes.watch.store import append, forget, is_watched, load_watch, read_table, write_manifest
from probes.watch.undisturbed import core_of, replaced, undisturbed, without_adapters
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import load_tokenizer
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.vector import TuningVector
from tv.errors import CheckpointError, InputError, choices
from tv.prompts.behaviour import PromptSource, gather
from tv.prompts.files import Prompt
from tv.prompts.notes import prompt_notes
from tv.runtime import transformers_private
from tv.runtime.atomic import replacing_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: What a probe can measure.
METRICS = ("weights", "behaviour", "flips")
_FORMAT = 1


class TrainingProbe(TrainerCallback):
    """Watches a training run: T's norms and ranks, cosines, behaviour, KL from the base and gate flips, as it goes.

    Give it to a Trainer (`callbacks=[probe]`; TRL's too), or call `step` in a loop of your own. Training is not
    changed: with a probe and without one the weights are the same, bit for bit. No second model is in memory: of a LoRA
    the base is the model with its adapter switched off; of a full fine-tune it is a copy on disk, read one matrix at a
    time.

    Args:
        out: The directory to write. If it holds a watched training already, that one is continued: what was measured
            after the step that training resumes from is measured again.
        base: The base: whatever `tv.open_checkpoint` opens. Without it, the model as it is when training begins (of an
            adapter: without the adapter); of a full fine-tune a copy is then written to `out/base`.
        prompts: JSONL files, `tv.PromptSet`s or `tv.Prompt`s, one or several. Without any, only weights are measured.
        every: Steps from one measurement to the next, or "auto": as often as `share` allows.
        share: The share of the training time that "auto" spends.
        vectors: Tuning vectors by name, for cosines with T: a file of `tv extract`, a tuned checkpoint or an adapter of
            the same base, or a `tv.TuningVector`.
        metrics: What to measure, of "weights", "behaviour" and "flips".
        per_domain: Prompts of each domain at most, the first ones.
        batch_size: Prompts in one forward pass.
        tokenizer: Encodes the prompts; by default the Trainer's, or the one beside the model.
        draws: Random T of the same norms that the last measurement is compared with, where the share allows.

    Raises:
        InputError: Impossible settings, when it is created; a model whose parameters are spread over processes, a base
            or a vector of another model, prompts that cannot be read, when training begins.

    Examples:
        >>> probe = probes.TrainingProbe("reports/watched", prompts="data/prompts/medical.jsonl", every=10)
        >>> probe.pace.every
        10
    """

    def __init__(
        self,
        out: str | Path,
        *,
        base: str | Path | None = None,
        prompts: PromptSource | Sequence[PromptSource] | None = None,
        every: Every = "auto",
        share: float = 0.03,
        vectors: Mapping[str, str | Path | TuningVector] | None = None,
        metrics: Sequence[str] = METRICS,
        per_domain: int = 16,
        batch_size: int = 16,
        tokenizer: PreTrainedTokenizerBase | None = None,
        draws: int = 3,
    ) -> None:
        self.out, self.pace = Path(out), Pace(every, share)
        if unknown := [name for name in metrics if name not in METRICS]:
            raise InputError(f"TrainingProbe: no metric {unknown[0]!r}{choices(unknown[0], METRICS)}")
        if per_domain < 1 or batch_size < 1:
            raise InputError("TrainingProbe: per_domain and batch_size are at least 1")
        if self.out.exists() and (not self.out.is_dir() or (any(self.out.iterdir()) and not is_watched(self.out))):
            raise RunError(f"{self.out}: holds something else than a watched training; give another directory")
        self.metrics, self.batch_size, self.draws, self.tokenizer = tuple(metrics), batch_size, draws, tokenizer
        self.prompts = _few(gather(prompts), per_domain) if prompts is not None else []
        self._base, self._given = base, dict(vectors or {})
        self._movement: Movement | None = None
        self._read: Base | None = None
        self._loss: float | None = None
        self._scalars: dict[str, float] = {}
        self._said: dict[str, Any] = {}

    def step(self, model: Any, step: int, *, loss: float | None = None, final: bool = False) -> bool:
        """Measure if it is time to; for training loops of your own, after every optimizer step.

        The first call comes before the first step, with `step=0`.

        Args:
            model: The model in training.
            step: Optimizer steps done.
            loss: The training loss at this step, to be written beside.
            final: Whether this is the last step: it is always measured.

        Returns:
            Whether it measured.

        Raises:
            InputError: At the first call: the model cannot be watched.

        Examples:
            >>> import probes
            >>> from tv.checkpoints.live import load_model
            >>> probe, model = probes.TrainingProbe("watched", every=10), load_model("data/models/base")
            >>> [step for step in range(26) if probe.step(model, step, final=step == 25)]
            [0, 10, 20, 25]
        """
        if _rank():
            return False
        begun = self._movement is None and self._begin(model, step, self.tokenizer)
        self._loss = self._loss if loss is None else float(loss)
        due = self.pace.due(step, step if final else None)
        if due:
            self._measure(step, None, final)
        if final:
            self._end()
        return begun or due

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Trainer's event: the base is read, and logs pass through here before they are written."""
        if not state.is_world_process_zero:
            return
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise InputError(
                "TrainingProbe: FSDP and DeepSpeed spread parameters over processes, and it reads whole ones; train "
                "with DDP, or measure the saved checkpoints with `tv trajectory`"
            )
        _first(self)
        self._movement = None
        self._begin(model, state.global_step, self.tokenizer or kwargs.get("processing_class"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer's event: measures where it is time to, and asks the Trainer to log."""
        final = state.max_steps if state.max_steps > 0 else None
        if self._movement is None or not self.pace.due(state.global_step, final):
            return
        self._measure(state.global_step, state.epoch, state.global_step == final)
        if getattr(args.logging_strategy, "value", args.logging_strategy) != "no":
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Trainer's event: what was measured goes with its logs, to TensorBoard, Weights & Biases, `log_history`."""
        if logs is None or self._movement is None:
            return
        self._loss = float(logs["loss"]) if isinstance(logs.get("loss"), int | float) else self._loss
        logs.update(self._scalars)
        if state.log_history:
            state.log_history[-1].update(self._scalars)
        self._scalars = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer's event: the last step is measured if training stopped early, and the directory is closed."""
        if self._movement is None:
            return
        if state.global_step > self.pace.last and not args.load_best_model_at_end:
            self._measure(state.global_step, state.epoch, True)
        self._end()

    def _begin(self, model: Any, step: int, tokenizer: PreTrainedTokenizerBase | None) -> bool:
        """Read the base and measure the start, or go on where the directory ends; whether it measured."""
        started = time.perf_counter()
        core = core_of(model)
        known = read_table(self.out, "steps") if is_watched(self.out) else None
        self._said = dict(load_watch(self.out).manifest) if known is not None else {}
        if known is not None:
            known = known[known.step <= step]
        fresh = known is None or not len(known)
        self.out.mkdir(parents=True, exist_ok=True)
        with undisturbed(core):
            self._movement = movement = self._moved(core, step, fresh)
            if self.prompts:
                tokenizer = tokenizer or load_tokenizer(core)
                tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
                notes = prompt_notes(self.prompts, tokenizer)
                prompted = Prompted.of(self.prompts, movement.plain, tokenizer, self.batch_size)
                self._read = self._of_base(prompted)
            else:
                notes = []
        if known is not None:  # only now: whatever is refused was refused above
            forget(self.out, step)
        self._said = {
            "format": _FORMAT,
            "every": self.pace.every,
            "share": self.pace.share,
            "metrics": list(self.metrics),
            "prompts": len(self.prompts),
            "adapter": movement.adapted,
            "base": str(self._base or (core.config.name_or_path if movement.adapted else self.out / "base")),
            "base_content": self._said["base_content"],
            "dtype": str(core.dtype).removeprefix("torch."),
            "vectors": {name: str(one) for name, one in self._given.items() if not isinstance(one, TuningVector)},
            "notes": notes,
            "ended": False,
        }
        write_manifest(self.out, self._said)
        if fresh:
            self.pace.start(started)
            self._measure(step, None, False, since=started)
        else:
            assert known is not None
            last = known.iloc[-1]
            self.pace.start(started, float(last.training_seconds), float(last.probe_seconds), int(last.step))
            self.pace.paid(int(last.step), 0.0, time.perf_counter() - started, usual=float(last.seconds))
        return fresh

    def _moved(self, core: PreTrainedModel, step: int, fresh: bool) -> Movement:
        """Where T comes from; a base that is nowhere else is written to disk."""
        base, copy = self._base, self.out / "base"
        movement = Movement(core, None)
        if not movement.adapted and base is None:
            if not (copy / "config.json").is_file():
                if step:
                    raise InputError(
                        f"{self.out}: training is at step {step} and its base is not here; pass base=, or the "
                        "directory that watched the steps before"
                    )
                with replacing_directory(copy, RunError) as temporary:
                    core.save_pretrained(temporary, max_shard_size="1GB")
            base = copy
        opened = open_checkpoint(base) if base is not None else None
        if movement.adapted and opened is None:
            open_checkpoint(core)  # refuses adapters whose base is not in memory
        if opened is not None:
            odd = [name for name in movement.parameters if name not in opened.names]
            if odd:
                raise CheckpointError(f"{base}: not the base of this model: it has no parameter {odd[0]!r}")
            for name, value in movement.parameters.items():
                here, there = tuple(value.shape), tuple(opened.tensor(name).shape)
                if here[1:] != there[1:]:  # rows may differ: a vocabulary that grew
                    raise CheckpointError(f"{base}: not the base of this model: its {name} is {there}, and here {here}")
        under = opened if opened is not None else open_checkpoint(movement.plain)
        content = under.fingerprint()["content"]
        other = self._said.setdefault("base_content", content) != content
        if base == copy and not step:  # a training that begins has the weights of its base
            other |= not all(torch.equal(under.tensor(n).to(p), p) for n, p in movement.parameters.items())
        if other:
            raise RunError(f"{self.out}: watched a training that began from other weights; give another directory")
        vectors = {
            name: one if isinstance(one, TuningVector) else extract(under, one) for name, one in self._given.items()
        }
        return Movement(core, opened, vectors)

    def _of_base(self, prompted: Prompted) -> Base:
        """The base's behaviour: kept by an earlier process, or read now."""
        folder = self.out / "behaviour_of_base"
        if not (folder / "prompts.json").is_file():
            with replacing_directory(folder, RunError) as temporary, self._at_base():
                Base.keep(temporary, prompted, self._now.core)
        else:  # one batch tells how wide the layers are
            short = prompted.batches[:1]
            prompted.seen(self._now.core, given=short)
        return Base(folder, prompted)

    @contextmanager
    def _at_base(self) -> Iterator[None]:
        """The live model as its base: adapters off, and weights that are not the base's replaced from disk."""
        movement, scratch = self._now, self.out / "scratch"
        base = movement.base
        with without_adapters(movement.core):
            if base is None or (base.path == self.out / "base" and not movement.adapted):
                yield
                return
            other = {
                name: value
                for name, value in movement.parameters.items()
                if not torch.equal(base.tensor(name).to(value), value.detach())
            }
            with replaced(other, base.tensor, scratch):
                yield

    @property
    def _now(self) -> Movement:
        assert self._movement is not None
        return self._movement

    def _measure(self, step: int, epoch: float | None, final: bool, since: float | None = None) -> None:
        """One measurement, with its cost."""
        _settle()
        trained = self.pace.trained if since is None else 0.0  # before the first step there was none
        begun = time.perf_counter()
        started = begun if since is None else since
        movement = self._now
        tables: dict[str, list[dict[str, Any]]] = {}
        with undisturbed(movement.core):
            weights, cosines = movement.rows() if "weights" in self.metrics else ([], [])
            seen = self._read.prompted.seen(movement.core, self._read.logp) if self._read else None
            tables |= {"weights": weights, "cosines": cosines, **self._compared(seen)}
            _settle()
            usual = time.perf_counter()
            if final and seen is not None and self.draws and self.pace.affords((usual - started) * (self.draws + 1)):
                tables["nulls"] = list(self._nulls(step))
        self.pace.paid(step, usual - started, time.perf_counter() - usual, usual=usual - begun)
        row = {"epoch": epoch, "loss": self._loss, "training_seconds": trained, "seconds": self.pace.price}
        row |= {
            "probe_seconds": self.pace.spent,
            "share": self.pace.spent / trained if trained > 1e-3 else float("nan"),
        }
        tables["steps"] = [row | _summary(tables)]
        append(self.out, step, tables)
        self._scalars = _scalars(tables)

    def _compared(self, seen: Pass | None) -> dict[str, list[dict[str, Any]]]:
        if seen is None or self._read is None:
            return {}
        tables = {}
        if "behaviour" in self.metrics:
            tables["behaviour"] = self._read.behaviour(seen)
        if "flips" in self.metrics:
            tables["flips"] = self._read.flip_rows(seen)
        return tables

    def _nulls(self, step: int) -> Iterator[dict[str, Any]]:
        """KL, flips and loss of random T with the norms of this one, parameter by parameter."""
        assert self._read is not None
        movement = self._now
        norms = dict(movement.steps())
        moved = {name: movement.parameters[name] for name in norms if name in movement.parameters}
        for draw in range(self.draws):
            generator = torch.Generator().manual_seed(draw)

            def value(name: str, generator: torch.Generator = generator) -> torch.Tensor:
                weight = movement.base_value(name).float().cpu()
                noise = torch.randn(weight.shape, generator=generator)
                return weight + noise * (norms[name] / float(noise.norm()))

            with without_adapters(movement.core), replaced(moved, value, self.out / "scratch"):
                seen = self._read.prompted.seen(movement.core, self._read.logp)
            for row in self._read.behaviour(seen):
                yield {"draw": draw, "domain": row["domain"], "metric": row["metric"], "value": row["value"]}
            for flips in self._read.flip_rows(seen)[:1]:
                yield {"draw": draw, "domain": "all", "metric": "flip_rate", "value": flips["flip_rate"]}

    def _end(self) -> None:
        write_manifest(self.out, {**self._said, "ended": True})


def _summary(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The columns of `steps` that come from the other tables."""
    row: dict[str, Any] = {}
    for whole in tables.get("weights", ())[:1]:
        row |= {name: whole[name] for name in ("norm", "relative_norm", "noise_share")}
    for of in tables.get("behaviour", ()):
        if of["metric"] == "kl" and of["domain"] == "all":
            row |= {"kl": of["value"], "kl_lo": of["lo"], "kl_hi": of["hi"], "kl_floor": of["floor"]}
    for of in tables.get("flips", ())[:1]:
        row |= {"flip_rate": of["flip_rate"], "chance_flip_rate": of["chance_flip_rate"], "flip_floor": of["floor"]}
    return row


def _scalars(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """What the Trainer logs: a few numbers by name."""
    (row,) = tables["steps"]
    names = ("norm", "relative_norm", "noise_share", "kl", "flip_rate", "seconds", "share")
    scalars = {f"probe/{'T_norm' if name == 'norm' else name}": row.get(name) for name in names}
    for of in tables.get("cosines", ()):
        if of["module"] == "all":
            scalars[f"probe/cosine/{of['vector']}"] = of["cosine"]
    for of in tables.get("behaviour", ()):
        if of["metric"] in ("loss", "exact_match"):
            scalars[f"probe/{of['metric']}/{of['domain']}"] = of["value"]
    return {name: float(value) for name, value in scalars.items() if value is not None and value == value}


def _few(prompts: Sequence[Prompt], per_domain: int) -> list[Prompt]:
    """The first prompts of every domain."""
    taken: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        taken[prompt.domain] = taken.get(prompt.domain, 0) + 1
        if taken[prompt.domain] <= per_domain:
            kept.append(prompt)
    return kept


def _first(probe: TrainerCallback) -> None:
    """Put a callback before those that write logs: what it adds to the logs is then there for them.

    A Trainer puts its own callbacks first, and tells a callback nothing of the others; who calls is in the frames.
    """
    frame = sys._getframe(1)
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, transformers_private.CallbackHandler) and probe in handler.callbacks:
            # A new list: the old one is being gone through.
            handler.callbacks = [probe, *(one for one in handler.callbacks if one is not probe)]
            return
        frame = frame.f_back  # type: ignore[assignment]


def _settle() -> None:
    """Wait for what a GPU still has to do, so that time is counted where it is spent."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0
