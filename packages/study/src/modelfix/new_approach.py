"""``modelfix new``: the package of a new approach, whose standard tests pass from the start."""

import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import as_file, files
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from modelfix import __version__
from modelfix.workspace import APPROACHES, Workspace, bounds

# Names that mean something else: other members, and what `fix --approach` understands itself.
RESERVED = {"auto", "core", "metrics", "stats", "study", "testing"}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LISTED = re.compile(r'^    "(modelfix_\w+)",$')
SOURCE = re.compile(r"^(modelfix-[\w-]+) = \{ workspace = true \}$")
EXTRA_OF = re.compile(r'^    "(modelfix-[\w-]+)>=[\d.]+,<[\d.]+",$')
WORKSPACE = "{ workspace = true }"
EXTRA = "pip install 'modelfix[new]'"


class Level(StrEnum):
    """Where the approach changes the model."""

    MODEL = "model"
    LAYER = "layer"
    NEURON = "neuron"


class Bridge(StrEnum):
    """What the approach computes with."""

    TORCH = "torch"
    TENSORFLOW = "tensorflow"


TITLES = {Bridge.TORCH: "PyTorch", Bridge.TENSORFLOW: "TensorFlow"}


@dataclass(frozen=True)
class Plan:
    """Answers to the template's questions."""

    name: str
    category: Level
    framework: Bridge
    title: str
    abbreviation: str

    @property
    def module(self) -> str:
        """Import name of the package."""
        return f"modelfix_{self.name.replace('-', '_')}"

    def answers(self) -> dict[str, str]:
        """Return what the template asks for."""
        class_name = "".join(part.capitalize() for part in self.name.split("-"))
        return {
            "name": self.name,
            "category": self.category.value,
            "framework": self.framework.value,
            "title": self.title,
            "abbreviation": self.abbreviation,
            "class_name": class_name,
            "version": __version__,
            "bounds": bounds(__version__),
        }


def new(
    category: Annotated[Level, typer.Argument(help="Where it changes the model.")],
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and -: my-approach.")],
    framework: Annotated[
        Bridge, typer.Option("--framework", "-f", help="What it computes with.")
    ] = Bridge.TORCH,
    title: Annotated[
        str | None, typer.Option(help="As its paper writes it; default from the name.")
    ] = None,
    abbreviation: Annotated[
        str | None, typer.Option(help="Heads columns of tables; default the initials.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to make; default its place in the checkout."),
    ] = None,
) -> None:
    """Make the package of a new approach: its tests pass, its algorithm waits to be replaced.

    Example: modelfix new neuron my-approach --framework tensorflow
    """
    plan = _plan(name, category, framework, title, abbreviation)
    workspace = Workspace.find() if output is None else None
    if workspace is None:
        folder = output or Path(f"modelfix-{name}")
    else:
        folder = workspace.root / "packages" / f"{APPROACHES}{category.value}" / name
    render(plan, folder)
    if workspace is None:
        print(f"{folder}")
        print(f"next: pip install -e '{folder}[test]' && pytest {folder}/tests")
        return
    for changed in settle(plan, folder, workspace.root):
        print(changed.relative_to(workspace.root))
    print(
        f"next: nox -s lock -- {name} && nox -s catalogue && nox -s tests-{name} && "
        f"nox -s fix-{category.value}-{name}"
    )


def _plan(
    name: str, category: Level, framework: Bridge, title: str | None, abbreviation: str | None
) -> Plan:
    from modelfix_core.errors import ModelfixError

    from modelfix.catalogue import Catalogue

    if not NAME.fullmatch(name):
        raise ModelfixError(
            f"{name!r} cannot be the name of an approach; use lower-case letters, digits and '-', "
            "such as my-approach."
        )
    if name in RESERVED:
        raise ModelfixError(f"{name!r} means something else in modelfix; choose another name.")
    parts = name.split("-")
    title = title or " ".join(part.capitalize() for part in parts)
    abbreviation = abbreviation or "".join(part[0] for part in parts).upper()
    for text in (title, abbreviation):
        if not text.isprintable() or set(text) & set('"\\{}'):
            raise ModelfixError(f"{text!r} holds characters that a title cannot have.")
    for info in Catalogue().infos.values():
        if info.name == name:
            raise ModelfixError(f"there is an approach {name!r} already; choose another name.")
        if info.abbreviation.lower() == abbreviation.lower():
            raise ModelfixError(
                f"{info.title} has the abbreviation {info.abbreviation} already; give another one "
                "with --abbreviation."
            )
    return Plan(name, category, framework, title, abbreviation)


def render(plan: Plan, folder: Path) -> None:
    """Write the package into `folder`, which must not exist.

    Raises
    ------
    ModelfixError
        If the folder exists or copier is not installed.
    """
    from modelfix_core.errors import ModelfixError

    if folder.exists():
        raise ModelfixError(f"{folder}: exists already; remove it or choose another name.")
    try:
        import copier
    except ImportError as error:
        raise ModelfixError(f"the template needs copier; install it with {EXTRA}.") from error
    with as_file(files("modelfix") / "templates" / "approach") as template:
        copier.run_copy(str(template), str(folder), data=plan.answers(), defaults=True, quiet=True)


def settle(plan: Plan, folder: Path, root: Path) -> list[Path]:
    """Give the new package its place in a checkout and return what was written.

    Its benchmark goes to the others; the contracts between the packages, the extras of the command
    and the list of approaches name it.
    """
    from modelfix_core.approach import Framework

    from modelfix.catalogue import Catalogue

    (benchmark,) = (folder / "benchmarks").iterdir()
    target = root / "benchmarks" / benchmark.name
    shutil.move(benchmark, target)
    (folder / "benchmarks").rmdir()
    members = [member for member in Workspace(root).approaches if member.name != plan.name]
    modules = {member.import_name for member in members}
    distributions = {member.distribution for member in members}
    infos = Catalogue().infos
    alike = {
        member.distribution
        for member in members
        if infos[member.name].category == plan.category
        and infos[member.name].framework in (plan.framework, Framework.NONE)
    }
    name = f"modelfix-{plan.name}"
    contracts, extras, readme = (
        root / "pyproject.toml", root / "packages" / "study" / "pyproject.toml", root / "README.md",
    )  # fmt: skip
    edits: list[tuple[Path, Callable[[str], str]]] = [
        (contracts, lambda text: listed(text, LISTED, modules, f'    "{plan.module}",')),
        (contracts, lambda text: listed(text, SOURCE, distributions, f"{name} = {WORKSPACE}")),
        (extras, lambda text: listed(text, EXTRA_OF, alike, f'    "{name}{bounds(__version__)}",')),
        (readme, lambda text: with_row(text, plan, folder.relative_to(root).as_posix())),
    ]
    for path, edit in edits:
        path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    return [folder, target, contracts, extras, readme]


def listed(text: str, pattern: re.Pattern[str], known: Collection[str], line: str) -> str:
    """Return `text` with `line` in its place in every list of lines that names one of `known`.

    Parameters
    ----------
    text : str
    pattern : re.Pattern
        A line of such a list; its first group is the name.
    known : collection of str
        Names of those beside which the new one belongs.
    line : str
    """
    result: list[str] = []
    for matches, lines in groupby(text.split("\n"), key=lambda one: bool(pattern.match(one))):
        part = list(lines)
        if matches and set(known) & {pattern.sub(r"\1", one) for one in part}:
            part = sorted({*part, line})
        result += part
    return "\n".join(result)


def with_row(text: str, plan: Plan, place: str) -> str:
    """Return the README with a row for the approach behind the last one of its category."""
    row = (
        f"| [{plan.title}]({place}) | {plan.abbreviation} | {plan.category.value} | "
        f"{TITLES[plan.framework]} | `nox -s fix-{plan.category.value}-{plan.name}` |"
    )
    lines = text.split("\n")
    session = f"`nox -s fix-{plan.category.value}-"
    same = [i for i, line in enumerate(lines) if line.startswith("| [") and session in line]
    lines.insert(same[-1] + 1, row)
    return "\n".join(lines)
