"""Libraries tell nobody that they are used: their own usage reporting is off unless the environment says otherwise.

Imported before anything else of `tv`, and so of `probes` too.
"""

import os

from huggingface_hub import constants

#: huggingface_hub (and with it transformers and datasets), ray, and whoever honours the common wish.
_OFF = {"HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}

for _name, _value in _OFF.items():
    os.environ.setdefault(_name, _value)
# The library read its switch when it was imported, which may have been before this.
if os.environ["HF_HUB_DISABLE_TELEMETRY"].upper() in constants.ENV_VARS_TRUE_VALUES:
    constants.HF_HUB_DISABLE_TELEMETRY = True
