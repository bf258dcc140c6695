"""The local engine: processes on this machine, as many as cores, memory and GPUs allow."""

import os
import subprocess
import time
from collections.abc import Sequence

import psutil

from modelfix.grid.engines import GIB, Ended, Started, Work
from modelfix.grid.process import PATIENCE, Process

RESERVE = GIB  # bytes of memory that stay free
TINY = 1e-9  # of a GPU, for sums of parts
INTERVAL = 0.1  # seconds between two looks at the processes


class Local:
    """Runs works on this machine.

    Parameters
    ----------
    parallel : int, optional
        At most so many works at once.
    cores, memory, gpus : optional
        Cores, bytes and numbers of the GPUs to use; default: what this process may use and what is
        free.
    """

    def __init__(
        self,
        parallel: int | None = None,
        *,
        cores: int | None = None,
        memory: int | None = None,
        gpus: Sequence[str] | None = None,
    ) -> None:
        self.parallel = parallel
        self.cores = usable_cores() if cores is None else cores
        self.memory = psutil.virtual_memory().available - RESERVE if memory is None else memory
        self.gpus = visible_gpus() if gpus is None else list(gpus)
        self._waiting: list[Work] = []
        self._running: dict[Work, tuple[Process, list[str]]] = {}
        self._used = dict.fromkeys(self.gpus, 0.0)

    @property
    def slots(self) -> int:
        """How many works of one core run at once."""
        return self.cores if self.parallel is None else min(self.parallel, self.cores)

    def submit(self, work: Work) -> None:
        """Take a work; it starts when there is room."""
        self._waiting.append(work)

    def wait(self, seconds: float) -> list[Started | Ended]:
        """Return what happened, at the latest after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            events: list[Started | Ended] = [*self._collect(), *self._start()]
            if events or time.monotonic() >= deadline:
                return events
            time.sleep(min(INTERVAL, seconds))

    def close(self) -> None:
        """Stop what still runs."""
        self._waiting.clear()
        for process, _ in self._running.values():
            process.interrupt()
        end = time.monotonic() + PATIENCE
        for process, _ in self._running.values():
            process.stop(max(0.0, end - time.monotonic()))
        self._running.clear()

    def _collect(self) -> list[Ended]:
        ended = []
        for work, (process, gpus) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[work]
                for gpu in gpus:
                    self._used[gpu] -= min(work.gpus, 1)
                ended.append(Ended(work, code, process.output))
        return ended

    def _start(self) -> list[Started]:
        started = []
        for work in list(self._waiting):
            if not self._fits(work):
                continue
            self._waiting.remove(work)
            gpus = self._take_gpus(work.gpus)
            environ = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if self.gpus else {}
            self._running[work] = Process(work.arguments, environ), gpus
            started.append(Started(work))
        return started

    def _fits(self, work: Work) -> bool:
        """Whether there is room beside what runs; alone, a work of any size may try."""
        if not self._running:
            return True
        running = [*self._running, work]
        return (
            (self.parallel is None or len(running) <= self.parallel)
            and sum(one.cores for one in running) <= self.cores
            and sum(one.memory for one in running) <= self.memory
            and len(self._free_gpus(work.gpus)) >= work.gpus
        )

    def _free_gpus(self, share: float) -> list[str]:
        return [gpu for gpu, used in self._used.items() if used + min(share, 1) < 1 + TINY]

    def _take_gpus(self, share: float) -> list[str]:
        """Take whole GPUs, or a part of the fullest one that has it free."""
        count = -int(-share // 1)
        free = sorted(self._free_gpus(share), key=lambda gpu: -self._used[gpu])[:count]
        for gpu in free:
            self._used[gpu] += min(share, 1)
        return free


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the numbers of the NVIDIA GPUs that this process may use."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [gpu for gpu in stated.split(",") if gpu.strip()]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []
