"""One capture plan (data), and the backends that run it."""

from probes.hooks.plan import Read, Site, plan
from probes.hooks.torch_backend import capture, lockstep

__all__ = ["Read", "Site", "capture", "lockstep", "plan"]
