"""The pages of the approaches: from their metadata, their presets and what `check` says."""

import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from modelfix.catalogue import Catalogue
from modelfix_core import Approach, ApproachInfo, Category, Split, Task
from modelfix_core.errors import Unadaptable
from modelfix_testing import STUDY_SUBJECTS, study_task

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs" / "evidence"
MEASURED_ON = "mnist-lenet5"
FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow", "none": "none"}
CERTAINTY = {
    "code": "the authors' code",
    "paper": "the paper; its code is not public",
    "study-text": "the study's text and abstracts; neither the full paper nor its code is public",
}
NEEDS = {
    "train": "train split",
    "validation": "validation split",
    "repair": "repair split",
    "history": "models of earlier epochs",
    "risks": "class risks",
    "gradients": "gradients",
    "images": "images as input",
}
IMAGES_PER_CLASS = 300  # enough for the approach that asks for most
ROW = re.compile(rf"^\|[^|]+\| (\S+) \| {MEASURED_ON} \| (.+) \|$", re.MULTILINE)


@cache
def catalogue() -> Catalogue:
    """Return the approaches of this checkout."""
    return Catalogue()


def by_category() -> dict[Category, list[ApproachInfo]]:
    """Return the metadata of all approaches, by level."""
    infos = list(catalogue().infos.values())
    return {c: [info for info in infos if info.category == c] for c in Category}


def load(info: ApproachInfo) -> type[Approach]:
    """Return the class of an approach."""
    return catalogue().registry.load(info.name)


@cache
def reasons() -> dict[tuple[str, str], str]:
    """Return why an approach cannot be applied to a subject of the study, by name and subject.

    `check` reads the graph only, so it is asked about untrained models and black images.
    """
    found = {}
    for subject in STUDY_SUBJECTS:
        with tempfile.TemporaryDirectory() as folder:
            task = _enough_images(study_task(subject, Path(folder), width=1))
            for name in catalogue().infos:
                try:
                    catalogue().registry.load(name)().check(task)
                except Unadaptable as reason:
                    found[name, subject] = str(reason)
    return found


def _enough_images(task: Task) -> Task:
    labels = np.arange(IMAGES_PER_CLASS * task.model.num_classes) % task.model.num_classes
    black = np.broadcast_to(np.uint8(0), (len(labels), *task.repair.x.shape[1:]))
    for split in ("train", "validation", "repair"):
        setattr(task, split, Split(black, labels))
    return task


@cache
def measured() -> dict[str, list[str]]:
    """Return accuracy, RR, NFR, ASR and time by abbreviation, from the tables of the evidence."""
    text = "".join(path.read_text() for path in sorted(EVIDENCE.glob("*.md")))
    rows = ROW.findall(re.sub(r" \([sd]\)", "", text))  # marks of a difference to the study
    return {name: cells.split(" | ") for name, cells in rows}


def pages(readmes: dict[str, str]) -> dict[str, str]:
    """Return the matrix and the page of every approach.

    Parameters
    ----------
    readmes : dict of str to str
        Text of the approaches' READMEs, by the path of the page.

    Returns
    -------
    dict of str to str
        Markdown by the path of the page.
    """
    made = {"approaches/index.md": _matrix()}
    for name, info in catalogue().infos.items():
        path = f"approaches/{name}.md"
        made[path] = _page(info, readmes[path])
    return made


# -- the matrix ------------------------------------------------------------------------------------


def _matrix() -> str:
    infos = list(catalogue().infos.values())
    what = [
        [
            _link(info),
            info.abbreviation,
            info.category,
            FRAMEWORKS[info.framework],
            *("●" if need in info.needs else "" for need in NEEDS),
            "●" if info.localises else "",
            "●" if info.deterministic else "",
        ]
        for info in infos
    ]
    where = [
        [_link(info), *(_applicable(info, subject) for subject in STUDY_SUBJECTS)] for info in infos
    ]
    subjects = [f"[{name}](../subjects/{name}.md)" for name in STUDY_SUBJECTS]
    results = [
        [_link(info), *measured()[info.abbreviation]]
        for info in infos
        if info.abbreviation in measured()
    ]
    missing = [_link(info) for info in infos if info.abbreviation not in measured()]
    return "\n".join(
        [
            "---",
            "hide: [toc]",
            "---",
            "",
            "# Comparison",
            "",
            "Sixteen approaches, one contract. `modelfix check --subject S` gives the second table"
            " for your own subject, before any work.",
            "",
            "## What they are and what they need",
            "",
            *_table(
                ["approach", "", "level", "framework", *NEEDS, "localises", "deterministic"], what
            ),
            "",
            "## Where they can be applied",
            "",
            "The study's five subjects, each asked of `check` when this page was built, on an"
            " untrained model of the same architecture. The reasons stand on the approach's page.",
            "",
            *_table(["approach", *subjects], where),
            "",
            f"## What they did on {MEASURED_ON}",
            "",
            "Three repetitions of the default preset; percent of the test split, original -> fixed"
            " model, mean ± standard deviation. From [the evidence](../evidence/README.md), which"
            " says how to read it, and where the values differ from the published ones.",
            "",
            *_table(["approach", "accuracy", "RR", "NFR", "ASR", "time"], results),
            "",
            *([f"Not measured three times yet: {', '.join(missing)}."] if missing else []),
            "",
        ]
    )


def _applicable(info: ApproachInfo, subject: str) -> str:
    return "**no**" if (info.name, subject) in reasons() else "yes"


def _link(info: ApproachInfo) -> str:
    return f"[{info.title}]({info.name}.md)"


# -- the page of an approach -----------------------------------------------------------------------


def _page(info: ApproachInfo, readme: str) -> str:
    facts = [
        ["abbreviation", info.abbreviation],
        ["level", info.category],
        ["framework", FRAMEWORKS[info.framework]],
        ["needs", ", ".join(text for need, text in NEEDS.items() if need in info.needs)],
        ["localises", "yes" if info.localises else "no"],
        ["deterministic", "yes" if info.deterministic else "no, the seed matters"],
        ["written from", CERTAINTY[info.certainty]],
        ["paper", info.paper],
        ["session", f"`nox -s fix-{info.category}-{info.name}`"],
    ]
    refused = [
        f"- `{subject}`: {reason}."
        for (name, subject), reason in reasons().items()
        if name == info.name
    ]
    return "\n".join(
        [
            f"# {info.title}",
            "",
            info.summary,
            "",
            *_table(["", ""], facts),
            "",
            *(["**UNADAPTABLE** among the study's subjects:", "", *refused, ""] if refused else []),
            _without_title(readme),
            "## All options, by preset",
            "",
            "`--preset NAME` chooses a preset, `--set OPTION=VALUE` changes an option.",
            "",
            *_presets(load(info)),
            "",
        ]
    )


def _presets(approach: type[Approach]) -> list[str]:
    names = list(approach.presets)
    configs = [approach(name).config for name in names]
    rows = []
    for option, field in approach.Config.model_fields.items():
        values = [_value(getattr(config, option)) for config in configs]
        rest = [value if value != values[0] else "same" for value in values[1:]]
        rows.append([f"`{option}`", values[0], *rest, field.description or ""])
    return _table(["option", *(f"`{name}`" for name in names), "meaning"], rows)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(_value(part) for part in value) or "none"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _without_title(readme: str) -> str:
    return re.sub(r"\A# .*\n", "", readme)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in lines]
