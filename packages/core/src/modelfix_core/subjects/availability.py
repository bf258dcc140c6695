"""Which subjects are there, and what it takes to get the others; nothing is read or downloaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelfix_core.subject import CARD_FILE
from modelfix_core.subjects.catalogue import NamedSubject

State = Literal["ready", "can be prepared", "needs download", "needs manual download"]


@dataclass(frozen=True)
class Availability:
    """The state of a named subject and, as one sentence, what follows from it."""

    state: State
    how: str


def availability(subject: NamedSubject, root: str | Path, data: Path | None = None) -> Availability:
    """Say whether a subject is prepared below `root`, and if not, how it gets there.

    Parameters
    ----------
    subject : NamedSubject
    root : str or Path
        Holds the prepared subjects.
    data : Path, optional
        As of `prepare`.
    """
    folder = Path(root) / subject.name
    if (folder / CARD_FILE).exists():
        return Availability("ready", f"Prepared in {folder}.")
    origin = subject.origin
    found = origin.find(data)
    if found is not None:
        place = "comes with modelfix" if origin.shipped else f"was found in {found}"
        return Availability("can be prepared", f"{origin.title} {place}.")
    if origin.automatic:
        return Availability(
            "needs download", f"{origin.title} is downloaded when the subject is prepared."
        )
    sentence = origin.how_to_get(data)
    return Availability("needs manual download", f"{sentence[0].upper()}{sentence[1:]}.")
