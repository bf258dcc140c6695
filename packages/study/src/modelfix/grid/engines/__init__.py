"""Engines: they run works, and know nothing of approaches, subjects or records."""

from dataclasses import dataclass
from typing import Protocol

from modelfix_core.errors import ModelfixError

ENGINES = ("local", "ray", "slurm")
GIB = 1024**3
LOST = -9  # exit code of a work whose machine was lost


@dataclass(frozen=True)
class Work:
    """A process to run somewhere.

    Attributes
    ----------
    name : str
        Unique, for people.
    arguments : tuple of str
        For the Python that runs there.
    cores : int
    gpus : float
    memory : int
        Bytes that it is expected to take.
    seconds : float or None
        After which it is certainly over.
    """

    name: str
    arguments: tuple[str, ...]
    cores: int = 1
    gpus: float = 0
    memory: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Started:
    """A work began."""

    work: Work


@dataclass(frozen=True)
class Ended:
    """A work ended.

    Attributes
    ----------
    work : Work
    code : int
        Exit code; negative if it was killed or its machine was lost.
    output : str
        The end of what it wrote, or what became of its machine.
    """

    work: Work
    code: int
    output: str


class Engine(Protocol):
    """Runs works, as many at once as fit."""

    @property
    def slots(self) -> int:
        """How many works of one core run at once, for estimates."""

    def submit(self, work: Work) -> None:
        """Take a work; it starts when there is room."""

    def wait(self, seconds: float) -> list[Started | Ended]:
        """Return what happened, at the latest after `seconds`."""

    def close(self) -> None:
        """Stop what still runs."""


def make(
    name: str,
    *,
    parallel: int | None = None,
    address: str | None = None,
    partition: str | None = None,
    folder: str = "",
) -> Engine:
    """Return the engine called `name`.

    Parameters
    ----------
    name : str
        One of `ENGINES`.
    parallel : int, optional
        At most so many works at once.
    address : str, optional
        Of a Ray cluster.
    partition : str, optional
        Of Slurm.
    folder : str
        Where Slurm's own files go, on a disk that all machines share.

    Raises
    ------
    ModelfixError
        If there is none, or what it needs is not installed.
    """
    if name == "local":
        from modelfix.grid.engines.local import Local

        return Local(parallel)
    if name == "ray":
        from modelfix.grid.engines.ray import Ray

        return Ray(address, parallel)
    if name == "slurm":
        from modelfix.grid.engines.slurm import Slurm

        return Slurm(folder, partition, parallel)
    raise ModelfixError(f"there is no engine {name!r}; choose from {', '.join(ENGINES)}.")
