"""Find approaches through the entry-point group ``modelfix.approaches``."""

import difflib
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from modelfix_core.approach import Approach, ApproachInfo
from modelfix_core.errors import ModelfixError

GROUP = "modelfix.approaches"


@dataclass(frozen=True)
class Broken:
    """An installed approach that cannot be imported."""

    name: str
    distribution: str
    reason: str


class Registry:
    """The approaches installed in this environment.

    Parameters
    ----------
    points : list of EntryPoint, optional
        Default: those of the environment.
    """

    def __init__(self, points: list[EntryPoint] | None = None) -> None:
        found: dict[str, list[EntryPoint]] = defaultdict(list)
        for point in entry_points(group=GROUP) if points is None else points:
            if point not in found[point.name]:
                found[point.name].append(point)
        self._points = dict(sorted(found.items()))

    def names(self) -> list[str]:
        """Return the names of all installed approaches, broken ones included."""
        return list(self._points)

    def load(self, name: str) -> type[Approach]:
        """Return the approach class called `name` (its name or its abbreviation in the study).

        Raises
        ------
        ModelfixError
            If the name is unknown (with suggestions), used by two packages, or if its package
            cannot be imported.
        """
        if name not in self._points:
            return self._by_abbreviation(name)
        points = self._points[name]
        if len(points) > 1:
            owners = " and ".join(sorted(_owner(point) for point in points))
            raise ModelfixError(
                f"approach {name!r} is provided twice, by {owners}; uninstall one of them."
            )
        return _load(points[0])

    def infos(self) -> tuple[list[ApproachInfo], list[Broken]]:
        """Return the metadata of every approach that loads, and what is wrong with the others."""
        infos, broken = [], []
        for name, points in self._points.items():
            try:
                infos.append(self.load(name).info)
            except ModelfixError as error:
                broken.append(Broken(name, _owner(points[0]), str(error)))
        return infos, broken

    def _by_abbreviation(self, name: str) -> type[Approach]:
        infos, broken = self.infos()
        for info in infos:
            if info.abbreviation.lower() == name.lower():
                return self.load(info.name)
        raise ModelfixError(unknown(name, [*self._points, *(b.name for b in broken)]))


def unknown(name: str, known: list[str]) -> str:
    """Say that there is no approach `name` and which ones may have been meant."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}."
    return f"there is no approach {name!r}; {hint}"


def _load(point: EntryPoint) -> type[Approach]:
    try:
        loaded = point.load()
    except Exception as error:  # a plug-in may fail in any way; it must not take the tool down
        raise ModelfixError(
            f"approach {point.name!r} of {_owner(point)} cannot be loaded "
            f"({type(error).__name__}: {error}); reinstall or uninstall it."
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Approach)):
        raise ModelfixError(
            f"approach {point.name!r} of {_owner(point)} is no modelfix approach: "
            f"{point.value} is not a subclass of Approach."
        )
    return loaded


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
