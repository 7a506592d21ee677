"""A checkpoint's tensors by name, wherever they come from, each read on demand.

Nothing is unpickled and no remote code runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tv.architecture.anatomy import Architecture, Module
from tv.checkpoints.config_differences import Settings, settings_of
from tv.checkpoints.noise import Noise
from tv.checkpoints.parameters import Place, Rows, TensorInfo, Tensors, rows_of
from tv.checkpoints.tensors import difference
from tv.checkpoints.ties import UntiedTensors, untied
from tv.checkpoints.written_config import write_config
from tv.errors import CheckpointError
from tv.runtime.common_rows import common_rows
from tv.runtime.threads import one_thread

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PIECE = 2**16  # entries whose sum is taken at a time


class Checkpoint:
    """One model's weights by name. `tv.open_checkpoint` opens one; tensors are read on demand.

    Args:
        source: Where it comes from, as messages name it.
        path: The directory in which its tokenizer may lie; None for a live model and a GGUF file.
        config: The model's configuration, of transformers, or what reads it when it is first asked for.
        architecture: Its modules by role, in execution order.
        reader: What reads its parameters; each kind of source has its own.
        settings: The configuration as plain values, where they are known.
        written: The text of config.json beside weights of a dtype, by its name, where it is known.

    Examples:
        >>> checkpoint = tv.open_checkpoint("data/models/base")
        >>> checkpoint.tensor(checkpoint.names[0]).dtype
        torch.bfloat16
    """

    def __init__(
        self,
        source: str,
        path: Path | None,
        config: PretrainedConfig | Callable[[], PretrainedConfig],
        architecture: Architecture,
        reader: Tensors,
        settings: Settings | None = None,
        written: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.path, self._config, self.architecture = source, path, config, architecture
        self.reader, self._settings, self._written = reader, settings, written or {}
        self._fingerprint: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self.names)} tensors)"

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration, of transformers."""
        if callable(self._config):
            self._config = self._config()
        return self._config

    @property
    def settings(self) -> Settings:
        """The same as plain values, for comparing it with another."""
        if self._settings is None:
            self._settings = settings_of(self.config)
        return self._settings

    def write_config(self, directory: Path, dtype: torch.dtype) -> None:
        """Write the config.json of the same model with weights of this dtype, as transformers writes it."""
        text = self._written.get(str(dtype).removeprefix("torch."))
        if text is None:
            write_config(directory, self.config, self.architecture.name, dtype)
        else:  # it is what transformers has written before
            (directory / "config.json").write_text(text, encoding="utf-8")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's parameters, as the live model has them."""
        return tuple(self.reader.infos)

    @property
    def beside(self) -> Mapping[str, TensorInfo]:
        """Stored floats that are no parameters, by name: saved buffers, and what no module of the model takes."""
        return self.reader.beside

    @property
    def values(self) -> tuple[str, ...]:
        """Names of all that training can change: the parameters, and the buffers that its files keep beside them."""
        return (*self.names, *(name for name in self.beside if name not in self.reader.outside))

    @property
    def converted(self) -> Sequence[Sequence[str]]:
        """Parameters that transformers makes of the tensors in the files by more steps than stacking experts.

        A group for all that come from the same tensors. They are in no `places`.
        """
        return self.reader.converted

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of its tensors, a line each."""
        return self.reader.notes

    @property
    def native(self) -> bool:
        """Whether transformers loads its files itself; otherwise a live model takes its values from here."""
        return self.reader.native

    @property
    def base(self) -> Checkpoint | None:
        """The base under an adapter or a tuning vector; None for a full model."""
        return self.reader.base

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the parameters and buffers that an adapter or a tuning vector moves; for a full model, all."""
        return tuple(self.reader.moved)

    @property
    def places(self) -> list[Place]:
        """The tensors of its files and which parameter or buffer each holds, for code that writes such files."""
        return self.reader.places()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What its files hold of the model besides floats, by name in the files, as stored."""
        return self.reader.buffers()

    def untied(self) -> Checkpoint:
        """The same model with an unembedding of its own, which has the embedding's values; itself where it has one.

        Returns:
            A checkpoint whose unembedding can move by itself. Nothing is read.

        Examples:
            >>> checkpoint = tv.open_checkpoint("data/models/base")
            >>> checkpoint.untied() is checkpoint
            True
        """
        if not self.architecture.tied:
            return self
        from tv.architecture.resolve import resolve, skeleton  # here: they import transformers

        model = untied(skeleton(self.config))
        architecture = replace(resolve(model), vocab_size=self.architecture.vocab_size)
        embed, unembed = f"{architecture.embed}.weight", f"{architecture.unembed}.weight"
        tensors = UntiedTensors(self.reader, embed, unembed, dict(model.named_parameters()))
        return Checkpoint(self.source, self.path, model.config, architecture, tensors)

    @property
    def dtype(self) -> str:
        """The stored dtype of most parameters."""
        sizes: dict[str, int] = {}
        for info in self.reader.infos.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + math.prod(info.shape)
        return max(sizes, key=lambda dtype: sizes[dtype])

    def info(self, name: str) -> TensorInfo:
        """Shape and stored dtype of `name`. Raises CheckpointError where there is no such tensor."""
        found = self.reader.infos.get(name) or self.reader.beside.get(name)
        if found is None:
            raise CheckpointError(f"{self.source}: tensor {name!r} is missing; the checkpoint is incomplete")
        return found

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        """A parameter (or one of `beside`) as stored, or one expert of it alone, on the CPU.

        A quantised weight is dequantised to float32. Raises CheckpointError where it is missing, damaged, or not
        finite.
        """
        self.info(name)
        return self._finite(name, self.reader.read(name, expert))

    def tensor(self, name: str) -> Float[Tensor, "..."]:
        """A whole parameter, as `read` reads it."""
        return self.read(name)

    def matrix(self, module: Module) -> Float[Tensor, "rows cols"]:
        """A module's matrix (or gain), float32, (out, in)."""
        return module.matrix(self.read(module.parameter, module.expert)).float()

    def bias(self, module: Module) -> Float[Tensor, " rows"] | None:
        """A module's bias, float32, or None where it has none."""
        name = f"{module.path}.bias"
        return module.outputs(self.tensor(name), dim=0).float() if name in self.reader.infos else None

    def delta(self, name: str, base: Checkpoint, expert: int = -1) -> Float[Tensor, "..."]:
        """T of a parameter against `base`, as stored, float32; of a grown vocabulary the rows in common.

        Of an adapter or a tuning vector over this base, T itself: no float32 difference of large numbers.
        """
        return self._moved(name, base, expert, lambda stored: stored)

    def delta_rows(self, name: str, base: Checkpoint, expert: int = -1) -> Rows:
        """T of a parameter as `delta` has it, formed a few rows at a time: no side is copied as a whole."""
        if name not in self.reader.infos or name not in base.reader.infos or self._holds_step_of(base):
            return rows_of(self.delta(name, base, expert))
        after, before = common_rows(self.read(name, expert), base.read(name, expert))
        return lambda start, stop: after[start:stop].float() - before[start:stop].float()

    def delta_matrix(self, module: Module, base: Checkpoint) -> Float[Tensor, "rows cols"]:
        """T of a module, (out, in); see `delta`."""
        return self._moved(module.parameter, base, module.expert, module.matrix)

    def noise(self, name: str) -> Noise:
        """What rounding a parameter carries."""
        self.info(name)
        return self.reader.noise(name)

    def sample(self, name: str) -> bytes:
        """A fixed sample of the bytes that make up a parameter."""
        return self.reader.sample(name)

    def fingerprint(self) -> dict[str, Any]:
        """A hash of names, shapes and dtypes, and one of a fixed sample of bytes: the ends of every stored tensor."""
        if not self._fingerprint:
            structure, content = hashlib.sha256(), hashlib.sha256()
            for name in sorted(self.values):
                info = self.info(name)
                structure.update(f"{name} {info.shape} {info.dtype}\n".encode())
                content.update(self.reader.sample(name))
            self._fingerprint = {
                "structure": structure.hexdigest(),
                "content": content.hexdigest(),
                "tensors": len(self.names),
                "parameters": sum(math.prod(info.shape) for info in self.reader.infos.values()),
                "dtype": self.dtype,
            }
        return dict(self._fingerprint)

    def _moved(
        self, name: str, base: Checkpoint, expert: int, view: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "..."]:
        self.info(name)
        if self._holds_step_of(base):
            return view(self._finite(name, self.reader.delta(name, expert)))
        before = view(base.read(name, expert))
        delta = difference(view(self.read(name, expert)), before)
        if name in self.reader.infos or bool(delta.isfinite().all()):
            return delta
        unset = before[: len(delta)] if delta.ndim else before  # a buffer may be a bound that neither model has
        return delta.masked_fill(delta.isnan() & unset.isinf(), 0)

    def _holds_step_of(self, base: Checkpoint) -> bool:
        under = self.reader.base
        return under is not None and (under is base or under.fingerprint() == base.fingerprint())

    def _finite(self, name: str, value: Tensor) -> Tensor:
        if name not in self.reader.infos:  # a buffer may be a bound that is not finite
            return value
        with one_thread():
            for piece in value.flatten().split(_PIECE):
                wide = piece if piece.dtype == torch.float64 else piece.float()
                # A sum that is finite has finite terms; one that is not may have outgrown its dtype.
                if not bool(torch.isfinite(wide.sum())) and not bool(torch.isfinite(wide).all()):
                    where = (~torch.isfinite(value.double())).nonzero()[0].tolist()
                    raise CheckpointError(
                        f"{self.source}: tensor {name!r} holds NaN or Inf, first at {where}; "
                        "the checkpoint is damaged or its training diverged"
                    )
        return value
