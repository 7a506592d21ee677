"""tv's own rules: which module of a Hugging Face model is what, read off names and shapes.

Names and shapes alone are read, so the tree may live on the meta device. A matrix of an unknown name keeps it; a fused
one whose slices do not add up stays whole; heads are cut only where the shapes allow it. What hooks read is proved on
the live model before it is used (`probes.capture.proof`). A rule refuses only where it finds no blocks to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product, takewhile
from typing import NoReturn

from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture import names
from tv.architecture.anatomy import FROM_HEADS, Architecture, Block, Component, Module, Writer
from tv.architecture.experts import (
    EXPERTS,
    OF_TEXT,
    ROUTER,
    SHARED,
    is_mixture,
    is_shared,
    layout_of,
    own_role,
    own_stack,
    shared_name,
    stacked_modules,
)
from tv.architecture.others import others_of
from tv.architecture.sizes import Sizes, sizes_of
from tv.architecture.trunk import Trunk, trunk_of
from tv.errors import ArchitectureError

_Slices = list[tuple[str, tuple[tuple[int, int], ...]]]


def by_rules(model: PreTrainedModel) -> Architecture:
    """Name every module and site of `model`. Raises ArchitectureError, naming the place, where no rule fits."""
    return _Resolver(model).architecture()


class _Resolver:
    """Reads one module tree; its methods are the rules."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.kind = type(model).__name__
        self.sizes = sizes_of(model.config)
        self.trunk: Trunk = trunk_of(model, self.sizes)
        self.names = {module: name for name, module in model.named_modules()}
        self.parameters = {value: name for name, value in model.named_parameters()}  # a shared one by its first name
        self.counts: dict[tuple[int, str, int], int] = {}

    def architecture(self) -> Architecture:
        trunk = self.trunk
        modules = [self._embedding(trunk.embed, "embed")]
        if trunk.positions is not None:
            modules.append(self._embedding(trunk.positions, "pos_embed"))
        blocks = []
        for layer, block in enumerate(trunk.blocks):
            found = _Block(self, layer, f"{trunk.stack}.{layer}", block)
            blocks.append(found.block())
            modules += found.modules
        n_layers = len(blocks)
        final_norm = trunk.final_norm
        if isinstance(getattr(final_norm, "weight", None), Tensor):
            modules.append(self.norm(n_layers, "final_norm", "unembed", final_norm))
        modules.append(self._unembedding(n_layers))
        modules = _unique(modules)
        embed = trunk.embed.get_parameter("weight")
        gated = any(block.gate is not None and block.up is not None for block in blocks) or any(
            module.name == "gate" and module.expert >= 0 for module in modules
        )
        sizes = asdict(replace(self.sizes, n_layers=n_layers, d_model=self.sizes.d_model or embed.shape[1]))
        return Architecture(
            name=self.kind,
            **sizes,
            vocab_size=embed.shape[0],
            gated=gated,
            modules=tuple(modules),
            blocks=tuple(blocks),
            final_norm=self.names[final_norm],
            embed=self.names[trunk.embed],
            unembed=self.names[trunk.unembed],
            others=others_of(self.model, modules, trunk),
        )

    def _unembedding(self, n_layers: int) -> Module:
        embed, unembed = self.trunk.embed, self.trunk.unembed
        tied = unembed.get_parameter("weight") is embed.get_parameter("weight")
        path = self.names[unembed]
        parameter = f"{self.names[embed] if tied else path}.weight"
        shape = tuple(unembed.get_parameter("weight").shape)
        return Module(n_layers, "unembed", "linear", "unembed", path, parameter, shape, tied=tied)

    def norm(self, layer: int, name: str, component: Component, norm: nn.Module) -> Module:
        """A norm with a gain."""
        path = self.names[norm]
        return Module(layer, name, "norm", component, path, f"{path}.weight", tuple(norm.get_parameter("weight").shape))

    def _embedding(self, module: nn.Module, name: str) -> Module:
        path = self.names[module]
        return Module(-1, name, "embed", "embed", path, f"{path}.weight", tuple(module.get_parameter("weight").shape))

    def refuse(self, what: str, where: str) -> NoReturn:
        raise ArchitectureError(f"{self.kind}: {what} in {where}")


class _Block:
    """One block: its components in order, the modules of each, and where hooks read."""

    def __init__(self, resolver: _Resolver, layer: int, path: str, block: nn.Module) -> None:
        self.of, self.layer, self.path, self.tree = resolver, layer, path, block
        self.children = list(_children(block))
        self.parts = sorted(self._parts(), key=lambda part: _is_mlp(part[0]))
        if not self.parts:
            resolver.refuse("no attention or other mixer and no MLP found", path)
        self.norms = {name: child for name, child in self.children if is_norm(child)}
        self.post = self._post_norms()
        self.modules = self._modules()

    def block(self) -> Block:
        """What hooks read."""
        mlp = next((part for name, part in self.parts if name == "mlp"), None)
        act = gate = up = router = experts = None
        if mlp is not None:
            by_name = {m.name: m for m in self.modules if _is_mlp(m.component) and m.expert < 0}
            mixture = is_mixture(mlp) or any(self._beside(name) for name, _ in self.children)
            prefix = "shared_" if mixture and "shared_down" in by_name else ""
            up, gate = by_name.get(f"{prefix}up"), by_name.get(f"{prefix}gate")
            if gate is None:
                up, gate = None, up
            act = self._activation(mlp, gate)
            if mixture:
                router = next((m.path for m in self.modules if m.name == "router"), None)
                mlp = self._child(mlp, OF_TEXT) or mlp
                scores = self._child(mlp, ROUTER) or self._child(self.tree, ("router",))
                router = self.of.names[scores] if scores is not None else router
                held = self._child(mlp, EXPERTS) or self._child(self.tree, EXPERTS)
                experts = self.of.names[held] if held is not None and layout_of(held) is not None else None
        return Block(self.layer, self.path, tuple(self._writers()), act, gate, up, router, experts)

    def _parts(self) -> Iterator[tuple[Component, nn.Module]]:
        """Its components, by name. A second one of a kind is numbered."""
        seen: dict[Component, int] = {}
        loose = [child for name, child in self.children if name in names.MLP and "weight" in dict(child._parameters)]
        several = sum(_kind(name, child, self.tree) == "mlp" for name, child in self.children) > 1
        for name, child in self.children:
            elsewhere = not self.of.names[child].startswith(f"{self.path}.")  # a block's that shares it
            if is_norm(child) or child in loose or elsewhere or self._beside(name) or not _has_matrices(child):
                continue
            kind = names.LOOSE.get(name) or _kind(name, child, self.tree) or name
            kind = name if several and name in SHARED else kind
            if name in names.LOOSE and kind in seen:
                continue
            seen[kind] = seen.get(kind, 0) + 1
            part = self.tree if name in names.LOOSE else child
            yield (kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"), part
        if loose and "mlp" not in seen:
            yield "mlp", self.tree  # its matrices lie in the block itself

    def _beside(self, name: str) -> bool:
        """Whether a child is the router, or the experts, of an MLP that has a module of its own."""
        return name in ("router", *EXPERTS) and any(child_name == "mlp" for child_name, _ in self.children)

    def _writers(self) -> Iterator[Writer]:
        first = True
        for component, part in self.parts:
            post = self.post.get(component)
            own = self.modules_of(component)
            head = next((m for m in own if m.n_heads and m.from_heads), None)
            loose = part is self.tree
            path = own[-1].path if loose else self.of.names[part]
            norm = self._pre_norm(component)
            reads = self.of.names[norm] if norm is not None else path
            if loose and norm is None:
                reads = own[0].path
            yield Writer(
                component,
                path,
                self.of.names[post] if post is not None else path,
                None if first or self._parallel() else reads,
                head.path if head is not None else None,
                head,
                self.of.names[post] if post is not None else None,
            )
            first = False

    def _parallel(self) -> bool:
        return bool(getattr(self.of.model.config.get_text_config(), "use_parallel_residual", False))

    def _activation(self, mlp: nn.Module, gate: Module | None) -> str | None:
        """The activation module of the MLP, or of the expert that all tokens share."""
        if gate is None:
            return None
        owner = self.of.model.get_submodule(gate.path.rpartition(".")[0])
        children = dict(owner.named_children())
        found = next((child for name, child in children.items() if names.ACTIVATION.fullmatch(name)), None)
        return None if found is None else f"{self.of.names[owner]}.{_name_in(owner, found)}"

    def _post_norms(self) -> dict[Component, nn.Module]:
        first = self.parts[0][0]
        for after_mixer, after_mlp in names.POST_NORMS:
            if after_mlp in self.norms:
                found = {first: self.norms.get(after_mixer), "mlp": self.norms[after_mlp]}
                return {component: norm for component, norm in found.items() if norm is not None}
        return {}

    def _pre_norm(self, component: Component) -> nn.Module | None:
        taken, number = list(self.post.values()), _number(component)
        known: tuple[str, ...] = names.MLP_NORMS if component.startswith("mlp") else names.PRE_NORMS
        if component == "mlp" and len(self.parts) == 1:
            known = (*known, *names.PRE_NORMS)
        known = tuple(f"{name}.{number - 1}" for name in known) + known
        return next((self.norms[name] for name in known if name in self.norms and self.norms[name] not in taken), None)

    def modules_of(self, component: Component) -> list[Module]:
        """The modules of one component."""
        return [module for module in self.modules if module.component == component]

    def _modules(self) -> list[Module]:
        found: list[Module] = []
        placed: set[nn.Module] = set()
        for component, part in self.parts:
            pre, post = self._pre_norm(component), self.post.get(component)
            for norm, name in ((pre, f"{component}_norm"), (post, f"{component}_post_norm")):
                if norm is not None and norm not in placed and _gain(norm) is not None:
                    found.append(self.of.norm(self.layer, name, component, norm))
                    placed.add(norm)
            found += self._inside(component, part)
            if component == "mlp":
                for name, child in self.children:
                    if self._beside(name):
                        found += self._inside(component, child, name)
        for name, norm in self.norms.items():
            if norm not in placed and _gain(norm) is not None:
                found.append(self.of.norm(self.layer, name, "other", norm))
        order = [component for component, _ in self.parts] + ["other"]
        return sorted(found, key=lambda module: (order.index(module.component), *_place(module)))

    def _inside(self, component: Component, part: nn.Module, name: str = "") -> Iterator[Module]:
        """The modules of one part; `name` is that of a part beside the component's own."""
        kind, _, number = component.rpartition("_") if component.rpartition("_")[2].isdigit() else (component, "", "")
        base = self.of.names[part]
        kind = "mlp" if kind in SHARED else kind
        of_text = self._child(part, OF_TEXT) or part
        held = self._child(of_text, EXPERTS) or self._child(self.tree, EXPERTS) if kind == "mlp" else None
        stacked = held if held is not None and layout_of(held) is not None else None
        if stacked is not None and not f"{self.of.names[stacked]}.".startswith(f"{base}."):
            stacked = None
        if stacked is not None:
            yield from stacked_modules(self.layer, self.of.names[stacked], stacked)
        taken: set[str] = set()
        for parameter, value in part.named_parameters():
            path = f"{base}.{parameter}".rpartition(".")[0]
            owner = self.of.model.get_submodule(path)
            segments = [*([name] if name else []), *parameter.split(".")]
            if self.of.parameters[value] != f"{base}.{parameter}":  # a block before this one has it
                continue
            if part is self.tree and not (names.LOOSE.get(segments[0]) == kind or self._is_loose(kind, segments)):
                continue
            if owner is stacked or (stacked is not None and self.of.names[stacked] + "." in f"{path}."):
                continue
            if is_norm(owner) and segments[-1] == "weight" and value.ndim == 1:
                norm = names.INNER_NORMS.get(path.rpartition(".")[2]) or _own_name(segments)
                yield self.of.norm(self.layer, _numbered(norm, number), component, owner)
            elif value.ndim == 2 and segments[-1] == "weight" and not is_norm(owner):  # a gain for each head is none
                for module in self._matrix(kind, component, f"{base}.{parameter}", path, owner, segments, value, taken):
                    yield replace(module, name=_numbered(module.name, number))
            elif value.ndim == 3 and _is_stack(kind, segments, value):
                transposed = bool(getattr(owner, "is_transposed", False))
                roles = names.MLP.get(segments[0]) if kind == "mlp" and segments[1:] == ["weight"] else None
                own = roles or (_own_name(segments),)
                yield from own_stack(self.layer, own, component, path, f"{base}.{parameter}", value, transposed)

    def _is_loose(self, kind: str, segments: Sequence[str]) -> bool:
        """Whether a parameter of the block itself is of an MLP without a module."""
        return kind == "mlp" and segments[0] in names.MLP

    def _matrix(
        self,
        kind: str,
        component: Component,
        parameter: str,
        path: str,
        owner: nn.Module,
        segments: Sequence[str],
        weight: Tensor,
        taken: set[str],
    ) -> Iterator[Module]:
        """One matrix, or the slices of a fused one."""
        transposed = type(owner).__name__ == "Conv1D"
        rows, cols = reversed(weight.shape) if transposed else weight.shape
        slices = self._roles(kind, component, owner, segments, rows, transposed)
        if any(name in taken for name, _ in slices):
            slices = [(_own_name(segments), ())]
        taken |= {name for name, _ in slices}
        for name, ranges in slices:
            count = sum(stop - start for start, stop in ranges) or rows
            yield Module(
                *(self.layer, name, "linear", component, path, parameter, (count, cols)),
                ranges=ranges,
                transposed=transposed,
                n_heads=self._heads(kind, name, cols if name in FROM_HEADS else count, owner),
            )

    def _roles(
        self, kind: str, component: Component, owner: nn.Module, segments: Sequence[str], rows: int, transposed: bool
    ) -> _Slices:
        """What a matrix is, by its name: its role, or roles and the rows of each; else its own name."""
        *inside, leaf = [part for part in segments if part not in ("weight", "linear")] or [segments[0]]
        own: _Slices = [(_own_name(segments), ())]
        if kind == "attn":
            table = names.ATTENTION if len(inside) <= 1 and "indexer" not in inside else {}
            cut = self._attention_slices(table.get(leaf, ()), leaf, rows, owner, transposed)
            return cut or own
        if kind != "mlp":
            alone = sum(f".{path}".endswith(f".{leaf}.weight") for path in self._matrices_of(component)) == 1
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
        if len(roles) == 1 and roles[0].endswith("up") and rows == 2 * self._down_inputs(owner):
            roles = (roles[0].replace("up", "gate"), roles[0])
        if len(roles) == 1:
            return [(roles[0], ())]
        return [(roles[0], ((0, rows // 2),)), (roles[1], ((rows // 2, rows),))]

    def _down_inputs(self, owner: nn.Module) -> int:
        """How many inputs the down projection beside a matrix has; 0 where there is none."""
        beside = self._parent(owner).named_children()
        down = next((child for name, child in beside if names.MLP.get(name) == ("down",)), None)
        weight = getattr(down, "weight", None)
        return weight.shape[-1] if isinstance(weight, Tensor) and weight.ndim == 2 else 0

    def _matrices_of(self, component: Component) -> list[str]:
        """The parameters of one component that are matrices, by their paths in it."""
        part = next(part for name, part in self.parts if name == component)
        return [path for path, value in part.named_parameters() if value.ndim == 2 and path.endswith(".weight")]

    def _attention_slices(
        self, roles: Sequence[str], leaf: str, rows: int, owner: nn.Module, transposed: bool
    ) -> _Slices:
        sizes, d = self._attention_sizes(owner), self._attention_sizes(owner).d_head
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
        if (stored := names.PARTED.get(type(self._parent(owner)).__name__)) is not None:
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

    def _heads(self, kind: str, name: str, size: int, owner: nn.Module) -> int:
        """The heads that a matrix is cut into; 0 where the shapes say none."""
        if kind != "attn":
            return self._mixer_heads(name, size, owner)
        sizes = self._attention_sizes(owner)
        if name in names.UP_PROJECTIONS or (name in ("q", "o") and self._latent(owner)):
            return sizes.n_heads if sizes.n_heads and size % sizes.n_heads == 0 else 0
        heads = sizes.heads_of("q" if name == "q_gate" else name)
        if name == "o" and hasattr(self._parent(owner), names.DIFFERENTIAL):
            heads //= 2
            return heads if heads and size % heads == 0 else 0
        width = getattr(self._parent(owner), "v_head_dim", None) if name in ("v", "o") else None
        return heads if heads and size in (heads * sizes.d_head, heads * (width or 0)) else 0

    def _latent(self, owner: nn.Module) -> bool:
        """Whether a matrix's attention compresses keys and values, so that heads have sizes of their own."""
        parent = self._parent(owner)
        return any(name in ("kv_b_proj", "q_b_proj", "kv_a_proj_with_mqa") for name, _ in parent.named_children())

    def _mixer_heads(self, name: str, size: int, owner: nn.Module) -> int:
        """The heads of another mixer's output projection: those that its module counts."""
        if name not in FROM_HEADS:
            return 0
        parent = self._parent(owner)
        for holder, attribute in product((parent, *parent.children()), names.MIXER_HEADS):  # xLSTM's norm counts them
            heads = getattr(holder, attribute, None)
            if isinstance(heads, int) and heads > 1 and size % heads == 0:
                return heads
        return 0

    def _attention_sizes(self, owner: nn.Module) -> Sizes:
        """Heads of one layer: what its attention says, else the configuration."""
        parent, sizes = self._parent(owner), self.of.sizes
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

    def _parent(self, owner: nn.Module) -> nn.Module:
        """The module that runs a matrix's module."""
        path = self.of.names[owner].rpartition(".")[0]
        parent = self.of.model.get_submodule(path)
        return (
            self.of.model.get_submodule(path.rpartition(".")[0]) if type(parent).__name__ == "MoshiLinear" else parent
        )

    @staticmethod
    def _child(parent: nn.Module, wanted: Sequence[str]) -> nn.Module | None:
        return next(
            (getattr(parent, name) for name in wanted if isinstance(getattr(parent, name, None), nn.Module)), None
        )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its class; what holds norms is none, but for a gated norm around one."""
    name, inside = type(module).__name__.lower(), sum(map(is_norm, module.children()))
    return "norm" in name and (inside == 0 or (inside == 1 and name.endswith("norm")))


def _kind(name: str, module: nn.Module, block: nn.Module) -> Component | None:
    """What a child of a block computes: by its class, else by its name; None where neither says."""
    own, around = type(module).__name__, type(block).__name__
    if own in names.CLASSES:
        return names.CLASSES[own]
    words = [re.findall(r"[A-Z][^A-Z]*|^[^A-Z]+", text) for text in (own, around)]
    family = [one for one, two in takewhile(lambda pair: pair[0] == pair[1], zip(*words, strict=False))]
    for text in ("".join(words[0][len(family) :]), name):
        for pattern, component in names.KINDS:
            if pattern.search(text):
                return component
    return None


def _children(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a block that have weights, those in a list one by one."""
    for name, child in block.named_children():
        inner = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        yield from ((f"{name}.{i}".rstrip("."), part) for i, part in inner if _has_weights(part))


def _number(component: Component) -> int:
    """Which of its kind in a block, from 1."""
    last = component.rpartition("_")[2]
    return int(last) if last.isdigit() else 1


def _is_mlp(component: Component) -> bool:
    return component.rstrip("_0123456789") == "mlp" or component in SHARED


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _has_matrices(module: nn.Module) -> bool:
    """Whether it can compute more than a scale."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _gain(norm: nn.Module) -> Tensor | None:
    gain = getattr(norm, "weight", None)
    return gain if isinstance(gain, Tensor) else None


def _heads_by(weight: Tensor | None, dim: int, d_head: int) -> int:
    return weight.shape[dim] // d_head if isinstance(weight, Tensor) and weight.ndim == 2 and d_head else 0


def _is_stack(kind: str, segments: Sequence[str], value: Tensor) -> bool:
    """Whether an array holds one matrix per expert; the kernel of a convolution has one input channel."""
    inside = kind == "mlp" or any("expert" in part for part in segments)
    return inside and value.shape[1] > 1 and "bias" not in segments[-1]


def _own_name(segments: Sequence[str]) -> str:
    kept = [part for part in segments if part != "weight"]
    return ".".join(kept) or segments[-1]


def _numbered(name: str, number: str) -> str:
    return f"{name}_{number}" if number else name


def _name_in(owner: nn.Module, child: nn.Module) -> str:
    return next(name for name, value in owner.named_children() if value is child)


def _unique(modules: list[Module]) -> list[Module]:
    """The modules, none of which has the layer, name and expert of another: a second one is called by its path."""
    taken: set[tuple[int, str, int]] = set()
    found = []
    for module in modules:
        place = (module.layer, module.name, module.expert)
        if place in taken:
            module = replace(module, name=module.path.split(".", 2)[-1])
        taken.add((module.layer, module.name, module.expert))
        found.append(module)
    return found


def _place(module: Module) -> tuple[int, int, int]:
    """Experts come one after the other, each with its gate, up and down."""
    before, out, mlp, last = names.ORDER
    known = [*before, "", *out, *mlp, *last]
    name = module.name.rstrip("_0123456789")
    if name.endswith("_norm") and name.removesuffix("_norm") == module.component:
        name = "mlp_norm" if module.component == "mlp" else "norm"
    if name.endswith("_post_norm"):
        name = "mlp_post_norm" if module.component == "mlp" else "attn_post_norm"
    if name in known:
        place = known.index(name)
    else:
        place = known.index("gate") if module.component == "mlp" else known.index("")
    if module.expert >= 0:
        return known.index("gate"), module.expert, place
    return place, -1, place
