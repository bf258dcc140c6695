"""Every approach there is: those installed here, and those known to be published."""

import json
from dataclasses import asdict
from importlib.resources import as_file, files

from modelfix_core.approach import ApproachInfo, Category, Framework, Need
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_core.registry import Registry, unknown

FILE = "catalogue.json"
_ORDER = list(Category)


class Catalogue:
    """Metadata of approaches.

    Attributes
    ----------
    infos : dict of str to ApproachInfo
        By name; sorted by category, then name.
    installed : set of str
        Names of those that this environment can import (in a checkout: all).
    broken : list of Broken
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry or Registry()
        here, self.broken = self.registry.infos()
        self.installed = {info.name for info in here}
        everything = {info.name: info for info in [*published(), *here]}
        ordered = sorted(everything.values(), key=lambda i: (_ORDER.index(i.category), i.name))
        self.infos = {info.name: info for info in ordered}

    def find(self, name: str) -> ApproachInfo:
        """Return the approach of that name or abbreviation; an error suggests close names."""
        broken = next((b for b in self.broken if b.name == name), None)
        if broken is not None:
            raise ModelfixError(broken.reason)
        for info in self.infos.values():
            if name.lower() in (info.name, info.abbreviation.lower()):
                return info
        raise ModelfixError(unknown(name, list(self.infos)))


def published() -> list[ApproachInfo]:
    """Return the approaches of this version, as the shipped catalogue states them."""
    return [_from_dict(entry) for entry in json.loads(files("modelfix").joinpath(FILE).read_text())]


def as_dict(info: ApproachInfo) -> dict:
    """Return the metadata as plain JSON values."""
    return {**asdict(info), "needs": sorted(info.needs)}


def render(infos: list[ApproachInfo]) -> str:
    """Return the content of the catalogue file for these approaches."""
    entries = [as_dict(info) for info in sorted(infos, key=lambda info: info.name)]
    return json.dumps(entries, indent=2) + "\n"


def _from_dict(entry: dict) -> ApproachInfo:
    return ApproachInfo(
        **{
            **entry,
            "category": Category(entry["category"]),
            "framework": Framework(entry["framework"]),
            "needs": frozenset(Need(need) for need in entry["needs"]),
        }
    )


def refresh() -> None:
    """Write the catalogue of the approaches installed here into the package (a checkout's)."""
    infos, _ = Registry().infos()
    with as_file(files("modelfix").joinpath(FILE)) as path:
        write_text(path, render(infos))


if __name__ == "__main__":
    refresh()
