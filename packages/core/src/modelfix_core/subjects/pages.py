"""The pages of the named subjects: ``python -m modelfix_core.subjects.pages FOLDER``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelfix_core.files import write_text
from modelfix_core.subjects.catalogue import CATALOGUE, NamedSubject
from modelfix_core.subjects.pretrained import WEIGHTS
from modelfix_core.subjects.sources.base import DATA_VARIABLE

OVERVIEW = "README"
DATA = Path("DATA")  # stands for the user's folder in what a page says


def pages() -> Mapping[str, str]:
    """Return the text of every page by its name, from the definitions alone."""
    texts = {name: _page(subject) for name, subject in CATALOGUE.items()}
    return {OVERVIEW: _overview(), **texts}


def _overview() -> str:
    rows = [
        (
            f"[{name}]({name}.md)",
            s.origin.title,
            s.architecture,
            str(len(s.origin.classes)),
            " / ".join(f"{size:,}" for size in s.splits.values()),
            s.group_name or "",
        )
        for name, s in CATALOGUE.items()
    ]
    return "\n".join(
        [
            "# Subjects",
            "",
            "A subject is a data set, an architecture, a training recipe and evaluation settings.",
            "`modelfix subjects` says which are prepared and what the others need.",
            "",
            *_table(
                ("subject", "images", "architecture", "classes", "splits", "sensitive attribute"),
                rows,
            ),
            "",
            "Splits are train / validation / repair / test. The pages are made from the",
            "definitions by `python -m modelfix_core.subjects.pages docs/subjects`.",
            "",
        ]
    )


def _page(s: NamedSubject) -> str:
    channels, height, width = s.input_shape
    facts = [
        ("images", f"[{s.origin.title}]({s.origin.homepage}), licence: {s.origin.licence}"),
        ("input", f"{channels} x {height} x {width}, values in [0, 1]"),
        ("classes", str(len(s.origin.classes))),
        *((f"{name} split", f"{size:,} images") for name, size in s.splits.items()),
        ("architecture", s.architecture),
        ("attack epsilon", f"{s.attack_epsilon:g} in pixel space"),
        ("sensitive attribute", s.group_name or "none"),
        ("class risks", _risks(s)),
    ]
    return "\n".join(
        [
            f"# {s.name}",
            "",
            s.summary,
            "",
            *_table(("", ""), facts),
            "",
            "## Training",
            "",
            *_training(s),
            "",
            "## Data",
            "",
            *_data(s),
            "",
            "## Prepare it",
            "",
            "```",
            f"nox -s prepare -- {s.name}",
            "```",
            "",
        ]
    )


def _risks(s: NamedSubject) -> str:
    if s.risks is None:
        return "none"
    shown = [f"{name} {weight:g}" for name, weight in list(s.risks.items())[:8]]
    more = len(s.risks) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _training(s: NamedSubject) -> list[str]:
    if s.pretrained is not None:
        weights = WEIGHTS[s.pretrained]
        return [
            f"None: the weights come trained, as `{weights.file}` from <{weights.address}>.",
            "They are searched in the data folder and the cache (also in `weights/`), then "
            "downloaded. There is no training history.",
        ]
    rows = [(name, "" if value is None else str(value)) for name, value in s.training.items()]
    return _table(("option", "value"), rows)


def _data(s: NamedSubject) -> list[str]:
    if s.origin.shipped:
        return ["The images come with modelfix."]
    places = f"The folder of `{DATA_VARIABLE}` is searched first, then the cache"
    by_hand = s.origin.how_to_get(DATA)
    if s.origin.automatic:
        return [f"{places}; else they are downloaded. By hand: {by_hand}."]
    return [f"{places}. They are not downloaded: {by_hand}."]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [heads, ("---",) * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def main(arguments: list[str]) -> int:
    """Write all pages into the folder given, and remove those of subjects that are gone."""
    folder = Path(arguments[0])
    for old in folder.glob("*.md"):
        if old.stem not in pages():
            old.unlink()
    for name, text in pages().items():
        write_text(folder / f"{name}.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
