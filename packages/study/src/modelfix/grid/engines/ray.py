"""The Ray engine: a cluster of bare machines, one Ray task per work.

A task asks for cores, GPUs and memory and starts the work as a process of its own, so that an
approach needs no Ray; Ray starts it again elsewhere where a machine is lost. Every machine has
modelfix, and either the same folders or a store to copy from and to.
"""

import socket
import time
from typing import Any

from modelfix_core.errors import ModelfixError

from modelfix.grid.engines import LOST, Ended, Started, Work
from modelfix.grid.process import run

ANSWER = 10.0  # seconds
RETRIES = 5  # after lost machines, before the run counts it as an attempt


class Notices:
    """An actor beside the driver that is told which works have begun."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add(self, name: str) -> None:
        """Note that a work began."""
        self.names.append(name)

    def take(self) -> list[str]:
        """Return what was noted since the last call."""
        names, self.names = self.names, []
        return names


def run_noticed(notices: Any, name: str, arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run a work where Ray has put it."""
    notices.add.remote(name)
    return run(arguments)


def _answers(address: str) -> None:
    """Raise OSError or ValueError if nobody listens at an address; Ray itself waits for long."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=ANSWER).close()


class Ray:
    """Runs works on a Ray cluster.

    Parameters
    ----------
    address : str, optional
        Of the cluster; default the one that this machine is part of.
    parallel : int, optional
        At most so many works at once.

    Raises
    ------
    ModelfixError
        If Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str | None = None, parallel: int | None = None) -> None:
        try:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        except ImportError:
            raise ModelfixError(
                "the engine ray needs Ray, which is not installed here: pip install 'modelfix[ray]'"
            ) from None
        try:
            if address is not None:
                _answers(address)
            ray.init(address=address or "auto", log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError) as error:
            place = f"at {address}" if address else "that this machine is part of"
            raise ModelfixError(
                f"there is no Ray cluster {place} ({str(error).splitlines()[0]}); start one with "
                "`ray start --head`, join it with `ray start --address HEAD:6379`."
            ) from None
        self._ray, self.parallel = ray, parallel
        self._task = ray.remote(run_noticed)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        notices = ray.remote(Notices).options(num_cpus=0, scheduling_strategy=here)
        self._notices = notices.remote()
        self._waiting: list[Work] = []
        self._running: dict[Any, Work] = {}

    @property
    def slots(self) -> int:
        """How many works of one core run at once."""
        cores = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        return cores if self.parallel is None else min(self.parallel, cores)

    def submit(self, work: Work) -> None:
        """Take a work; it starts when there is room."""
        self._waiting.append(work)

    def wait(self, seconds: float) -> list[Started | Ended]:
        """Return what happened, at the latest after `seconds`."""
        while self._waiting and len(self._running) < (self.parallel or float("inf")):
            work = self._waiting.pop(0)
            task = self._task.options(
                name=work.name,
                num_cpus=work.cores,
                num_gpus=work.gpus,
                memory=work.memory or None,
                max_retries=RETRIES,
            )
            self._running[task.remote(self._notices, work.name, work.arguments)] = work
        if not self._running:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(self._running), timeout=seconds)
        by_name = {work.name: work for work in self._running.values()}
        begun = self._ray.get(self._notices.take.remote())
        started = [Started(by_name[name]) for name in dict.fromkeys(begun) if name in by_name]
        return [*started, *(self._ended(task) for task in done)]

    def close(self) -> None:
        """Stop what still runs."""
        self._waiting.clear()
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()
        self._ray.shutdown()

    def _ended(self, task: Any) -> Ended:
        work = self._running.pop(task)
        try:
            code, output = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return Ended(work, LOST, str(error).strip().splitlines()[0])
        return Ended(work, code, output)
