"""Whether two checkpoints belong together: one architecture, shape and tokenizer, or one line on how they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.adapters.live import base_beside
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.config_differences import config_differences
from tv.checkpoints.coverage import Coverage, coverage
from tv.checkpoints.noise import PLAIN, Noise
from tv.checkpoints.opening import Source, open_checkpoint
from tv.checkpoints.outside import groups_outside, members, outside_notes
from tv.checkpoints.tokenizers import TokenizerWord, compare_tokenizers
from tv.errors import CheckpointError


@dataclass(frozen=True)
class PairFacts:
    """What `check_pair` reports on a pair that belongs together.

    Attributes:
        n_tensors: Parameters of the base.
        n_parameters: Numbers in them.
        dtype_base: The stored dtype of most of the base's parameters, as safetensors names it: "BF16".
        dtype_tuned: The same of the tuned model.
        vocab_base: Rows of the base's embedding.
        vocab_tuned: Rows of the tuned model's.
        tokenizer: "same"; "grown" where one has more tokens; "renamed" where reserved ids have other tokens;
            "other rules" where the same text or chat can become other tokens; "not compared" where one side has none.
        notes: What a reader should know of the pair, a line each.
        coverage: What of the two is in no row of the weight tables.

    Examples:
        >>> tv.open_pair("data/models/base", "data/models/medical").facts.dtype_base
        'BF16'
    """

    n_tensors: int
    n_parameters: int
    dtype_base: str
    dtype_tuned: str
    vocab_base: int
    vocab_tuned: int
    tokenizer: TokenizerWord
    notes: tuple[str, ...]
    coverage: Coverage

    @property
    def common_rows(self) -> int:
        """Rows of the embedding that both models have."""
        return min(self.vocab_base, self.vocab_tuned)


@dataclass(frozen=True)
class WeightPair:
    """A base and a tuned checkpoint that belong together, read one module at a time.

    Attributes:
        base: The pretrained model.
        tuned: The fine-tuned one.
        facts: What `tv.check_pair` reports on the two.

    Examples:
        >>> pair = tv.open_pair("data/models/base", "data/models/medical")
        >>> len(pair.modules) == len(tv.info("data/models/base"))
        True
    """

    base: Checkpoint
    tuned: Checkpoint
    facts: PairFacts

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules of both, in execution order."""
        return self.base.architecture.modules

    @cached_property
    def rows(self) -> tuple[Module, ...]:
        """Everything that the table `weights` has a row of: the modules, every other parameter, groups of them."""
        held = [{*side.names, *side.beside} for side in (self.base, self.tuned)]
        others = [m for m in self.base.architecture.others if m.kind == "group" or all(m.parameter in h for h in held)]
        return (*self.modules, *others, *groups_outside(self.base, self.tuned))

    def parameters(self, group: Module) -> Iterator[tuple[Tensor, Tensor, str, Noise]]:
        """Of every parameter of a group W and T, float32, the tuned side's stored dtype, and the rounding in T."""
        for name in members(self.base, group):
            if name in self.tuned.names or name in self.tuned.beside:
                weight = without_bounds(self.base.tensor(name).float())
                yield weight, self.tuned.delta(name, self.base), self.tuned.info(name).dtype, self.noise(name)

    def weight(self, module: Module) -> Float[Tensor, "rows cols"]:
        """W of the base, float32; of a grown vocabulary the rows in common."""
        matrix = self.base.matrix(module)
        return matrix[: self.facts.common_rows] if module.name in ("embed", "unembed") else matrix

    def delta(self, module: Module) -> Float[Tensor, "rows cols"]:
        """T of the same rows, float32: of an adapter or a tuning vector as it is held, otherwise W_tuned − W."""
        return self.tuned.delta_matrix(module, self.base)

    def dtype(self, module: Module) -> str:
        """The dtype that the tuned side is stored in: its rounding is part of T."""
        return self.tuned.info(module.parameter).dtype

    def noise(self, name: str) -> Noise:
        """The rounding in T of a parameter. A base that was quantised after training adds its rounding."""
        tuned, base = self.tuned.noise(name), self.base.noise(name)
        if self.tuned.base is not None or self.base.info(name).dtype in PLAIN:
            return tuned
        return Noise(math.hypot(tuned.of_weight, base.of_weight), tuned.of_delta)

    def noise_share(self, module: Module, weight_norm: float, delta_norm: float) -> float:
        """The share of ‖T‖² that rounding explains, of a module whose W and T have these norms; at most 1."""
        return self.noise(module.parameter).share(weight_norm, delta_norm)


def without_bounds(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """W with 0 wherever it is infinite: a buffer may be a bound that the model does not have."""
    return weight.masked_fill(weight.isinf(), 0)


def open_pair(base: Source, tuned: Source) -> WeightPair:
    """Open both sides and check that they belong together.

    Args:
        base: The pretrained model: whatever `open_checkpoint` opens.
        tuned: The fine-tuned one. An adapter or a tuning vector is taken over `base`.

    Returns:
        W and T, module by module, none of them read yet.

    Raises:
        CheckpointError: They do not belong together; see `check_pair`.

    Examples:
        >>> pair = tv.open_pair("data/models/base", "data/models/medical")
        >>> gate = pair.base.architecture.module(0, "gate")
        >>> tuple(pair.weight(gate).shape) == tuple(pair.delta(gate).shape)
        True
    """
    left = open_checkpoint(base_beside(base, tuned))
    left, right = alike([left, open_checkpoint(tuned, base=left)])
    return WeightPair(left, right, check_pair(left, right))


def alike(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints as models of one form: where one has an unembedding of its own, each has.

    A base whose unembedding is its embedding, and a tuned model in which the two moved apart, are then compared as what
    they compute.

    Args:
        checkpoints: Of one architecture.

    Returns:
        The same, or views of them.

    Examples:
        >>> base = tv.open_checkpoint("data/models/base")
        >>> alike([base, base])[0] is base
        True
    """
    return [one.untied() for one in checkpoints] if of_two_forms(checkpoints) else list(checkpoints)


def of_two_forms(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether some have an unembedding of their own, and others have the embedding's."""
    return len({checkpoint.architecture.tied for checkpoint in checkpoints}) > 1


def check_pair(base: Checkpoint, tuned: Checkpoint) -> PairFacts:
    """Check that `tuned` can be a fine-tune of `base`.

    A vocabulary may have grown at its end: the rows that both have are compared, and a note says so.

    Args:
        base: The opened pretrained checkpoint.
        tuned: The opened fine-tuned one.

    Returns:
        Sizes, stored dtypes, whether the tokenizers agree, and notes for a reader.

    Raises:
        CheckpointError: Architecture, a shape or the tokenizer differs. The line names the first difference.

    Examples:
        >>> base, medical = (tv.open_checkpoint(f"data/models/{name}") for name in ("base", "medical"))
        >>> tv.check_pair(base, medical).tokenizer
        'same'
    """
    if base.architecture.name != tuned.architecture.name:
        raise CheckpointError(
            f"{tuned.source}: {tuned.architecture.name}, but the base {base.source} is {base.architecture.name}; "
            "compare checkpoints of one architecture"
        )
    for size in ("n_layers", "n_heads", "n_kv_heads", "d_head"):  # matrices of one shape can be cut into other heads
        left, right = getattr(base.architecture, size), getattr(tuned.architecture, size)
        if left != right:
            raise CheckpointError(f"{tuned.source}: {size} is {right}, the base's {left}; compare models of one shape")
    vocab_base, vocab_tuned = base.architecture.vocab_size, tuned.architecture.vocab_size
    _require_same_tensors(base, tuned, {vocab_base, vocab_tuned})
    tokenizer, notes = compare_tokenizers(base, tuned)
    if vocab_base != vocab_tuned:
        notes.append(
            f"the vocabularies have {vocab_base} and {vocab_tuned} rows: the first {min(vocab_base, vocab_tuned)} are "
            f"compared, the other {abs(vocab_base - vocab_tuned)} are left out"
        )
    notes += config_differences(base.settings, tuned.settings)
    notes += [note for checkpoint in (base, tuned) for note in checkpoint.notes]
    notes += [base.architecture.note] * bool(base.architecture.note)
    plain = all(side.base is None and side.dtype in PLAIN for side in (base, tuned))
    if plain and base.dtype != tuned.dtype:
        notes.append(f"stored as {base.dtype} and {tuned.dtype}: the coarser one's rounding is part of T")
    notes += [*_lacking(base, tuned), *outside_notes(base, tuned)]
    covered = coverage(base, tuned)
    notes += [covered.note] * bool(covered.note)
    sizes = base.fingerprint()
    return PairFacts(
        *(sizes["tensors"], sizes["parameters"], base.dtype, tuned.dtype, vocab_base, vocab_tuned, tokenizer),
        *(tuple(notes), covered),
    )


def _lacking(base: Checkpoint, tuned: Checkpoint) -> Iterator[str]:
    """A line for a side whose files lack buffers that the other's hold."""
    for one, other in ((base, tuned), (tuned, base)):
        lacking = [name for name in other.values if name not in one.values]
        if lacking:
            yield (
                f"{one.source}: lacks {len(lacking)} buffers ({lacking[0]!r} first) that {other.source} holds, so they "
                "have no T"
            )


def _require_same_tensors(base: Checkpoint, tuned: Checkpoint, vocab_sizes: set[int]) -> None:
    vocab_tensors = {module.parameter for module in base.architecture.modules if module.name in ("embed", "unembed")}
    vocab_tensors |= {name.removesuffix(".weight") + ".bias" for name in vocab_tensors}
    for module in base.architecture.modules:
        base.info(module.parameter)
        tuned.info(module.parameter)
    for name in (*base.names, *tuned.names):
        for checkpoint, other in ((base, tuned), (tuned, base)):
            if name not in checkpoint.names:
                raise CheckpointError(f"{checkpoint.source}: has no tensor {name!r}, which {other.source} has")
    for name in (name for name in base.values if name in tuned.values):
        left, right = base.info(name).shape, tuned.info(name).shape
        grown = name in vocab_tensors and left[1:] == right[1:] and {left[0], right[0]} <= vocab_sizes
        if left != right and not grown:
            raise CheckpointError(
                f"{tuned.source}: tensor {name!r} has shape {list(right)}, the base's {list(left)}; "
                "compare checkpoints of one shape"
            )
