"""Adapters whose T peft computes: its own `merge`, on one module at a time, in float64.

The layers stand in a model without weights. For a parameter, its module's real weights are put into a copy of the
layer, peft merges the copy, and T = merged − base. Kinds that read the base's weights when peft builds them are
built over those weights, in float32.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.checkpoints.noise import ROUNDING, Noise
from tv.checkpoints.tensors import Stored
from tv.errors import CheckpointError

#: What peft puts into the path of a module that it wraps.
_WRAPPED = re.compile(r"\.(base_layer|token_adapter|original_module)(?=\.|$)")
#: Kinds that peft cannot merge, and what they are instead of a change of weights.
_NO_T = {
    "PROMPT_TUNING": "tokens before the prompt",
    "MULTITASK_PROMPT_TUNING": "tokens before the prompt",
    "P_TUNING": "tokens before the prompt",
    "CPT": "tokens before the prompt",
    "PREFIX_TUNING": "keys and values before the prompt's",
    "CARTRIDGE": "keys and values before the prompt's",
    "ADAPTION_PROMPT": "keys and values before the prompt's",
    "XLORA": "a mixture that each token chooses anew",
    "POLY": "a mixture that the task chooses",
    "SHADOW": "a second model that runs beside the base",
    "LILY": "a mixture that each token chooses anew",
}
_NO_T_SETTINGS = {
    "alora_invocation_tokens": "an activated LoRA, which acts from its invocation tokens on",
    "arrow_config": "a mixture that each token chooses anew (Arrow)",
    "layer_replication": "a model with more layers than its base (layer_replication)",
    "megatron_config": "layers of Megatron, which no model here has",
}
#: Kinds whose layers are the same whatever the base's weights are when peft builds them.
_BLIND = frozenset(
    [
        "LORA",
        "ADALORA",
        "BEFT",
        "BOFT",
        "C3A",
        "DELORA",
        "FOURIERFT",
        "GLORA",
        "GRALORA",
        "HIRA",
        "HRA",
        "IA3",
        "LN_TUNING",
        "LOHA",
        "LOKR",
        "MISS",
        "OFT",
        "PEANUT",
        "PVERA",
        "RANDLORA",
        "ROAD",
        "SHIRA",
        "TRAINABLE_TOKENS",
        "UNILORA",
        "VBLORA",
        "VERA",
        "WAVEFT",
    ]
)
#: Starts of a LoRA that take part of the base's weights into A and B, and do so again when peft loads the adapter.
_REPEATED_STARTS = ("pissa", "olora", "loftq", "corda")
_TOLD = 300  # characters of what peft says
#: The largest relative error of rounding to a dtype.
_UNIT = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}


def peft_version() -> str | None:
    """The version of peft, None where it is not installed."""
    try:
        import peft
    except ImportError:
        return None
    return str(peft.__version__)


def require_mergeable(source: str, form: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for an adapter that has no T, and where peft is missing."""
    kind = str(config.get("peft_type")).rpartition(".")[2]
    why = _NO_T.get(kind) or next((why for setting, why in _NO_T_SETTINGS.items() if config.get(setting)), None)
    if why is not None:
        raise CheckpointError(f"{source}: an adapter of type {kind} is {why}: peft cannot merge it, so it has no T")
    start = str(config.get("init_lora_weights"))
    if kind == "LORA" and start.startswith("pissa_niter"):
        raise CheckpointError(
            f"{source}: the adapter began from {start}, a random SVD of the base's weights that peft takes anew at "
            "every load, so that no two loads are one model; save it as plain LoRA "
            "(path_initial_model_for_weight_conversion)"
        )
    if peft_version() is None:
        raise CheckpointError(
            f"{source}: T of {form} is computed by peft, which is not installed; install tuning-probes[peft]"
        )


@dataclass(frozen=True)
class Layers:
    """The layers of peft on one module, the innermost first."""

    path: str  # of the module in the model
    layers: tuple[nn.Module, ...]
    parameter: str | None = None  # the only parameter that they move, where they stand on one
    read: bool = False  # whether the module holds the base's weights, as peft left them

    @property
    def module(self) -> nn.Module:
        """The module of the model that they stand on."""
        return self.layers[0].get_base_layer()

    def merged(self, weights: Mapping[str, Tensor], shaken: bool = False) -> dict[str, Tensor]:
        """The module's parameters after merging into these, float64; with random adapters if `shaken`."""
        for layer in self.layers:
            own = {id(parameter): name for name, parameter in layer.get_base_layer().named_parameters(recurse=False)}
            settings = getattr(layer, "kwargs", {})
            memo: dict[int, Any] = {id(settings): settings}  # they can hold tensors of other layers
            for tensor in (*layer.parameters(), *layer.buffers()):
                name = own.get(id(tensor))
                value = tensor.detach()
                if name is not None:
                    value = weights[name].to("cpu", torch.float64, copy=True) if name in weights else value
                elif value.is_floating_point():
                    value = value.to("cpu", torch.float64)
                    value = value + 0.1 * torch.rand_like(value) if shaken else value
                memo[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
            copied = copy.deepcopy(layer, memo).eval()
            copied.merge()
            weights = {name: value.detach() for name, value in copied.get_base_layer().named_parameters(recurse=False)}
        return dict(weights)


@dataclass(frozen=True)
class Merge:
    """The change that layers of peft make to one parameter of their module."""

    source: str
    layers: Layers
    leaf: str
    others: Mapping[str, Callable[[], Tensor]]  # the module's other parameters
    dtype: str
    noise: Noise
    digest: bytes

    def step(self, weight: Callable[[], Tensor], expert: int = -1) -> Float[Tensor, "..."]:
        factors = _expert_factors(self.layers)
        if factors is not None:
            left, right, scaling = factors
            picked = slice(None) if expert < 0 else expert
            return (scaling * (left[picked] @ right[picked])).float()
        before = weight().to(torch.float64, copy=True)
        if self.layers.read:
            weights = {name: value.detach() for name, value in self.layers.module.named_parameters(recurse=False)}
        else:
            weights = {self.leaf: before} | {leaf: read() for leaf, read in self.others.items()}
        with _quiet(), _told(f"{self.source}: {self.layers.path}: peft {peft_version()} cannot merge it"):
            delta = (self.layers.merged(weights)[self.leaf] - before).float()
        return delta if expert < 0 else delta[expert].clone()

    def sample(self) -> bytes:
        return self.digest


def injected(
    directory: Path, model: PreTrainedModel, parts: Sequence[Stored], read: Callable[[str], Tensor]
) -> list[Layers]:
    """An adapter's layers in `model`, a skeleton, with the tensors of its file.

    Raises CheckpointError where peft cannot build it, or the file's tensors are not its.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    with _quiet(), _told(f"{directory}: peft {peft_version()} cannot load it"):
        config = PeftConfig.from_pretrained(str(directory))
        config.inference_mode, config.modules_to_save = True, None  # those are read from the file, each on demand
        if hasattr(config, "progressbar"):
            config.progressbar = False
        reads = reads_base(config.to_dict() | {"peft_type": config.peft_type.value})
        for name, parameter in list(model.named_parameters()):
            value = read(name).float() if reads else torch.zeros(()).expand(parameter.shape)  # which takes no memory
            _set(model, parameter, value.clone() if reads else value)
        tuned = PeftModel(model, config)
        ours = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        for value in ours.values():
            if value.is_floating_point():
                value.fill_(torch.nan)
        weights = {stored.name: stored.load() for stored in parts}
        unexpected = set_peft_model_state_dict(tuned, weights).unexpected_keys
        held = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    if unexpected:
        raise CheckpointError(
            f"{directory}: tensor {unexpected[0]!r} is neither a parameter of the base nor part of the adapter that "
            "adapter_config.json describes; the two do not belong together, or the base is another"
        )
    missing = next((name for name, value in held.items() if not bool(torch.isfinite(value).all())), None)
    if missing is not None:
        raise CheckpointError(
            f"{directory}: tensor {missing!r} is missing, or holds NaN or Inf; save the adapter again"
        )
    return layers_of(model, reads)


def layers_of(model: nn.Module, read: bool) -> list[Layers]:
    """The layers that peft put into a model, by module, those that are switched off left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[tuple[str, str | None], list[nn.Module]] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not module.disable_adapters and module.active_adapters:
            where = _WRAPPED.sub("", path), getattr(module, "parameter_name", None)
            found.setdefault(where, []).insert(0, module)
    return [Layers(path, tuple(layers), leaf, read) for (path, leaf), layers in found.items()]


def reads_base(config: Mapping[str, Any]) -> bool:
    """Whether peft builds the adapter from the base's weights, or changes them when it does."""
    kind = str(config.get("peft_type")).rpartition(".")[2]
    start = str(config.get("init_lora_weights")).lower()
    taken = kind == "LORA" and (start.startswith(_REPEATED_STARTS) or config.get("kasa_config"))
    return bool(taken) or kind not in _BLIND


def moved_leaves(source: str, form: str, layers: Sequence[Layers]) -> Iterator[tuple[Layers, str, bool]]:
    """(layers, parameter, whether T depends on the weight) of every parameter that peft's merge can move.

    One module of each name, shape and setting is merged, so that what cannot be is refused before any work. Raises CheckpointError.
    """
    kinds: dict[object, dict[str, bool]] = {}
    for one in layers:
        shapes = tuple((name, value.shape) for name, value in one.module.named_parameters(recurse=False))
        switches = [
            (name, value) for layer in one.layers for name, value in vars(layer).items() if isinstance(value, bool)
        ]
        kind = (one.path.rpartition(".")[2], one.parameter, shapes, *map(type, one.layers), *switches)
        if kind not in kinds:
            with _quiet(), _told(f"{source}: peft {peft_version()} cannot merge {form}, so it has no T"):
                kinds[kind] = {one.parameter: False} if one.parameter and _expert_factors(one) else _tried(one)
        yield from ((one, leaf, depends) for leaf, depends in kinds[kind].items())


def noise_of(dtype: str, base_dtype: str, depends: bool, from_base: bool) -> Noise:
    """The noise of T where an adapter's tensors are stored as `dtype`.

    Where T is formed from the weight, rounding one of its tensors moves the whole weight by as much; and what was
    computed from the base's weights when training began was rounded as they are.
    """
    coarsest = max(
        (dtype, base_dtype) if from_base else (dtype,), key=lambda one: _UNIT.get(one, ROUNDING.get(one, 0.0))
    )
    of_weight = _UNIT.get(coarsest, ROUNDING.get(coarsest, 0.0))
    return Noise(of_weight if depends or from_base else 0.0, 2**0.5 * ROUNDING.get(dtype, 0.0))


def digest_of(config: Mapping[str, Any], parts: Iterable[Stored]) -> bytes:
    """A hash of what an adapter consists of."""
    digest = sha256(repr(sorted(config.items())).encode())
    for stored in parts:
        digest.update(stored.name.encode() + stored.sample())
    return digest.digest()


def _tried(layers: Layers) -> dict[str, bool]:
    """Parameter → whether its T depends on the weights, by merging into random ones."""
    shapes = {name: value.shape for name, value in layers.module.named_parameters(recurse=False)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        steps = []
        for seed in (1, 2):
            before = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
            torch.manual_seed(0)  # the same adapter twice
            after = layers.merged(before, shaken=True)
            torch.manual_seed(seed)
            steps.append({name: after[name] - before[name] for name in shapes})
    first, second = steps
    return {name: not torch.allclose(first[name], second[name]) for name in shapes if bool(first[name].any())}


def _expert_factors(layers: Layers) -> tuple[Tensor, Tensor, float] | None:
    """(left, right, scaling) of the one LoRA on a parameter that holds experts; None for other layers."""
    if layers.parameter is None or len(layers.layers) > 1 or layers.layers[0].num_experts == 1:
        return None
    (layer,) = layers.layers
    if len(layer.active_adapters) > 1:
        return None
    return layer.get_delta_factors(layer.active_adapters[0])


def _set(model: nn.Module, parameter: nn.Parameter, value: Tensor) -> None:
    """Put a value in the place of a parameter, wherever it stands in the model."""
    held = nn.Parameter(value, requires_grad=False)
    for module in model.modules():
        for name, own in module.named_parameters(recurse=False, remove_duplicate=False):
            if own is parameter:
                module.register_parameter(name, held)


@contextmanager
def _quiet() -> Iterator[None]:
    """peft's warnings are for training, and its random starts leave the caller's generator as it was."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever peft raises, in one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{what}: {said[:_TOLD]}") from error
