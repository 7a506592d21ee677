"""A model that scales its embeddings in place, as CTRL does: methods with gradients run on it."""

import numpy as np

from probes.attribution.forwards import values
from probes.attribution.methods.gradient import gradient
from probes.attribution.methods.path import path_effects
from probes.attribution.units import Unit
from tests.probes.attribution.conftest import Case


def test_methods_with_gradients_run_where_the_model_goes_on_in_place() -> None:
    case = Case()
    case.keep_only(lambda parameter, tuned, _: (tuned == tuned) & ("layers.1.mlp" in parameter))
    for model in case.pair.models:
        model.model.layers[0].register_forward_pre_hook(lambda _module, args: (args[0].mul_(1.5), *args[1:]))
    change = values(case.pair.tuned, case.batches, case.metric()) - values(case.pair.base, case.batches, case.metric())
    shares = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, tolerance=1e-3)
    assert np.allclose([found.total() for found in shares.shares], change, atol=2e-3 * np.abs(change).sum())
    unit = Unit("component", 1, "mlp")
    found = next(gradient(case.work(), [unit]))
    assert np.abs(found.values[0]).max() > 0
