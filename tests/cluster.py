"""A cluster on this machine, for tests of what is spread over several."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes, which this process has joined. The test is skipped where ray is not installed."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        options = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
        soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
        nodes = Cluster(initialize_head=True, head_node_args=options | {"_system_config": soon})
        nodes.add_node(num_cpus=1, object_store_memory=100_000_000)
        ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()
