"""What may be wrong with this machine, the environments and the prepared subjects."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from modelfix_core.errors import ModelfixError
from modelfix_core.subject import Subject, prepared_subjects

from modelfix.catalogue import Catalogue
from modelfix.environments import EnvironmentFailed, find_uv
from modelfix.workspace import Workspace

ENOUGH_DISK = 8 * 1024**3  # bytes: an environment with torch and its CUDA libraries takes 5.4 GB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str

    def as_dict(self) -> dict:
        """Return plain JSON values."""
        return asdict(self)


def examine(home: Path, subject: str | None) -> list[Finding]:
    """Look at everything, or at one subject thoroughly: files, labels, images, predictions."""
    if subject is not None:
        return list(_subject(home / "subjects" / subject))
    return [*_machine(home), *_approaches(), *_data(), *_subjects(home / "subjects")]


def _machine(home: Path) -> Iterator[Finding]:
    yield Finding("Python", True, f"{platform.python_version()} on {platform.platform()}")
    try:
        yield Finding("uv", True, find_uv())
    except EnvironmentFailed as error:
        yield Finding("uv", False, str(error))
    workspace = Workspace.find()
    if workspace is None:
        yield Finding("environments", True, "made from published packages")
    else:
        folder = workspace.root / ".modelfix" / "environments"
        made = sorted(path.parent.name for path in folder.glob("*/modelfix.json"))
        yield Finding(
            "environments", True, f"of the checkout; made: {', '.join(made) or 'none yet'}"
        )
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / 1024**3:.0f} GiB free"
    if free < ENOUGH_DISK:
        detail += "; an environment may need 8 GiB, free some space"
    yield Finding("disk", free >= ENOUGH_DISK, detail)
    writable = os.access(place, os.W_OK)
    yield Finding("home", writable, f"{home}" if writable else f"{home} cannot be written")


def _approaches() -> Iterator[Finding]:
    catalogue = Catalogue()
    names = ", ".join(catalogue.infos) or "none"
    yield Finding("approaches", True, names)
    for broken in catalogue.broken:
        yield Finding(broken.name, False, broken.reason)


def _data() -> Iterator[Finding]:
    text = os.environ.get("MODELFIX_DATA")
    if text is None:
        yield Finding("MODELFIX_DATA", True, "not set: data sets are downloaded when needed")
        return
    found = Path(text).is_dir()
    detail = text if found else f"{text} is not a folder; set it to the folder of your data sets"
    yield Finding("MODELFIX_DATA", found, detail)


def _subjects(folder: Path) -> Iterator[Finding]:
    subjects, problems = prepared_subjects(folder)
    for subject in subjects:
        accuracy = f"validation accuracy {subject.card.validation_accuracy:.2%}"
        yield Finding(f"subject {subject.card.name}", True, accuracy)
    for problem in problems:
        yield Finding("subject", False, problem)


def _subject(folder: Path) -> Iterator[Finding]:
    from modelfix.checkup import check_up

    try:
        subject = Subject.load(folder)
    except ModelfixError as error:
        yield Finding(folder.name, False, str(error))
        return
    yield from (Finding(*symptom) for symptom in check_up(subject))
