"""Published configurations, written out by hand: what is read off them has the published sizes, and in seconds."""

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tv.architecture.in_words import composition
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.coverage import Coverage, coverage
from tv.checkpoints.opening import outline

CONFIGS = Path(__file__).parent / "configs"
#: What the published checkpoints hold, buffers included. The draft heads of Qwen3.5 (mtp.*), which are in the files and
#: not in the model, are left out: one layer with full attention, two norms before it and one behind it.
TOTALS = {
    "deepseek-v3": 671_026_419_200,
    "gemma-4-26b-a4b": 25_805_936_206,
    "gemma-4-31b": 31_273_088_876,
    "gpt-oss-20b": 20_914_757_184,
    "llama-4-scout": 108_641_793_536,
    "mistral-small-3.1": 24_011_361_280,
    "qwen3.5-27b": 27_781_427_952 - 424_699_392,
    "qwen3.5-35b-a3b": 35_951_822_704 - 844_640_768,
}
BLOCKS = {
    "deepseek-v3": "61 layers: 58 × attn + mlp of 256 experts, 3 × attn + mlp",
    "gpt-oss-20b": "24 layers: 24 × attn + mlp of 32 experts",
    "llama-4-scout": "48 layers: 48 × attn + mlp of 16 experts",
    "mistral-small-3.1": "40 layers: 40 × attn + mlp",
    "qwen3.5-27b": "64 layers: 48 × linear_attn + mlp, 16 × attn + mlp",
    "qwen3.5-35b-a3b": "40 layers: 30 × linear_attn + mlp of 256 experts, 10 × attn + mlp of 256 experts",
}
#: The text model alone, in billions, as the model cards say it.
TEXT = {"gemma-4-31b": 30.7, "gemma-4-26b-a4b": 25.2, "llama-4-scout": 107.8, "gpt-oss-20b": 20.9, "deepseek-v3": 671.0}


@dataclass(frozen=True)
class Opened:
    """A configuration, what its rows cover, and the seconds that both took."""

    checkpoint: Checkpoint
    covered: Coverage
    seconds: float

    def size(self, but: tuple[str, ...] = ()) -> int:
        """Numbers in its parameters and saved buffers, without those of some parts."""
        names = (*self.checkpoint.names, *self.checkpoint.beside)
        return sum(math.prod(self.checkpoint.info(name).shape) for name in names if not name.startswith(but))


@pytest.fixture(scope="module")
def opened() -> dict[str, Opened]:
    return {path.stem: _opened(path) for path in sorted(CONFIGS.glob("*.json"))}


def _opened(path: Path) -> Opened:
    begun = time.process_time()
    checkpoint = outline(path)
    return Opened(checkpoint, coverage(checkpoint), time.process_time() - begun)


def test_every_configuration_has_a_published_size_here(opened: dict[str, Opened]) -> None:
    assert set(opened) == {*TOTALS, "gemma-4-e4b"}


@pytest.mark.parametrize("name", TOTALS)
def test_the_published_number_of_parameters(opened: dict[str, Opened], name: str) -> None:
    assert opened[name].size() == TOTALS[name]


def test_gemma_4_e4b_has_8_billion_with_its_embeddings(opened: dict[str, Opened]) -> None:
    """Its files also hold keys and values of layers that take another layer's, 55 million that no model has."""
    assert opened["gemma-4-e4b"].size() == pytest.approx(7_996_156_490 - 55e6, rel=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(opened: dict[str, Opened], name: str) -> None:
    assert composition(opened[name].checkpoint.architecture) == BLOCKS[name]


@pytest.mark.parametrize("name", TEXT)
def test_the_text_model_without_its_towers(opened: dict[str, Opened], name: str) -> None:
    groups = opened[name].checkpoint.architecture.groups
    assert round(opened[name].size(but=tuple(f"{group.path}." for group in groups)) / 1e9, 1) == TEXT[name]


@pytest.mark.parametrize("name", [*TOTALS, "gemma-4-e4b"])
def test_every_number_is_in_a_row_and_every_role_is_tvs_own(opened: dict[str, Opened], name: str) -> None:
    assert opened[name].covered.n_unrowed == 0 and opened[name].covered.note == ""
    assert opened[name].checkpoint.architecture.roles == "rules"


def test_experts_of_gpt_oss_and_of_deepseek(opened: dict[str, Opened]) -> None:
    modules = opened["gpt-oss-20b"].checkpoint.architecture.modules
    counts = Counter((m.name, m.shape) for m in modules if m.expert >= 0)
    assert counts == {(name, (2880, 2880)): 24 * 32 for name in ("gate", "up", "down")}
    modules = opened["deepseek-v3"].checkpoint.architecture.modules
    counts = Counter((m.name, m.shape) for m in modules if m.expert >= 0)
    shapes = {"gate": (2048, 7168), "up": (2048, 7168), "down": (7168, 2048)}
    assert counts == {(name, shape): 58 * 256 for name, shape in shapes.items()}
    assert sum(m.name == "shared_gate" for m in modules) == 58


@pytest.mark.parametrize("name", [*TOTALS, "gemma-4-e4b"])
def test_it_takes_seconds(opened: dict[str, Opened], name: str) -> None:
    assert opened[name].seconds < 20
