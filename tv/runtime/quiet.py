"""Libraries report no use: the console scripts switch off their usage reporting."""

from __future__ import annotations

import os

#: huggingface_hub (and with it transformers and datasets), ray, and libraries that honour DO_NOT_TRACK.
_OFF = {"HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}


def report_no_use() -> None:
    """Switch usage reporting off unless the environment says otherwise.

    Call it before the libraries are imported, since they read these variables then. It is for the console scripts:
    importing `tv` or `probes` leaves the caller's environment alone.

    Examples:
        >>> report_no_use()
        >>> os.environ["RAY_USAGE_STATS_ENABLED"] in ("0", "1")
        True
    """
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)
