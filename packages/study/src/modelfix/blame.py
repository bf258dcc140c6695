"""Score localisations on planted faults: every approach that localises, on one subject."""

from typing import Any

from modelfix_core.approach import ApproachInfo
from modelfix_core.errors import ModelfixError
from modelfix_core.job import Job
from modelfix_core.planting import load_truth, score_blame
from modelfix_core.subject import Subject
from modelfix_core.subjects.planted import TRUTH_FILE

from modelfix import cells
from modelfix.catalogue import Catalogue
from modelfix.explanation import Explanation
from modelfix.runtimes import Runtimes


def localising(catalogue: Catalogue, names: list[str] | None = None) -> list[ApproachInfo]:
    """Return the approaches that say what is to blame: those named, or all.

    Raises
    ------
    ModelfixError
        If a named approach is unknown or does not localise.
    """
    if not names:
        return [info for info in catalogue.infos.values() if info.localises]
    infos = [catalogue.find(name) for name in names]
    for info in infos:
        if not info.localises:
            raise ModelfixError(
                f"{info.name}: does not say what is to blame, so there is no score."
            )
    return infos


def score(
    home: cells.Home,
    runtimes: Runtimes,
    planted: Subject,
    approach: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    seconds: float | None = None,
) -> dict[str, Any]:
    """Run an approach with its defaults on a planted fault and score what it blames.

    Returns
    -------
    dict
        approach, outcome, reason, record, score (see `BlameScore`; None where nothing was blamed)
        and repair_rate on the test split (None without a fixed model).
    """
    subject = planted.card.name
    job = Job(
        approach=approach,
        subject=planted.folder,
        record=home.record(subject, approach, 1),
        seed=seed,
        device=device,
        seconds=seconds,
    )
    cell = cells.fix(home, runtimes, job)
    explanation = Explanation(cell.folder)
    repair_rate = None
    if explanation.fixed is not None:
        (record,) = cells.evaluate(runtimes, [cell.folder], planted.folder, ["--no-attack"])
        metrics = (record.evaluation or {}).get("metrics", {})
        repair_rate = metrics.get("repair_rate", {}).get("value")
    blamed = explanation.localisation
    truth = load_truth(planted.model, planted.folder / TRUTH_FILE)
    return {
        "approach": approach,
        "outcome": cell.record.outcome,
        "reason": cell.record.reason,
        "record": str(cell.folder),
        "score": None if blamed is None else score_blame(blamed, truth).as_dict(),
        "repair_rate": repair_rate,
    }
