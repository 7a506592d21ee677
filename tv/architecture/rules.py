"""tv's own rules: which module of a Hugging Face model is what, read off names and shapes.

Names and shapes alone are read, so the tree may live on the meta device. A matrix of an unknown name keeps it; a fused
one whose slices do not add up stays whole; heads are cut only where the shapes allow it. What hooks read is proved on
the live model before it is used (`probes.capture.proof`). A rule refuses only where it finds no blocks to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NoReturn

from torch import Tensor, nn

from tv.architecture import names
from tv.architecture.anatomy import FROM_HEADS, Architecture, Block, Component, Module, Writer
from tv.architecture.experts import (
    EXPERTS,
    OF_TEXT,
    ROUTER,
    SHARED,
    is_mixture,
    layout_of,
    own_stack,
    stacked_modules,
)
from tv.architecture.matrices import Host, own_name
from tv.architecture.others import others_of
from tv.architecture.parts import children_of, has_matrices, is_mlp, is_norm, kind_of, number_of
from tv.architecture.sizes import sizes_of
from tv.architecture.trunk import Trunk, trunk_of
from tv.errors import ArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        self.children = list(children_of(block))
        self.parts = sorted(self._parts(), key=lambda part: (part[0] == "per_layer", is_mlp(part[0])))
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
            by_name = {m.name: m for m in self.modules if is_mlp(m.component) and m.expert < 0}
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
        several = sum(kind_of(name, child, self.tree) == "mlp" for name, child in self.children) > 1
        for name, child in self.children:
            elsewhere = not self.of.names[child].startswith(f"{self.path}.")  # a block's that shares it
            if is_norm(child) or child in loose or elsewhere or self._beside(name) or not has_matrices(child):
                continue
            kind = names.LOOSE.get(name) or kind_of(name, child, self.tree) or name
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
        taken, number = list(self.post.values()), number_of(component)
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
                norm = names.INNER_NORMS.get(path.rpartition(".")[2]) or own_name(segments)
                yield self.of.norm(self.layer, _numbered(norm, number), component, owner)
            elif value.ndim == 2 and segments[-1] == "weight" and not is_norm(owner):  # a gain for each head is none
                for module in self._matrix(kind, component, f"{base}.{parameter}", path, owner, segments, value, taken):
                    yield replace(module, name=_numbered(module.name, number))
            elif value.ndim == 3 and _is_stack(kind, segments, value):
                transposed = bool(getattr(owner, "is_transposed", False))
                roles = names.MLP.get(segments[0]) if kind == "mlp" and segments[1:] == ["weight"] else None
                own = roles or (own_name(segments),)
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
        host = self._host(owner)
        alone = self._is_alone(component, path)
        slices = host.roles(kind, component, segments, rows, transposed, alone)
        if any(name in taken for name, _ in slices):
            slices = [(own_name(segments), ())]
        taken |= {name for name, _ in slices}
        for name, ranges in slices:
            count = sum(stop - start for start, stop in ranges) or rows
            yield Module(
                *(self.layer, name, "linear", component, path, parameter, (count, cols)),
                ranges=ranges,
                transposed=transposed,
                n_heads=host.heads(kind, name, cols if name in FROM_HEADS else count),
            )

    def _is_alone(self, component: Component, path: str) -> bool:
        """Whether no other matrix of a component lies in a module of this name."""
        leaf = path.rpartition(".")[2]
        part = next(part for name, part in self.parts if name == component)
        matrices = [name for name, value in part.named_parameters() if value.ndim == 2 and name.endswith(".weight")]
        return sum(f".{name}".endswith(f".{leaf}.weight") for name in matrices) == 1

    def _host(self, owner: nn.Module) -> Host:
        """The module that runs a matrix's module."""
        path = self.of.names[owner].rpartition(".")[0]
        parent = self.of.model.get_submodule(path)
        if type(parent).__name__ == "MoshiLinear":
            parent = self.of.model.get_submodule(path.rpartition(".")[0])
        return Host(parent, self.of.sizes)

    @staticmethod
    def _child(parent: nn.Module, wanted: Sequence[str]) -> nn.Module | None:
        return next(
            (getattr(parent, name) for name in wanted if isinstance(getattr(parent, name, None), nn.Module)), None
        )


def _gain(norm: nn.Module) -> Tensor | None:
    gain = getattr(norm, "weight", None)
    return gain if isinstance(gain, Tensor) else None


def _is_stack(kind: str, segments: Sequence[str], value: Tensor) -> bool:
    """Whether an array holds one matrix per expert; the kernel of a convolution has one input channel."""
    inside = kind == "mlp" or any("expert" in part for part in segments)
    return inside and value.shape[1] > 1 and "bias" not in segments[-1]


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
