"""Which approaches can be applied to a subject, found out before any work."""

from collections.abc import Iterable
from dataclasses import dataclass

from modelfix_core.approach import ApproachInfo, Task
from modelfix_core.errors import Unadaptable
from modelfix_core.subject import Subject

from modelfix.catalogue import Catalogue


@dataclass(frozen=True)
class Applicability:
    """Whether an approach can be applied.

    Attributes
    ----------
    approach, category : str
    applicable : bool or None
        None if it is not installed here and so cannot be asked.
    reason : str or None
        Why not, or why it is not known.
    """

    approach: str
    category: str
    applicable: bool | None
    reason: str | None = None


def applicability(
    subject: Subject, infos: Iterable[ApproachInfo], catalogue: Catalogue
) -> list[Applicability]:
    """Ask approaches, in their default preset, whether they can be applied to a subject."""
    dataset = subject.dataset(("train", "validation", "repair"))
    task = Task(
        model=subject.model,
        repair=dataset["repair"],
        validation=dataset["validation"],
        train=dataset.get("train"),
        history=subject.history,
        risks=dataset.risks,
    )
    return [_ask(info, task, catalogue) for info in infos]


def _ask(info: ApproachInfo, task: Task, catalogue: Catalogue) -> Applicability:
    if info.name not in catalogue.installed:
        reason = f"not installed here: pip install modelfix-{info.name}"
        return Applicability(info.name, info.category, None, reason)
    try:
        catalogue.registry.load(info.name)().check(task)
    except Unadaptable as unfit:
        return Applicability(info.name, info.category, False, str(unfit))
    return Applicability(info.name, info.category, True)
