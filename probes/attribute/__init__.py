"""Which components carry the behaviour change between two checkpoints, and the proof of it."""

from probes.attribute.effects import Effects, focus, summarise, units_in
from probes.attribute.methods import Attributor, require_precision
from probes.attribute.metric import answerable, metric_of, require_metric
from probes.attribute.path import path_effects
from probes.attribute.scores import component_scores
from probes.attribute.units import Unit, component_name, components, units_of

__all__ = [
    "Attributor",
    "Effects",
    "Unit",
    "answerable",
    "component_name",
    "component_scores",
    "components",
    "focus",
    "metric_of",
    "path_effects",
    "require_metric",
    "require_precision",
    "summarise",
    "units_in",
    "units_of",
]
