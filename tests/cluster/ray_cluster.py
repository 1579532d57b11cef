"""A Ray cluster on this machine: a head that takes no jobs, and two nodes with one CPU each."""

import contextlib
import os

# No word to Ray's makers, and a lost node is noticed within seconds.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
}
MEMORY = 100 * 2**20  # for objects, of which there are only small ones


class RayCluster:
    """The cluster; see ``conftest.py`` for what tests use of it."""

    flags = ("--launcher", "ray")

    def __init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
        head["_system_config"] = QUICK
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.environment = {**ENVIRONMENT, "RAY_ADDRESS": self._cluster.address}
        self._nodes = [self._add() for _ in range(2)]
        self._cluster.wait_for_nodes()
        self._lost = 0

    def _add(self):
        return self._cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    def _sweeps(self):
        """The actors of all sweeps."""
        import ray

        ray.init(self._cluster.address, log_to_driver=False, ignore_reinit_error=True)
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
        self._nodes.append(self._add())
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
