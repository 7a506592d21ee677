"""Which components carry the behaviour change, and the proof."""

from probes.attribute.old import METHODS, METRICS, component_name, components, evaluate, focus, moved, prompt_effects, summarise  # noqa
