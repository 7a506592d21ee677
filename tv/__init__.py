"""Weight space: where fine-tuning moved the weights, and how they lie against the pretrained subspaces."""

from typing import TYPE_CHECKING

import tv.quiet  # noqa: F401 (first)
from tv.exports import export

if TYPE_CHECKING:
    from tv.apply import Applied, apply
    from tv.checkpoint import Checkpoint, open_checkpoint
    from tv.compare import cosine
    from tv.compose import METHODS
    from tv.errors import ArchitectureError, CheckpointError, InputError
    from tv.evaluation import evaluate
    from tv.extraction import extract
    from tv.generation import quality
    from tv.info import info
    from tv.lora import freeze_inputs, lora_export, lora_init
    from tv.matching import align, matched
    from tv.measure import curve, geometry, spectra, ssa, weights
    from tv.pairing import PairFacts, WeightPair, check_pair, open_pair
    from tv.path import path, plane
    from tv.tokens import moved_tokens
    from tv.variants import Mover, variant
    from tv.vector import TuningVector

__all__ = [
    "METHODS",
    "Applied",
    "ArchitectureError",
    "Checkpoint",
    "CheckpointError",
    "InputError",
    "Mover",
    "PairFacts",
    "TuningVector",
    "WeightPair",
    "align",
    "apply",
    "check_pair",
    "cosine",
    "curve",
    "evaluate",
    "extract",
    "freeze_inputs",
    "geometry",
    "info",
    "lora_export",
    "lora_init",
    "matched",
    "moved_tokens",
    "open_checkpoint",
    "open_pair",
    "path",
    "plane",
    "quality",
    "spectra",
    "ssa",
    "variant",
    "weights",
]

export(__name__)
