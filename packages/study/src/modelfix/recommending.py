"""Which approach to use: the records at hand, else the published study, put in order."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import modelfix_stats as ms
import pandas as pd
from modelfix_core.approach import ApproachInfo, Need
from modelfix_core.errors import ModelfixError
from modelfix_core.subject import Subject
from modelfix_stats import Recommendation

from modelfix import records
from modelfix.applicability import applicability
from modelfix.catalogue import Catalogue

# Every subject has these: a validation split is made of any data, models are differentiable, and
# whether the inputs are images an approach finds out for itself.
IMPLIED = frozenset({Need.VALIDATION, Need.GRADIENTS, Need.IMAGES})


def advise(
    runs: Iterable[Path] = (),
    *,
    subject: Subject | None = None,
    subjects: Collection[str] = (),
    priorities: Sequence[str] = ("repair",),
    max_nfr: float | None = None,
    max_seconds: float | None = None,
    given: Collection[Need] | None = None,
    categories: Collection[str] = (),
    catalogue: Catalogue | None = None,
) -> Recommendation:
    """Rank the approaches that can be applied, each line with its evidence.

    `Recommendation.approaches` are their names, best first: what to try in turn.

    Parameters
    ----------
    runs : iterable of Path
        Folders of records; those that do not exist are passed over.
    subject : Subject, optional
        A prepared subject to be fixed: approaches are asked whether they can be applied to it.
    subjects : collection of str
        Names of subjects whose records count before all others; `subject` is one of them.
    priorities : sequence of str
        Of accuracy, repair, robustness, fairness, compatibility, time; of equal weight.
    max_nfr : float, optional
        Largest mean negative flip rate, in [0, 1].
    max_seconds : float, optional
        Longest mean time of fixing.
    given : collection of Need, optional
        What the user has (train, repair, history, risks); default: everything.
    categories : collection of str
        Only approaches of these; default all.
    catalogue : Catalogue, optional

    Returns
    -------
    Recommendation

    Raises
    ------
    ModelfixError
        For an unknown priority, or records that cannot stand in one table.
    """
    catalogue = catalogue or Catalogue()
    infos = [i for i in catalogue.infos.values() if not categories or i.category in categories]
    names = list(dict.fromkeys([*([subject.card.name] if subject else []), *subjects]))
    found, damaged = records.find(place for place in runs if Path(place).exists())
    data = records.frame(records.without_planted(found, names))
    try:
        result = ms.recommend(
            data if len(data) else None,
            _about(infos, _blocked(subject, infos, catalogue)),
            priorities=priorities,
            max_nfr=max_nfr,
            max_seconds=max_seconds,
            given=None if given is None else {str(need) for need in IMPLIED | set(given)},
            subjects=names,
        )
    except ms.StatsError as error:
        raise ModelfixError(str(error)) from error
    notes = (*result.notes, *_unknown(found, catalogue), *damaged)
    return Recommendation(result.choices, result.left_out, notes)


def _unknown(found: Sequence[records.Found], catalogue: Catalogue) -> list[str]:
    """Say which approaches have records but are not known here, and so not ranked."""
    names = sorted({item.record.entrant.approach for item in found} - catalogue.infos.keys())
    return [f"Not ranked, for nothing is known of them here: {', '.join(names)}."] if names else []


def _blocked(
    subject: Subject | None, infos: Sequence[ApproachInfo], catalogue: Catalogue
) -> dict[str, str]:
    """Return why approaches cannot be applied to the subject, where that is known."""
    if subject is None:
        return {}
    return {
        row.approach: f"UNADAPTABLE on {subject.card.name} ({row.reason})"
        for row in applicability(subject, infos, catalogue)
        if row.applicable is False
    }


def _about(infos: Sequence[ApproachInfo], blocked: dict[str, str]) -> pd.DataFrame:
    rows = [
        {
            "approach": info.name,
            "category": str(info.category),
            "needs": {str(need) for need in info.needs},
            "blocked": blocked.get(info.name),
        }
        for info in infos
    ]
    return pd.DataFrame(rows, columns=["approach", "category", "needs", "blocked"])


def parse_duration(text: str, option: str) -> float:
    """Read ``90s``, ``10m``, ``1h30m`` or plain seconds.

    Raises
    ------
    ModelfixError
        If it is no duration above zero.
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    hours, minutes, seconds = (float(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ModelfixError(f"{option} {text!r}: expected a duration such as 90s, 10m or 1h30m.")
    return total
