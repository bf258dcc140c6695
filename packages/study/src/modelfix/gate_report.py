"""What the release gate leaves for people and for CI systems: lists, pictures, JUnit."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from modelfix_core.files import atomic_path, write_text

from modelfix.gate import Answers, Verdict
from modelfix.pictures import GREEN, MOST_GROUPS, RED, SHOWN, Group, Tile, contact_sheet

BROKEN, FIXED, FLIPS, COMPARISON = (
    "newly-broken.png", "newly-fixed.png", "flips.csv", "comparison.json",
)  # fmt: skip
COLUMNS = ("id", "file", "change", "label", "old", "new", "group")
LISTED = 50  # inputs named in a JUnit failure
CAPTION = 19  # letters below a picture


def write_folder(folder: Path, verdict: Verdict, answers: Answers) -> list[Path]:
    """Write the comparison, the list of flips and a contact sheet per direction.

    Sheets are written where there is something to show; those of an earlier run go.

    Returns
    -------
    list of Path
        What was written.
    """
    folder = Path(folder)
    comparison, flips = folder / COMPARISON, folder / FLIPS
    write_text(comparison, json.dumps(verdict.as_dict(), indent=2) + "\n")
    write_flips(flips, verdict, answers)
    written = [comparison, flips]
    for name, rows, said, word, colour in (
        (BROKEN, verdict.newly_broken, answers.new, "now", RED),
        (FIXED, verdict.newly_fixed, answers.old, "was", GREEN),
    ):
        path = folder / name
        path.unlink(missing_ok=True)
        if rows:
            contact_sheet(_by_label(rows, said, word, colour, answers), path)
            written.append(path)
    return written


def write_flips(path: Path, verdict: Verdict, answers: Answers) -> None:
    """Write one line of CSV per input that is newly fixed or newly broken, broken ones first."""
    split, inputs = answers.inputs.split, answers.inputs
    old, new = answers.old, answers.new
    changes = [("broken", i) for i in verdict.newly_broken]
    changes += [("fixed", i) for i in verdict.newly_fixed]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for change, i in changes:
            group = "" if split.group is None else int(split.group[i])
            if split.group is not None and inputs.groups:
                group = inputs.groups[int(split.group[i])]
            writer.writerow(
                {
                    "id": int(split.ids[i]),
                    "file": inputs.files[i] if inputs.files else "",
                    "change": change,
                    "label": _class(answers, split.y[i]),
                    "old": _class(answers, old[i]),
                    "new": _class(answers, new[i]),
                    "group": group,
                }
            )


def _class(answers: Answers, number: int) -> str:
    """Return the name of a predicted class; a model may know more classes than the data have."""
    classes = answers.inputs.classes
    if number < 0:
        return "NaN"
    return classes[number] if number < len(classes) else str(number)


def _by_label(
    rows: Sequence[int], said: np.ndarray, word: str, colour: str, answers: Answers
) -> list[Group]:
    """Return a row of images per label, the most frequent label first."""
    split = answers.inputs.split
    found: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        found[int(split.y[row])].append(row)
    largest = sorted(found, key=lambda label: (-len(found[label]), label))[:MOST_GROUPS]

    def tile(row: int) -> Tile:
        name = answers.inputs.named(row)[-CAPTION:]
        return Tile(split.x[row], (name, f"{word} {_class(answers, said[row])}"[:CAPTION]))

    return [
        Group(
            f"{_class(answers, label)}: {len(found[label])} of {len(rows)}",
            [tile(row) for row in found[label][:SHOWN]],
            colour,
        )
        for label in largest
    ]


def junit(path: Path, verdict: Verdict, answers: Answers, name: str) -> None:
    """Write the checks as test cases of a JUnit file, which CI systems show.

    Parameters
    ----------
    path : Path
    verdict : Verdict
    answers : Answers
    name : str
        Of the comparison, such as ``old.onnx -> new.onnx``.
    """
    failures = sum(not check.passed for check in verdict.checks)
    suite = ElementTree.Element(
        "testsuite", name="modelfix compare", tests=str(len(verdict.checks)),
        failures=str(failures), errors="0", skipped="0",
    )  # fmt: skip
    properties = ElementTree.SubElement(suite, "properties")
    for key in ("inputs", "accuracy_before", "accuracy_after", "repair_rate", "nfr"):
        ElementTree.SubElement(properties, "property", name=key, value=str(getattr(verdict, key)))
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=check.name)
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", message=check.words)
            failure.text = _listed(verdict, answers)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    write_text(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def _listed(verdict: Verdict, answers: Answers) -> str:
    new, y = answers.new, answers.inputs.split.y
    lines = [
        f"{answers.inputs.named(i)}: {_class(answers, y[i])}, now {_class(answers, new[i])}"
        for i in verdict.newly_broken[:LISTED]
    ]
    more = len(verdict.newly_broken) - len(lines)
    return "\n".join(["newly broken:", *lines, *([f"and {more} more"] if more else [])])
