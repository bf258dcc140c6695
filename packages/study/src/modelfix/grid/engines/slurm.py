"""The Slurm engine: one job per work, by way of submitit; all machines share the folders."""

import math
import time
from typing import Any

from modelfix_core.errors import ModelfixError

from modelfix.grid.engines import GIB, LOST, Ended, Started, Work
from modelfix.grid.process import run

INTERVAL = 0.5  # seconds between two looks at the jobs
LONGEST = 24 * 3600.0  # seconds that are asked for where no limit is stated
ROOM = 2  # times the expected memory is asked for, because Slurm ends who takes more


class Slurm:
    """Runs works as jobs of Slurm.

    Parameters
    ----------
    folder : str
        For submitit's own files; shared.
    partition : str, optional
    parallel : int, optional
        At most so many works at once.
    cluster : str, optional
        ``slurm``; ``local`` runs the jobs as processes here, for tests.

    Raises
    ------
    ModelfixError
        If submitit is not installed, or there is no Slurm here.
    """

    def __init__(
        self,
        folder: str,
        partition: str | None = None,
        parallel: int | None = None,
        cluster: str = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise ModelfixError(
                "the engine slurm needs submitit, which is not installed here: "
                "pip install 'modelfix[slurm]'"
            ) from None
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except RuntimeError:
            raise ModelfixError(
                "there is no Slurm on this machine (no `srun`); run the study where jobs are "
                "submitted."
            ) from None
        if partition is not None:
            self._executor.update_parameters(slurm_partition=partition)
        self._failed = submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError
        self.parallel = parallel
        self._waiting: list[Work] = []
        self._queued: dict[Any, Work] = {}
        self._started: set[str] = set()

    @property
    def slots(self) -> int:
        """How many works run at once, as far as that can be told."""
        return self.parallel or max(1, len(self._waiting))

    def submit(self, work: Work) -> None:
        """Take a work; it starts when there is room."""
        self._waiting.append(work)

    def wait(self, seconds: float) -> list[Started | Ended]:
        """Return what happened, at the latest after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self._submit()
            events = self._look()
            if events or time.monotonic() >= deadline:
                return events
            time.sleep(min(INTERVAL, seconds))

    def close(self) -> None:
        """Stop what still runs."""
        self._waiting.clear()
        for job in self._queued:
            job.cancel()
        self._queued.clear()

    def _submit(self) -> None:
        while self._waiting and len(self._queued) < (self.parallel or math.inf):
            work = self._waiting.pop(0)
            self._executor.update_parameters(
                name=f"modelfix {work.name}",
                cpus_per_task=work.cores,
                gpus_per_node=math.ceil(work.gpus),
                mem_gb=math.ceil(ROOM * work.memory / GIB),
                timeout_min=math.ceil((work.seconds or LONGEST) / 60),
            )
            self._queued[self._executor.submit(run, work.arguments)] = work

    def _look(self) -> list[Started | Ended]:
        events: list[Started | Ended] = []
        for job, work in list(self._queued.items()):
            if job.done():
                del self._queued[job]
                self._started.discard(job.job_id)
                events.append(self._ended(job, work))
            elif job.job_id not in self._started and job.state == "RUNNING":
                self._started.add(job.job_id)
                events.append(Started(work))
        return events

    def _ended(self, job: Any, work: Work) -> Ended:
        try:
            code, output = job.result()
        except self._failed as error:
            return Ended(work, LOST, str(error).strip().splitlines()[0])
        return Ended(work, code, output)
