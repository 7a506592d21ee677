"""One capture plan (data), and the backends that run it."""

from probes.hooks.backends import BACKENDS, open_backend, require_installed
from probes.hooks.plan import Read, Site, plan
from probes.hooks.torch_backend import Lockstep, capture, lockstep

__all__ = ["BACKENDS", "Lockstep", "Read", "Site", "capture", "lockstep", "open_backend", "plan", "require_installed"]
