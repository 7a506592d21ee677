"""What one matrix is: its role and heads, or the slices of a fused one, by its name, its shape and what runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from torch import Tensor, nn

from tv.architecture import names
from tv.architecture.anatomy import FROM_HEADS, Component
from tv.architecture.experts import EXPERTS, is_shared, own_role, shared_name
from tv.architecture.sizes import Sizes

#: Names of the slices of a matrix, each with its rows; () = all.
Slices = list[tuple[str, tuple[tuple[int, int], ...]]]


@dataclass(frozen=True)
class Host:
    """A module that runs matrices, and the sizes of the model."""

    parent: nn.Module
    sizes: Sizes

    def roles(
        self, kind: str, component: Component, segments: Sequence[str], rows: int, transposed: bool, alone: bool
    ) -> Slices:
        """What a matrix is, by its name: its role, or roles and the rows of each; else its own name.

        Args:
            kind: The component's, without a number.
            component: Its name.
            segments: The path of the parameter below the component.
            rows: Of the matrix.
            transposed: Whether it is stored (in, out).
            alone: Whether no other matrix of the component has the name of its module.

        Returns:
            Names, each with its rows; () = all.
        """
        *inside, leaf = [part for part in segments if part not in ("weight", "linear")] or [segments[0]]
        own: Slices = [(own_name(segments), ())]
        if kind == "attn":
            table = names.ATTENTION if len(inside) <= 1 and "indexer" not in inside else {}
            cut = self._attention_slices(table.get(leaf, ()), leaf, rows, transposed)
            return cut or own
        if kind != "mlp":
            return [("o" if leaf == "o_proj" else leaf, ())] if alone else own
        if (role := own_role([*inside, leaf])) is not None:
            return [(role, ())]
        roles = () if inside and leaf in names.SEQUENCE else (names.MLP | names.SEQUENCE).get(leaf, ())
        if is_shared([component, *inside]):
            roles = tuple(shared_name(role) for role in roles)
        elif inside and inside[0] in EXPERTS:
            roles = ()
        if not roles:
            return own
        if len(roles) == 1 and roles[0].endswith("up") and rows == 2 * self._down_inputs():
            roles = (roles[0].replace("up", "gate"), roles[0])
        if len(roles) == 1:
            return [(roles[0], ())]
        return [(roles[0], ((0, rows // 2),)), (roles[1], ((rows // 2, rows),))]

    def _down_inputs(self) -> int:
        """How many inputs the down projection beside a matrix has; 0 where there is none."""
        beside = self.parent.named_children()
        down = next((child for name, child in beside if names.MLP.get(name) == ("down",)), None)
        weight = getattr(down, "weight", None)
        return weight.shape[-1] if isinstance(weight, Tensor) and weight.ndim == 2 else 0

    def _attention_slices(self, roles: Sequence[str], leaf: str, rows: int, transposed: bool) -> Slices:
        sizes, d = self.attention, self.attention.d_head
        n, kv = sizes.n_heads, sizes.n_kv_heads
        if roles == ("q",) and n and d and rows == 2 * n * d:  # a gate beside each head's query
            queries = tuple((2 * h * d, (2 * h + 1) * d) for h in range(n))
            return [("q", queries), ("q_gate", tuple((stop, stop + d) for _, stop in queries))]
        if len(roles) < 2:
            return [(role, ()) for role in roles]
        by_head = leaf in names.INTERLEAVED
        if leaf == "c_attn" and not transposed and kv == n:  # only GPT-2's is q, k, v one after the other
            kv = 1 if rows == (n + 2) * d else kv
            by_head = kv == n
        if not (n and kv and d) or rows != (n + 2 * kv) * d:
            return [("qkv", ())]
        if (stored := names.PARTED.get(type(self.parent).__name__)) is not None:
            parts, order = stored
            width = n * d // parts
            starts = {name: [(3 * part + i) * width for part in range(parts)] for i, name in enumerate(order)}
            return [(name, tuple((start, start + width) for start in starts[name])) for name in roles]
        if by_head:
            per = n // kv
            group = (per + 2) * d
            return [
                ("q", tuple((g * group, g * group + per * d) for g in range(kv))),
                *(
                    (name, tuple((g * group + (per + i) * d, g * group + (per + i + 1) * d) for g in range(kv)))
                    for i, name in enumerate(("k", "v"))
                ),
            ]
        return [("q", ((0, n * d),)), ("k", ((n * d, (n + kv) * d),)), ("v", (((n + kv) * d, (n + 2 * kv) * d),))]

    def heads(self, kind: str, name: str, size: int) -> int:
        """The heads that a matrix is cut into; 0 where the shapes say none."""
        if kind != "attn":
            return self._mixer_heads(name, size)
        sizes = self.attention
        if name in names.UP_PROJECTIONS or (name in ("q", "o") and self._latent()):
            return sizes.n_heads if sizes.n_heads and size % sizes.n_heads == 0 else 0
        heads = sizes.heads_of("q" if name == "q_gate" else name)
        if name == "o" and hasattr(self.parent, names.DIFFERENTIAL):
            heads //= 2
            return heads if heads and size % heads == 0 else 0
        width = getattr(self.parent, "v_head_dim", None) if name in ("v", "o") else None
        return heads if heads and size in (heads * sizes.d_head, heads * (width or 0)) else 0

    def _latent(self) -> bool:
        """Whether a matrix's attention compresses keys and values, so that heads have sizes of their own."""
        parent = self.parent
        return any(name in ("kv_b_proj", "q_b_proj", "kv_a_proj_with_mqa") for name, _ in parent.named_children())

    def _mixer_heads(self, name: str, size: int) -> int:
        """The heads of another mixer's output projection: those that its module counts."""
        if name not in FROM_HEADS:
            return 0
        # a norm for each head counts them too (xLSTM)
        for holder, attribute in product((self.parent, *self.parent.children()), names.MIXER_HEADS):
            heads = getattr(holder, attribute, None)
            if isinstance(heads, int) and heads > 1 and size % heads == 0:
                return heads
        return 0

    @cached_property
    def attention(self) -> Sizes:
        """Heads of one layer: what its attention says, else the configuration."""
        parent, sizes = self.parent, self.sizes
        own = {
            "n_heads": ("num_heads", "num_attention_heads", "n_heads", "n_head"),
            "n_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
            "d_head": ("head_dim", "head_size", "attention_head_size"),
        }
        found = {
            field: next((v for a in attributes if isinstance(v := getattr(parent, a, None), int) and v > 0), 0)
            for field, attributes in own.items()
        }
        out = getattr(
            next((c for n, c in parent.named_children() if names.ATTENTION.get(n) == ("o",)), None), "weight", None
        )
        d_head = found["d_head"] or sizes.d_head
        key = getattr(getattr(parent, "k_proj", None), "weight", None)
        query = getattr(getattr(parent, "q_proj", None), "weight", None)
        n_heads = found["n_heads"] or sizes.n_heads or _heads_by(out, -1, d_head) or _heads_by(query, 0, d_head)
        groups = getattr(parent, "num_key_value_groups", 0)
        grouped = n_heads // groups if isinstance(groups, int) and groups else 0
        n_kv = found["n_kv_heads"] or grouped or sizes.n_kv_heads or _heads_by(key, 0, d_head)
        return replace(sizes, n_heads=n_heads, n_kv_heads=n_kv or n_heads, d_head=d_head)


def own_name(segments: Sequence[str]) -> str:
    kept = [part for part in segments if part != "weight"]
    return ".".join(kept) or segments[-1]


def _heads_by(weight: Tensor | None, dim: int, d_head: int) -> int:
    return weight.shape[dim] // d_head if isinstance(weight, Tensor) and weight.ndim == 2 and d_head else 0
