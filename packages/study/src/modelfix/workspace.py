"""The checkout: which members there are and which environments they run in.

Standard library only, because the noxfile uses it before anything is installed.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

APPROACHES = "approaches-"
COMMAND = "modelfix"
DEFAULT_EXTRAS = ("test",)


def bounds(version: str) -> str:
    """Return what members demand of each other in a version: ``>=0.1,<0.2`` in 0.1.0."""
    major, minor = version.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


@dataclass(frozen=True)
class Environment:
    """An isolated environment: one lock and the members in it.

    Attributes
    ----------
    name : str
        Of the lock ``locks/<name>.txt``.
    member : Member
    extras : tuple of str
        Extras of the member that the lock includes.
    """

    name: str
    member: "Member"
    extras: tuple[str, ...]

    @property
    def tests(self) -> list[str]:
        """Arguments for pytest: ``tests/<part>`` for environment ``<member>-<part>``."""
        folder = self.member.folder / "tests"
        part = _part(self.name, self.member.name)
        if part:
            return [str(folder / part)]
        parts = [_part(env.name, self.member.name) for env in self.member.environments]
        return [str(folder), *(f"--ignore={folder / other}" for other in parts if other)]


def _part(environment: str, member: str) -> str:
    """Return ``torch`` for ``core-torch``; nothing for a member's main environment."""
    prefix = f"{member}-"
    return environment.removeprefix(prefix) if environment.startswith(prefix) else ""


@dataclass(frozen=True)
class Member:
    """A package of the workspace.

    Attributes
    ----------
    name : str
        Name of its folder: ``core``, ``arachne``.
    folder : Path
    distribution : str
        Name on an index: ``modelfix-core``.
    category : str or None
        ``model``, ``layer`` or ``neuron`` for an approach.
    """

    name: str
    folder: Path
    distribution: str
    category: str | None
    project: dict

    @property
    def import_name(self) -> str:
        """The name to import: ``modelfix_core``."""
        return self.distribution.replace("-", "_")

    @property
    def environments(self) -> list[Environment]:
        """The environments that the member states; by default one of its own name."""
        stated = self.project.get("tool", {}).get("modelfix", {}).get("environments")
        stated = stated or {self.name: DEFAULT_EXTRAS}
        return [Environment(name, self, tuple(extras)) for name, extras in stated.items()]

    @property
    def session(self) -> str | None:
        """The nox session that runs the approach, if it is one."""
        return None if self.category is None else f"fix-{self.category}-{self.name}"

    def requirements(self, extras: tuple[str, ...]) -> Iterator[str]:
        """Yield the names of the distributions that the member asks for, with these extras."""
        project = self.project["project"]
        optional = project.get("optional-dependencies", {})
        wanted = [*project.get("dependencies", [])]
        wanted += [line for extra in extras for line in optional.get(extra, [])]
        for line in wanted:
            match = re.match(r"[A-Za-z0-9._-]+", line)
            if match and match.group() != self.distribution:
                yield match.group()


class Workspace:
    """A checkout of modelfix.

    Parameters
    ----------
    root : Path
        The folder of the workspace's ``pyproject.toml``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with (root / "pyproject.toml").open("rb") as file:
            patterns = tomllib.load(file)["tool"]["uv"]["workspace"]["members"]
        folders = [path for pattern in patterns for path in sorted(root.glob(pattern))]
        self.members = [_member(f) for f in folders if (f / "pyproject.toml").exists()]

    @classmethod
    def find(cls) -> "Workspace | None":
        """Return the checkout that this package runs from, if it runs from one."""
        for folder in Path(__file__).resolve().parents:
            if (folder / "noxfile.py").exists() and (folder / "locks").is_dir():
                return cls(folder)
        return None

    @property
    def approaches(self) -> list[Member]:
        """The members that are approaches."""
        return [member for member in self.members if member.category is not None]

    @property
    def environments(self) -> dict[str, Environment]:
        """Every environment by name."""
        return {env.name: env for member in self.members for env in member.environments}

    def lock(self, environment: Environment) -> Path:
        """Return the committed lock of an environment."""
        return self.root / "locks" / f"{environment.name}.txt"

    def closure(self, environment: Environment) -> list[Member]:
        """Return the members that an environment needs, the environment's own first.

        The command's environment holds every approach, without the libraries of any: what it reads
        of them (metadata, applicability) needs none.
        """
        known = {member.distribution: member for member in self.members}
        found: dict[str, Member] = {environment.member.name: environment.member}
        waiting = list(environment.member.requirements(environment.extras))
        while waiting:
            member = known.get(waiting.pop())
            if member is not None and member.name not in found:
                found[member.name] = member
                waiting += member.requirements(())
        if environment.member.distribution == COMMAND:
            found |= {member.name: member for member in self.approaches}
        return list(found.values())


def _member(folder: Path) -> Member:
    with (folder / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    group = folder.parent.name
    category = group.removeprefix(APPROACHES) if group.startswith(APPROACHES) else None
    return Member(folder.name, folder, project["project"]["name"], category, project)
