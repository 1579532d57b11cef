"""A Ray cluster on this machine: a head that takes no jobs, and two nodes with one CPU each."""

import contextlib
import logging
import os

from tests.cluster.slurm_cluster import free_ports

# No word to Ray's makers; patience on slow machines, where jobs must not come last either.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_worker_niceness": "0",
}
QUICK = {  # a lost node is noticed within seconds
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
}
PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
MEMORY = 100 * 2**20  # for objects, of which there are only small ones
TRIES = 4


class RayCluster:
    """The cluster; see ``conftest.py`` for what tests use of it."""

    flags = ("--launcher", "ray")

    def __init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        bare = {"include_dashboard": False, "include_log_monitor": False}
        self._add(0, **bare, _system_config=QUICK)  # the first is the head
        self.environment = {**ENVIRONMENT, "RAY_ADDRESS": self._cluster.address}
        self._nodes = [self._add(1) for _ in range(2)]
        self._cluster.wait_for_nodes()
        self._lost = 0

    def _add(self, cpus, **more):
        # A node gives its helpers 15 seconds to start, which a busy machine may not keep; those
        # that need not choose their ports are quicker.
        for left in reversed(range(TRIES)):
            ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
            options = {"num_cpus": cpus, "object_store_memory": MEMORY, **ports, **more}
            try:
                return self._cluster.add_node(**options)
            except Exception as error:  # Ray raises no other
                if not left or "timed out during startup" not in str(error):
                    raise
        raise AssertionError

    def _sweeps(self):
        """The actors of all sweeps."""
        import ray

        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(self._cluster.address, ignore_reinit_error=True, **quiet)
        for entry in ray.util.list_named_actors(all_namespaces=True):
            with contextlib.suppress(ValueError):  # it has just gone
                yield ray.get_actor(entry["name"], namespace=entry["namespace"])

    def _ask(self, method: str) -> dict:
        import ray

        found = {}
        for sweep in self._sweeps():
            with contextlib.suppress(ray.exceptions.RayActorError):
                found |= ray.get(getattr(sweep, method).remote())
        return found

    def at_work(self) -> list[str]:
        """The jobs that run or wait."""
        return [name for name, state in self._ask("states").items() if isinstance(state, str)]

    def take_back(self) -> None:
        """Lose the node on which the job runs, and give the cluster another."""
        (place,) = [nodes[-1] for nodes in self._ask("places").values() if nodes]
        (node,) = [node for node in self._nodes if node.node_id == place]
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.remove(node)
        self._nodes.append(self._add(1))
        self._lost += 1

    def requeued(self) -> int:
        """How many nodes were lost; that the job ran again is in its log."""
        return self._lost

    def clear(self) -> None:
        """Kill what a test has left, and leave."""
        import ray

        for sweep in self._sweeps():
            ray.kill(sweep)
        ray.shutdown()
        self._lost = 0

    def stop(self) -> None:
        self._cluster.shutdown()
