"""What an adapter's configuration says of it: its kind and sizes, whether it has a T, and what T is computed by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tv.errors import CheckpointError

#: Settings of a LoRA under which T is not scaling · B · A of a module's weight.
_FORMS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA on parameters",
    "trainable_token_indices": "LoRA with trainable tokens",
    "layer_replication": "LoRA on replicated layers",
    "megatron_config": "LoRA of Megatron",
}
#: Starts after which the base's weights are what they were, when peft loads the adapter.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
#: Starts that take part of the base's weights into A and B, again at every load.
_REPEATED_STARTS = ("pissa", "olora", "loftq", "corda")
_TOKENS, _CACHE = "tokens before the prompt", "keys and values before the prompt's"
_ROUTED = "a mixture that is chosen anew for each input"
#: Kinds that are no change of weights, and what they are.
_NO_T = {
    "PROMPT_TUNING": _TOKENS,
    "MULTITASK_PROMPT_TUNING": _TOKENS,
    "P_TUNING": _TOKENS,
    "CPT": _TOKENS,
    "PREFIX_TUNING": _CACHE,
    "CARTRIDGE": _CACHE,
    "ADAPTION_PROMPT": _CACHE,
    "XLORA": _ROUTED,
    "POLY": _ROUTED,
    "LILY": _ROUTED,
    "SHADOW": "a second model that runs beside the base",
}
_NO_T_SETTINGS = {
    "alora_invocation_tokens": "active from its invocation tokens on (aLoRA)",
    "arrow_config": f"{_ROUTED} (Arrow)",
    "layer_replication": "a model with more layers than its base (layer_replication)",
    "megatron_config": "made for layers of Megatron, which no model here has",
}
#: Kinds whose layers do not depend on the base's weights when peft builds them.
_BLIND = {
    *("LORA", "ADALORA", "BEFT", "BOFT", "C3A", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3"),
    *("LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "PEANUT", "PVERA", "RANDLORA", "ROAD", "SHIRA"),
    *("TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
}


def form_of(config: Mapping[str, Any]) -> str:
    """What an adapter is called: "LoRA" where its T is scaling · B · A and nothing else."""
    kind = kind_of(config)
    if kind != "LORA":
        return kind
    form = next((form for setting, form in _FORMS.items() if config.get(setting)), None)
    start = config.get("init_lora_weights", True)
    return form or ("LoRA" if start in _PLAIN_STARTS else f"LoRA, {start} start")


def trained_as(form: str, config: Mapping[str, Any]) -> str:
    """An adapter's form with rank, alpha and the modules that were trained, as far as its kind has them.

    Examples:
        >>> trained_as("LoRA", {"r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"]})
        'LoRA, r 8, alpha 16, on q_proj and v_proj'
    """
    rank = config.get("target_r") or config.get("r")  # target_r is AdaLoRA's, which has an unused r beside it
    alpha = config.get("lora_alpha") or config.get("alpha")
    layers = _several(config.get("layers_to_transform"))
    whole = _several(config.get("modules_to_save"))
    said = [
        form,
        f"r {rank}{' (others by rank_pattern)' if config.get('rank_pattern') else ''}" if rank else "",
        f"alpha {alpha}{' (others by alpha_pattern)' if config.get('alpha_pattern') else ''}" if alpha else "",
        "scaled by 1/√r" if config.get("use_rslora") else "",
        f"on {_joined(targets)}" if (targets := _several(config.get("target_modules"))) else "",
        f"on the parameters {_joined(named)}" if (named := _several(config.get("target_parameters"))) else "",
        f"in layers {_joined(layers)} only" if layers else "",
        f"{_joined(whole)} trained whole" if whole else "",
    ]
    return ", ".join(filter(None, said))


def _several(value: Any) -> list[str]:
    """The names in a setting: one name or pattern, or a collection of them."""
    if not isinstance(value, list | tuple | set):
        return [] if value is None else [str(value)]
    return sorted(map(str, value), key=lambda name: (len(name), name))  # peft keeps them in a set; 2 before 10


def _joined(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def kind_of(config: Mapping[str, Any]) -> str:
    """peft's name of the kind: LORA, IA3, …"""
    kind = config.get("peft_type")
    return str(getattr(kind, "value", kind)).rpartition(".")[2]


def reads_base(config: Mapping[str, Any]) -> bool:
    """Whether peft builds the adapter from the base's weights, or changes them when it does."""
    if kind_of(config) != "LORA":
        return kind_of(config) not in _BLIND
    return str(config.get("init_lora_weights")).lower().startswith(_REPEATED_STARTS) or bool(config.get("kasa_config"))


def peft_version() -> str | None:
    """The version of peft, None where it is not installed."""
    try:
        import peft
    except ImportError:
        return None
    return str(peft.__version__)


def require_mergeable(source: str, form: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where an adapter of this form has no T, or peft is missing, which computes it."""
    kind = kind_of(config)
    why = _NO_T.get(kind) or next((why for setting, why in _NO_T_SETTINGS.items() if config.get(setting)), None)
    if why is not None:
        raise CheckpointError(f"{source}: its adapter ({form}) is {why}: peft cannot merge it, so it has no T")
    start = str(config.get("init_lora_weights"))
    if kind == "LORA" and start.startswith("pissa_niter"):
        raise CheckpointError(
            f"{source}: its adapter began from {start}, a random SVD of the base's weights that peft takes anew at "
            "every load, so that every load gives another model; save it as plain LoRA "
            "(path_initial_model_for_weight_conversion)"
        )
    if peft_version() is None:
        raise CheckpointError(
            f"{source}: T of its adapter ({form}) is computed by peft, which is not installed; install "
            "tuning-probes[peft]"
        )
    from peft import PeftType

    if kind not in PeftType.__members__:
        raise CheckpointError(f"{source}: its adapter is of type {kind}, which peft {peft_version()} does not know")
