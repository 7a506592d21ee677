"""Weight space: where fine-tuning moved the weights, and how they lie against the pretrained subspaces."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tv.runtime.lasting import lasting

if TYPE_CHECKING:
    from tv import experiments as experiments
    from tv.arithmetic.apply import Applied as Applied, apply as apply
    from tv.arithmetic.controls import CONTROLS as CONTROLS, control as control
    from tv.arithmetic.lora import freeze_inputs as freeze_inputs, lora_export as lora_export, lora_init as lora_init
    from tv.arithmetic.methods.terms import METHODS as METHODS
    from tv.arithmetic.variants import Mover as Mover, variant as variant
    from tv.checkpoints.checkpoint import Checkpoint as Checkpoint
    from tv.checkpoints.extraction import extract as extract
    from tv.checkpoints.info import info as info
    from tv.checkpoints.opening import open_checkpoint as open_checkpoint
    from tv.checkpoints.pairing import (
        PairFacts as PairFacts,
        WeightPair as WeightPair,
        check_pair as check_pair,
        open_pair as open_pair,
    )
    from tv.checkpoints.vector import TuningVector as TuningVector
    from tv.choosing.repair import Repaired as Repaired, repair as repair
    from tv.choosing.search import Searched as Searched, search as search
    from tv.errors import (
        ArchitectureError as ArchitectureError,
        CheckpointError as CheckpointError,
        InputError as InputError,
        PromptError as PromptError,
    )
    from tv.evaluation.evaluate import evaluate as evaluate
    from tv.evaluation.generation import quality as quality
    from tv.evaluation.interpolation import path as path, plane as plane
    from tv.evaluation.judge import Judge as Judge
    from tv.evaluation.logs.compare import compare_logs as compare_logs
    from tv.evaluation.logs.read import read_logs as read_logs
    from tv.experiments.trajectory import trajectory as trajectory
    from tv.matching.matching import align as align, matched as matched
    from tv.measures.cosine import cosine as cosine
    from tv.measures.nulls import NULLS as NULLS
    from tv.measures.tables import (
        curve as curve,
        geometry as geometry,
        measured as measured,
        spectra as spectra,
        ssa as ssa,
        weights as weights,
    )
    from tv.measures.tokens import moved_tokens as moved_tokens
    from tv.prompts.files import Prompt as Prompt, PromptSet as PromptSet
    from tv.runtime.compute import Compute as Compute
    from tv.runtime.progress import Progress as Progress
    from tv.verifying.difference import Difference as Difference, diff as diff
    from tv.verifying.merge import Verified as Verified, verify as verify

#: What each module exports here. It is imported at the first access to a name: no command's help waits for torch.
_EXPORTS = {
    "tv": ("experiments",),
    "tv.arithmetic.apply": (
        "Applied",
        "apply",
    ),
    "tv.arithmetic.controls": (
        "CONTROLS",
        "control",
    ),
    "tv.arithmetic.lora": (
        "freeze_inputs",
        "lora_export",
        "lora_init",
    ),
    "tv.arithmetic.methods.terms": ("METHODS",),
    "tv.arithmetic.variants": (
        "Mover",
        "variant",
    ),
    "tv.checkpoints.checkpoint": ("Checkpoint",),
    "tv.checkpoints.extraction": ("extract",),
    "tv.checkpoints.info": ("info",),
    "tv.checkpoints.opening": ("open_checkpoint",),
    "tv.checkpoints.pairing": (
        "PairFacts",
        "WeightPair",
        "check_pair",
        "open_pair",
    ),
    "tv.checkpoints.vector": ("TuningVector",),
    "tv.choosing.repair": (
        "Repaired",
        "repair",
    ),
    "tv.choosing.search": (
        "Searched",
        "search",
    ),
    "tv.errors": (
        "ArchitectureError",
        "CheckpointError",
        "InputError",
        "PromptError",
    ),
    "tv.evaluation.evaluate": ("evaluate",),
    "tv.evaluation.generation": ("quality",),
    "tv.evaluation.interpolation": (
        "path",
        "plane",
    ),
    "tv.evaluation.judge": ("Judge",),
    "tv.evaluation.logs.compare": ("compare_logs",),
    "tv.evaluation.logs.read": ("read_logs",),
    "tv.experiments.trajectory": ("trajectory",),
    "tv.matching.matching": (
        "align",
        "matched",
    ),
    "tv.measures.cosine": ("cosine",),
    "tv.measures.nulls": ("NULLS",),
    "tv.measures.tables": (
        "curve",
        "geometry",
        "measured",
        "spectra",
        "ssa",
        "weights",
    ),
    "tv.measures.tokens": ("moved_tokens",),
    "tv.prompts.files": (
        "Prompt",
        "PromptSet",
    ),
    "tv.runtime.compute": ("Compute",),
    "tv.runtime.progress": ("Progress",),
    "tv.verifying.difference": (
        "Difference",
        "diff",
    ),
    "tv.verifying.merge": (
        "Verified",
        "verify",
    ),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] == __name__:  # a submodule
        return import_module(f"{__name__}.{name}")
    with lasting():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
