"""The proof that an architecture reads from a live model what it says, and what only the live model tells.

One forward of a few random tokens shows what every module of the blocks computed. On every layer, what the components
write must sum to the residual stream. The factor that a component's output is multiplied by on its way (a residual
multiplier, a layer's scale) is solved for and must then explain the stream; where names leave open which norm stands
behind a component, or whether two run in parallel, the sums decide. What fails is refused in words, or, where it is
only a finer cut (heads, experts, one matrix's product), left out and noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from probes.capture.hooks.plan import Seen
from probes.capture.hooks.torch_backend import seen_of
from probes.capture.hooks.turns import together
from probes.capture.refusals import no_sum, reads_otherwise, told
from probes.capture.skipping import recording, skipping
from probes.capture.sums import Factor, Sums, is_nothing, multiple, snapped
from probes.errors import ActivationError
from probes.measures import mixture
from probes.measures.live_weights import bias_of, matrix_of
from probes.measures.norms import NormForm, find_form
from tv.architecture.anatomy import Architecture, Block, Component, Module, Writer
from tv.architecture.parts import is_norm
from tv.architecture.values import values_of
from tv.errors import ArchitectureError
from tv.runtime.memory import RELIEF, is_out_of_memory, require_memory

#: Relative error below which two sums of a forward pass count as the same, by the dtype the model computes in.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 4e-3}
#: Prompts and positions of the test. The second prompt checks factors that the first one gave.
_PROMPTS = 2


@dataclass(frozen=True)
class Flow:
    """How what the components of one live model compute reaches its last residual stream and its logits.

    A factor is a number, or a value per dimension of the stream; it is 1 where none is named.
    """

    norms: Mapping[str, NormForm] = field(default_factory=dict)  # by module path
    writes: Mapping[tuple[int, Component], Factor] = field(default_factory=dict)
    experts: Mapping[int, Factor] = field(default_factory=dict)  # of layers whose experts can be told apart
    logit_scale: tuple[float, float] = (1.0, 1.0)  # between final norm and unembedding, and behind it
    cap: float | None = None  # of a soft cap behind the unembedding: logits are cap · tanh(x / cap)
    notes: tuple[str, ...] = ()

    def factor(self, layer: int, component: Component) -> Factor:
        """What this component's output is multiplied by on its way to the last residual stream."""
        return self.writes.get((layer, component), 1.0)


def prove(model: PreTrainedModel, architecture: Architecture) -> tuple[Architecture, Flow]:
    """Prove it on `model`.

    Args:
        model: Live, with the weights to be measured.
        architecture: What the rules say of it.

    Returns:
        The architecture as the model bears it out, and how its components reach the stream.

    Raises:
        ArchitectureError: The first layer and sum that fails.
        ActivationError: The first component whose output is not finite, or the logits.
        LackOfMemory: The test forward, or what follows from it, does not fit.
    """
    try:
        return _Proof(model, architecture).run()
    except (RuntimeError, MemoryError) as error:
        require_memory(error, f"{architecture.name}: the proof on a few tokens", RELIEF)
        raise


class _Proof:
    """One model's test forward and what follows from it."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self.model, self.of = model, architecture
        self.tolerance = TOLERANCE[model.dtype]
        self.n = _test_length(architecture)
        self.notes: list[str] = []
        self.shared = _shared(model) - {f"{architecture.embed}.weight", f"{architecture.unembed}.weight"}
        self.calls: dict[str, list[tuple[Seen, Any, Any]]] = {}
        # What needs the weights is found as a module is called: a streamed model has them in memory just then.
        self.linear: dict[Module, bool] = {}
        self.form_of: dict[str, NormForm | None] = {}
        self.outputs: dict[int, Any] = {}  # of the blocks
        self.inputs = self._inputs()
        self.logits = self._forward()

    def run(self) -> tuple[Architecture, Flow]:
        """Every test, layer by layer."""
        self._require_finite()
        forms = self.forms = self._norm_forms()
        for block in self.of.blocks:
            self._one_stream(block)
        scale, cap = self._logit_scale()
        writes: dict[tuple[int, Component], Factor] = {}
        carries: list[Factor] = []
        experts: dict[int, Factor] = {}
        blocks = []
        for block in self.of.blocks:
            proved, factors, carry = self._block(block, forms)
            proved = self._mlp(self._heads(proved, forms), experts)
            blocks.append(proved)
            writes |= {(block.layer, component): factor for component, factor in factors.items()}
            carries.append(carry)
        self._chain(blocks)
        if self.of.final_norm not in forms:
            self._refuse(f"{self.of.final_norm} is neither an RMS norm nor a layer norm")
        later: Factor = 1.0
        for block, carry in zip(reversed(blocks), reversed(carries), strict=True):
            for writer in block.writers:
                place = block.layer, writer.component
                writes[place] = writes.get(place, 1.0) * later
            if block.layer in experts:
                mlp = block.writer("mlp")
                experts[block.layer] = experts[block.layer] * writes[block.layer, "mlp"] if mlp else 1.0
            later = later * carry
        writes[-1, "embed"] = later
        self.of = replace(self.of, blocks=tuple(blocks))  # of what is not told apart nothing is read
        unread = frozenset(module for module in self.of.modules if not self._is_read(module, forms))
        architecture = replace(self.of, unread=unread)
        architecture = replace(architecture, chained=self._is_chained(architecture), padded=self._is_padded())
        own = {place: factor for place, factor in writes.items() if isinstance(factor, Tensor) or factor != 1.0}
        return architecture, Flow(forms, own, experts, scale, cap, tuple(dict.fromkeys(self.notes)))

    def _require_finite(self) -> None:
        for block in self.of.blocks:
            for writer in block.writers:
                calls = self.calls.get(writer.path, [])
                if not all(bool(seen.output.isfinite().all()) for seen, *_ in calls):
                    raise ActivationError(f"{writer.component}_out of layer {block.layer} is NaN or Inf")
        if not bool(self.logits.isfinite().all()):
            raise ActivationError("logits is NaN or Inf")

    def _inputs(self) -> dict[str, Tensor]:
        config = self.model.config
        special = {
            value
            for part in (config, config.get_text_config())
            for name, value in vars(part).items()
            if "token" in name and isinstance(value, int)
        }
        plain = torch.tensor([i for i in range(min(self.of.vocab_size, 4096)) if i not in special])
        chosen = torch.randint(len(plain), (_PROMPTS, self.n), generator=torch.Generator().manual_seed(0))
        ids = plain[chosen]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _forward(self) -> Tensor:
        """One forward; what every module called in it took and gave, copied."""
        shape = tuple(self.inputs["input_ids"].shape)
        handles = []
        matrices: dict[str, list[Module]] = {}
        for module in self.of.modules:
            if module.kind == "linear" and module.expert < 0:
                matrices.setdefault(module.path, []).append(module)
        norms = self._norm_paths()

        def hook_of(path: str) -> Any:
            def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
                try:
                    seen = seen_of(args, kwargs, output, shape)
                except (TypeError, LookupError, AttributeError):  # it takes or gives no tensor
                    return
                self.calls.setdefault(path, []).append(
                    (Seen(seen.input.clone(), seen.output.clone(), seen.rest), args, kwargs)
                )
                if path in norms:
                    self.form_of[path] = self._form(path, self.calls[path][-1][0])
                for module in matrices.get(path, ()):
                    self.linear[module] = self._multiplies(module)

            return hook

        for path in self._watched():
            handles.append(self.model.get_submodule(path).register_forward_hook(hook_of(path), with_kwargs=True))
        try:
            with torch.inference_mode(), recording(self.model, self.of, self.outputs):
                logits: Tensor = self.model(**self.inputs, use_cache=False).logits
        except Exception as error:  # a model that needs more than a text may raise anything
            require_memory(error, f"{self.of.name}: the proof on a few tokens", RELIEF)
            self._refuse(told(error))
        finally:
            for handle in handles:
                handle.remove()
        return logits

    def _watched(self) -> Iterable[str]:
        """The blocks' modules, and those that the architecture names outside them."""
        stacks = tuple(f"{block.path}." for block in self.of.blocks)
        named = {module.path for module in self.of.modules} | {self.of.final_norm, self.of.unembed}
        named |= {block.path for block in self.of.blocks}
        return [path for path, _ in self.model.named_modules() if path in named or path.startswith(stacks)]

    def seen(self, path: str) -> Seen:
        """What the module at `path` took and gave. Raises ArchitectureError where it was not called once.

        A final norm that is called before the blocks too counts as it is called last.
        """
        calls = self.calls.get(path, [])
        if path == self.of.final_norm:
            calls = calls[-1:]
        if len(calls) != 1:
            if calls and path in {block.path for block in self.of.blocks}:
                self._refuse(f"{path} runs {len(calls)} times in a forward pass (recurrent depth), and one run is read")
            times = "never called" if not calls else f"called {len(calls)} times"
            self._refuse(f"{path} is {times} in a forward pass on text, where the instrument reads a single call")
        return calls[0][0]

    def _one_stream(self, block: Block) -> None:
        """Refuse a block whose input and output are not one residual stream."""
        seen, plain = self.seen(block.path), (_PROMPTS, self.n, self.of.d_model)
        before, after = tuple(seen.input.shape), tuple(seen.output.shape)
        if (before, after) != (plain, plain):
            self._refuse(f"layer {block.layer} {reads_otherwise(before, after, plain)}")

    def _block(self, block: Block, forms: Mapping[str, NormForm]) -> tuple[Block, dict[Component, Factor], Factor]:
        """The block with what its sums decide, each writer's factor, and what resid_pre is multiplied by."""
        whole = self.seen(block.path)
        pre, post = whole.input.float(), whole.output.float()
        best = float("inf")
        block = self._without_followers(block)
        options = [self._outs(block, writer) for writer in block.writers]
        sums = Sums(pre, post, self.tolerance, self._known(block))
        for fit in (sums.ones, sums.scalars, sums.vectors):
            for chosen in product(*options):
                terms = [self.seen(path).output.float() for path in chosen]
                if any(term.shape != post.shape for term in terms):
                    continue
                found = fit(terms)
                if not found.explains:
                    best = min(best, found.error)
                    continue
                nothing = [is_nothing(factor) for factor in found.factors]
                if any(nothing):
                    kept = tuple(w for w, none in zip(block.writers, nothing, strict=True) if not none)
                    if not kept:
                        continue
                    self._feeds(w.component for w, none in zip(block.writers, nothing, strict=True) if none)
                    return self._block(replace(block, writers=kept), forms)
                writers = tuple(self._as_read(block, w, path) for w, path in zip(block.writers, chosen, strict=True))
                writers = self._mids(writers, pre * found.carry, terms, found.factors)
                named = {w.component: f for w, f in zip(writers, found.factors, strict=True)}
                return replace(block, writers=writers), named, found.carry
        outputs = [[self.seen(path).output.float() for path in paths] for paths in options]
        reason = no_sum(pre, post, outputs, self._norms_in(block), self._explained, self._same)
        if reason is not None:
            self._refuse(f"layer {block.layer} {reason}")
        names = " + ".join(f"{writer.component}_out" for writer in block.writers)
        self._refuse(
            f"resid_pre + {names} = resid_post does not hold in layer {block.layer} (relative error {best:.2g}), nor "
            "with a factor for each; this architecture scales or reroutes what it writes to the residual stream"
        )

    def _known(self, block: Block) -> tuple[float, ...]:
        """Numbers that a factor may be: 1, the configuration's and their inverses, and what the block holds as one."""
        said = self._said()
        held = values_of(self.model.get_submodule(block.path)).values()
        said += [float(value) for value in held if value.numel() == 1 and not value.is_meta]
        return (1.0, *(v for number in said if number for v in (number, 1 / number)))

    def _norms_in(self, block: Block) -> dict[str, Tensor]:
        """What every norm of a block gives."""
        return {
            path: calls[0][0].output.float()
            for path, calls in self.calls.items()
            if path.startswith(f"{block.path}.") and is_norm(self.model.get_submodule(path)) and len(calls) == 1
        }

    def _explained(self, pre: Tensor, post: Tensor, terms: Sequence[Tensor]) -> bool:
        return bool(terms) and Sums(pre, post, self.tolerance).scalars(terms).explains

    def _said(self) -> list[float]:
        """The numbers of the configuration."""
        config = self.model.config
        values = [v for part in (config, config.get_text_config()) for v in vars(part).values()]
        return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]

    def _without_followers(self, block: Block) -> Block:
        """The block without parts that read what another part computed: they stand behind it, and write in its place.

        The writers come in the order in which they are called.
        """
        called = list(self.calls)  # a module is listed as it returns
        once = [writer for writer in block.writers if len(self.calls.get(writer.path, [])) == 1]
        idle = [writer for writer in block.writers if writer.path not in self.calls]
        idle += [writer for writer in once if self._same(self.seen(writer.path).output, self.seen(writer.path).input)]
        self.notes += [f"{writer.component} computes nothing of a text" for writer in idle]
        # a part that several blocks share
        self._feeds(writer.component for writer in block.writers if writer not in (*once, *idle))
        once = [writer for writer in once if writer not in idle]
        if not once:
            self.seen(block.writers[0].path)  # which refuses
        writers = sorted(once, key=lambda writer: called.index(writer.path))
        behind = {path for writer in writers for path in self._behind(block, writer.path)}
        return replace(block, writers=tuple(writer for writer in writers if writer.path not in behind))

    def _feeds(self, components: Iterable[Component]) -> None:
        self.notes += [f"{component} writes nothing to the stream itself" for component in components]

    def _outs(self, block: Block, writer: Writer) -> list[str]:
        """What a writer may hand to the stream: as the rules say, a part of the block that reads it, or itself.

        Where a component adds the stream to its own output, it is its last matrix.
        """
        behind = self._behind(block, writer.path)
        further = [path for first in behind for path in self._behind(block, first)]
        last = [writer.head_in] if writer.head_in is not None else []
        last += [m.path for m in self.of.modules if self._ends(m, block, writer)]
        found = dict.fromkeys([writer.out, *further, *behind, writer.path, *last])
        return [path for path in found if len(self.calls.get(path, [])) == 1]

    def _behind(self, block: Block, path: str) -> list[str]:
        """The parts of the block that read what the module at `path` gives."""
        own = self.seen(path).output
        found = []
        for other, calls in self.calls.items():
            inside = other.removeprefix(f"{block.path}.")
            if inside != other and "." not in inside and other != path and len(calls) == 1:
                taken = calls[0][0].input
                if taken.shape == own.shape and self._same(taken, own):
                    found.append(other)
        return found

    @staticmethod
    def _ends(module: Module, block: Block, writer: Writer) -> bool:
        """Whether a matrix is the last of a writer's."""
        here = module.layer == block.layer and module.component == writer.component and module.expert < 0
        return here and module.name.rstrip("_0123456789") in ("o", "out_proj", "down")

    def _as_read(self, block: Block, writer: Writer, out: str) -> Writer:
        """The writer with what was found to write for it: a part behind it, or its last matrix alone."""
        if out == writer.path or out.startswith(f"{writer.path}."):
            return replace(writer, path=out, out=out, post_norm=None)
        form = self._form(out, self.seen(out)) if out not in self.forms else None
        if form is not None:  # a norm without a gain is no module
            self.forms[out] = form
        return replace(writer, out=out, post_norm=out)

    def _mids(
        self, writers: Sequence[Writer], stream: Tensor, terms: Sequence[Tensor], factors: Sequence[Factor]
    ) -> tuple[Writer, ...]:
        """The writers, each with the module that reads the stream before it, where one does."""
        found = []
        for i, writer in enumerate(writers):
            reads = writer.reads
            if i and reads is not None and not (reads in self.calls and self._same(self.seen(reads).input, stream)):
                reads = None
            found.append(replace(writer, reads=reads if i else None))
            stream = stream + factors[i] * terms[i]
        return tuple(found)

    def _heads(self, block: Block, forms: Mapping[str, NormForm]) -> Block:
        """The block without heads of writers whose output is not that of their output projection alone."""
        writers = []
        for writer in block.writers:
            head = writer.head_module
            if head is not None and writer.head_in is not None:
                whole = writer.path if writer.post_norm is not None else writer.out
                told = self._linear(head) and self._same(self.seen(head.path).output, self.seen(whole).output)
                if not told or (writer.post_norm is not None and writer.post_norm not in forms):
                    self.notes.append(f"heads of {writer.component} cannot be separated")
                    writer = replace(writer, head_in=None, head_module=None)
            writers.append(writer)
        return replace(block, writers=tuple(writers))

    def _mlp(self, block: Block, experts: dict[int, Factor]) -> Block:
        """The block without an activation module, gates or experts that do not compute what they should."""
        if block.gate is not None and not self._linear(block.gate):
            self.notes.append("gates are not shown: the gate's matrix alone does not make its output")
            block = replace(block, gate=None, up=None, act=None)
        if block.up is not None and not self._linear(block.up):
            block = replace(block, up=None)
        if block.act is not None:
            calls = self.calls.get(block.act, [])
            gate = block.gate.outputs(self.seen(block.gate.path).output) if block.gate is not None else None
            if gate is None or len(calls) != 1 or not self._same(calls[0][0].input, gate):
                block = replace(block, act=None)
        unshown = [writer.component for writer in block.writers if writer.component.startswith("mlp_")]
        if unshown:
            self.notes.append(f"gates are shown of one MLP of a block, not of {', '.join(unshown)}")
        if block.router is not None and len(self.calls.get(block.router, [])) != 1:
            block = replace(block, router=None)
        if block.experts is None:
            if any(module.layer == block.layer and module.name == "router" for module in self.of.modules):
                self.notes.append("experts cannot be separated")
            return block
        factor = self._experts(block)
        if factor is None:
            self.notes.append("experts cannot be separated")
            return replace(block, experts=None)
        if factor:
            experts[block.layer] = factor
        else:
            self.notes.append("what single experts add is not shown: their sum is not added as it is")
        return block

    def _experts(self, block: Block) -> float | None:
        """What the experts' sum is multiplied by in the MLP's output; 0 where by no number; None where they differ."""
        assert block.experts is not None
        owner, calls = self.model.get_submodule(block.experts), self.calls.get(block.experts, [])
        mlp = block.writer("mlp")
        if len(calls) != 1 or mlp is None:
            return None
        call, shape = calls[0][0], (_PROMPTS, self.n)
        try:
            with torch.inference_mode():
                routed = mixture.Routed.of(call.input, call.rest, shape, lambda x: x.flatten(0, 1))
                others = mixture.passing(self.of, block.layer)
                apart = mixture.total(owner, mixture.experts_of(self.of, block.layer), routed, others)
        except (RuntimeError, ValueError, IndexError, AttributeError, TypeError) as failure:
            if is_out_of_memory(failure):
                raise
            return None
        given = call.output.reshape(-1, call.output.shape[-1])
        if not self._same(apart, given):
            return None
        if mlp.post_norm is not None and mlp.post_norm not in self.forms:
            return 0.0
        seen, args, kwargs = self.calls[mlp.path][0]
        handle = owner.register_forward_hook(lambda _m, _a, out: 2 * out)
        try:
            with torch.inference_mode():
                again = self.model.get_submodule(mlp.path)(*args, **kwargs)
        finally:
            handle.remove()
        again = again[0] if isinstance(again, tuple) else again
        moved = (again.reshape(seen.output.shape) - seen.output).float()
        summed = given.float().unflatten(0, (-1, moved.shape[0] * moved.shape[1])).sum(0)
        factor, error = multiple(moved, summed.reshape(moved.shape))
        return snapped(factor) if error <= 100 * self.tolerance else 0.0

    def _chain(self, blocks: Sequence[Block]) -> None:
        """Each block starts where the one before it ended, and the final norm reads the last."""
        for block, after in zip(blocks, [*(b.path for b in blocks[1:]), self.of.final_norm], strict=True):
            post, then = self.seen(block.path).output, self.seen(after).input
            if post.shape != then.shape or not self._same(then, post):
                self._refuse(f"what follows layer {block.layer} ({after}) reads something else than its resid_post")

    def _is_read(self, module: Module, forms: Mapping[str, NormForm]) -> bool:
        if module.expert >= 0:
            return any(block.layer == module.layer and block.experts == module.path for block in self.of.blocks)
        calls = self.calls.get(module.path, [])
        if len(calls) != 1 or module.parameter in self.shared:
            return False
        ends = (calls[0][0].input,) if module.kind == "embed" else (calls[0][0].input, calls[0][0].output)
        axis = forms[module.path].position_dim if module.path in forms else 1
        if not all(self._by_place(x, axis) for x in ends):
            return False
        if module.kind == "norm":
            return module.path in forms
        return module.kind == "embed" or self._linear(module)

    def _by_place(self, x: Tensor, axis: int) -> bool:
        """Whether a tensor has prompts and positions as axes: a batch of 1 stands for all prompts."""
        return x.ndim > axis and x.shape[0] in (1, _PROMPTS) and x.shape[axis] == self.n

    def _linear(self, module: Module) -> bool:
        """Whether a matrix, with its bias, makes its module's output of its input, in the one call there is."""
        return len(self.calls.get(module.path, [])) == 1 and self.linear[module]

    def _multiplies(self, module: Module) -> bool:
        owner, seen = self.model.get_submodule(module.path), self.calls[module.path][-1][0]
        if not hasattr(owner, "weight") or (module.parameter != f"{module.path}.weight" and not module.tied):
            return False
        try:
            with torch.inference_mode():
                matrix, bias = matrix_of(module, owner), bias_of(module, owner)
                made = linear(seen.input.to(matrix), matrix, None if bias is None else bias.to(matrix))
        except (RuntimeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            return False
        given = module.outputs(seen.output)
        return made.shape == given.shape and self._same(made, given)

    def _norm_forms(self) -> dict[str, NormForm]:
        forms = {}
        for path in self._norm_paths():
            calls, form = self.calls.get(path, []), self.form_of.get(path)
            if form is not None and (len(calls) == 1 or path == self.of.final_norm):
                forms[path] = form
        return forms

    def _norm_paths(self) -> set[str]:
        return {module.path for module in self.of.modules if module.kind == "norm"} | {self.of.final_norm}

    def _form(self, path: str, seen: Seen) -> NormForm | None:
        return find_form(self.model.get_submodule(path), seen.input, seen.output, self.n, self.tolerance)

    def _logit_scale(self) -> tuple[tuple[float, float], float | None]:
        """What the final norm's output is multiplied by before the unembedding, and the logits behind it; and a cap.

        The cap is one of the configuration's numbers.
        """
        normed, last = self.seen(self.of.final_norm).output.float(), self.seen(self.of.unembed)
        entering = last.input.float()
        same = entering.shape == normed.shape
        before, error = multiple(entering, normed) if same else (1.0, float("inf"))
        if error > self.tolerance:
            self._refuse(f"{self.of.unembed} reads something else than what {self.of.final_norm} gives")
        logits, given = self.logits.float(), last.output.float()
        if logits.shape != given.shape:
            return (snapped(before), 1.0), None
        behind, error = multiple(logits, given)
        if error <= self.tolerance:
            return (snapped(before), snapped(behind)), None
        for cap in self._said():
            if cap > 0 and self._same(cap * (given / cap).tanh(), logits):
                return (snapped(before), 1.0), cap
        self._refuse(f"its logits are no multiple of what {self.of.unembed} gives, nor a soft cap of it")

    def _is_chained(self, architecture: Architecture) -> bool:
        """Whether blocks pass on their output alone, so that the first ones can be skipped."""
        last = architecture.n_layers - 1
        same = dict.fromkeys(range(last), self.outputs.get(last - 1))  # nor is an earlier one's read by the model
        try:
            with torch.inference_mode(), skipping(self.model, architecture, same, last):
                skipped = self.model(**self.inputs, use_cache=False).logits
        except Exception as error:  # a block that misses what another one passes on may raise anything
            if is_out_of_memory(error):
                raise
            return False
        return self._same(skipped, self.logits)

    def _is_padded(self) -> bool:
        """Whether the logits of a prompt are the same beside padding as without."""
        n, ids = self.n - 2, self.inputs["input_ids"]
        mask = torch.ones_like(ids)
        mask[0, n:] = 0

        def logits(some: Tensor, seen: Tensor) -> Tensor:
            with torch.inference_mode():
                found: Tensor = self.model(input_ids=some, attention_mask=seen, use_cache=False).logits
            return found

        short = ids[:1, :n]
        work = [partial(logits, short, torch.ones_like(short)), partial(logits, ids, mask)]
        alone, beside = together(self.model)(work)
        return self._same(beside[:1, :n], alone)

    def _same(self, left: Tensor, right: Tensor) -> bool:
        left, right = left.float(), right.float().to(left.device)
        if left.shape != right.shape:
            return False
        return bool((left - right).norm() <= self.tolerance * right.norm())

    def _refuse(self, what: str) -> NoReturn:
        raise ArchitectureError(f"{self.of.name}: {what}; tv measures its weights, but probes cannot run on it")


def _shared(model: nn.Module) -> set[str]:
    """The parameters that several modules use, by their first names."""
    first = {value: name for name, value in model.named_parameters()}
    return {first[value] for name, value in model.named_parameters(remove_duplicate=False) if first[value] != name}


def _test_length(architecture: Architecture) -> int:
    """A few positions, but not as many as heads, so that a norm's input tells positions from heads."""
    taken = {architecture.n_heads, architecture.n_kv_heads, 1}
    taken |= {module.n_heads for module in architecture.modules}
    return next(n for n in range(7, 40) if n not in taken)
