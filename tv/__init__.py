"""Weight space: where fine-tuning moved the weights, and how they lie against the pretrained subspaces."""

from tv.checkpoint import Checkpoint, open_checkpoint
from tv.errors import ArchitectureError, CheckpointError, InputError
from tv.measure import geometry, ssa, weights
from tv.pairing import PairFacts, check_pair
from tv.vector import TuningVector, extract

__all__ = [
    "ArchitectureError",
    "Checkpoint",
    "CheckpointError",
    "InputError",
    "PairFacts",
    "TuningVector",
    "check_pair",
    "extract",
    "geometry",
    "open_checkpoint",
    "ssa",
    "weights",
]
