"""Evaluate a record folder: predictions beside the fixed model, values into the record."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_core.model import Model
from modelfix_core.seeds import seed_for
from modelfix_core.subject import Subject

from modelfix_metrics import predictions as stored
from modelfix_metrics.attacks import ATTACKED, AttackOptions
from modelfix_metrics.evaluation import Evaluation, evaluate, versions
from modelfix_metrics.predictions import Predictions, inputs_hash

RECORD_FILE = "record.json"
FIXED_FILE = "fixed.onnx"
CACHE_FOLDER = ".attack-cache"
WITHOUT_MODEL = (Outcome.FAILURE, Outcome.UNADAPTABLE)


@dataclass(frozen=True)
class CellEvaluation:
    """What came of evaluating a record.

    Attributes
    ----------
    outcome : Outcome
        Of the record.
    evaluation : dict or None
        As stored in the record; None where there is no fixed model.
    reused : bool
        Whether a complete evaluation with the same settings and hashes was there already.
    """

    outcome: Outcome
    evaluation: dict[str, Any] | None
    reused: bool = False


def evaluate_record(
    record: str | Path,
    subject: str | Path,
    *,
    attacked: int = ATTACKED,
    device: str = "cpu",
    attack: AttackOptions | None = None,
    reporter: Any = None,
) -> CellEvaluation:
    """Evaluate the fixed model of a record folder on the test split of its subject.

    Writes ``predictions.parquet`` into the record folder and then, atomically, the entry
    ``evaluation`` of ``record.json``; all other entries are kept.

    Parameters
    ----------
    record, subject : path
        Folders of the record and of the prepared subject.
    attacked : int
        How many inputs are attacked.
    device : str
        Where the attack runs.
    attack : AttackOptions, optional
        Default: ``asr`` and ``asr_margin``, the attacked original model cached in a folder
        ``.attack-cache`` beside the subject's.
    reporter : callable, optional
        Gets ``(done, total, note)``.

    Returns
    -------
    CellEvaluation

    Raises
    ------
    ModelfixError
        If a file is missing or damaged, or a model is not the one that the record was made from.
    """
    record, subject = Path(record), Path(subject)
    content = _read(record)
    outcome = _outcome(record, content)
    if outcome in WITHOUT_MODEL:
        return CellEvaluation(outcome, None)
    prepared = Subject.load(subject)
    original, fixed = prepared.model, _fixed(record)
    _check_hashes(record, content, original, fixed)
    dataset = prepared.dataset(("test",))
    test = dataset["test"]
    attack = attack or AttackOptions(cache=subject.resolve().parent / CACHE_FOLDER)
    repetition = int(content.get("repetition", 1))
    settings = attack_settings(prepared, repetition, attacked, attack)
    hashes = {
        "original": original.hash,
        "fixed": fixed.hash,
        "inputs": inputs_hash(test.ids, test.y),
    }
    known = content.get("evaluation")
    if _is_complete(known, settings, hashes, record):
        return CellEvaluation(outcome, known, reused=True)
    found = evaluate(
        original,
        fixed,
        test,
        classes=dataset.classes,
        epsilon=settings["epsilon"],
        order_seed=settings["order_seed"],
        attacked=attacked,
        device=device,
        attack=attack,
        reporter=reporter,
    )
    evaluation = {
        **found.as_dict(),
        "settings": settings,
        "hashes": hashes,
        "device": device,
        "versions": dict(versions()),
    }
    _check_unchanged(subject, original)
    _write(record, found, evaluation)
    return CellEvaluation(outcome, evaluation)


def is_evaluated(
    record: str | Path, subject: str | Path, *, attacked: int = ATTACKED, attack: AttackOptions
) -> bool:
    """Return whether a record has this very evaluation, complete; nothing is computed.

    Parameters
    ----------
    record, subject : path
        Folders of the record and of the prepared subject.
    attacked : int
    attack : AttackOptions

    Raises
    ------
    ModelfixError
        If a file is missing or damaged.
    """
    record, prepared = Path(record), Subject.load(subject)
    content = _read(record)
    test = prepared.dataset(("test",))["test"]
    stated = content.get("hashes") or {}
    hashes = {
        "original": prepared.card.model_hash,
        "fixed": stated.get("fixed"),
        "inputs": inputs_hash(test.ids, test.y),
    }
    settings = attack_settings(prepared, int(content.get("repetition", 1)), attacked, attack)
    return _is_complete(content.get("evaluation"), settings, hashes, record)


def attack_settings(
    subject: Subject, repetition: int, attacked: int, attack: AttackOptions
) -> dict[str, Any]:
    """Return what decides about the attack of a cell, as its record keeps it."""
    order_seed = seed_for(stage="attack-order", subject=subject.card.name, repetition=repetition)
    return {
        "epsilon": subject.card.attack_epsilon,
        "attacked": attacked,
        "order_seed": order_seed,
        "attack": attack.as_dict(),
    }


def _read(record: Path) -> dict[str, Any]:
    path = record / RECORD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelfixError(f"{path}: is missing; run the fix first.") from None
    except (ValueError, OSError) as error:
        raise ModelfixError(f"{path}: is damaged; delete its folder and run again.") from error
    if not isinstance(content, dict):
        raise ModelfixError(f"{path}: is damaged; delete its folder and run again.")
    return content


def _outcome(record: Path, content: dict[str, Any]) -> Outcome:
    stated: Any = content.get("outcome")
    try:
        return Outcome(stated)
    except ValueError:
        raise ModelfixError(
            f"{record / RECORD_FILE}: its outcome is {stated!r}; expected one of "
            f"{', '.join(Outcome)}; run the fix again."
        ) from None


def _fixed(record: Path) -> Model:
    path = record / FIXED_FILE
    if not path.exists():
        raise ModelfixError(
            f"{path}: is missing though the record has a fixed model; run the fix again."
        )
    return Model.load(path)


def _check_hashes(record: Path, content: dict[str, Any], original: Model, fixed: Model) -> None:
    stated = content.get("hashes") or {}
    for name, model in (("original", original), ("fixed", fixed)):
        if stated.get(name, model.hash) != model.hash:
            raise ModelfixError(
                f"{record / RECORD_FILE}: was made with another {name} model than {model.name} "
                f"(hash {stated[name][:12]}, found {model.hash[:12]}); give the subject of this "
                "record, or run the fix again."
            )


def _check_unchanged(subject: Path, original: Model) -> None:
    if Subject.load(subject).model.hash != original.hash:
        raise ModelfixError(
            f"{subject}: its model was changed while it was evaluated; prepare the subject again."
        )


def _is_complete(
    known: Any, settings: dict[str, Any], hashes: Mapping[str, str | None], record: Path
) -> bool:
    """Whether the record holds this very evaluation, and its predictions are intact."""
    if not isinstance(known, dict):
        return False
    same = known.get("settings") == settings and known.get("hashes") == hashes
    definitions = (known.get("versions") or {}).get("modelfix-metrics")
    if not same or definitions != versions().get("modelfix-metrics"):
        return False
    try:
        predictions = Predictions.load(record / stored.FILE)
    except ModelfixError:
        return False
    return [predictions.original, predictions.fixed, predictions.inputs] == [
        hashes["original"],
        hashes["fixed"],
        hashes["inputs"],
    ]


def _write(record: Path, found: Evaluation, evaluation: dict[str, Any]) -> None:
    """Write the predictions, then the record as it is by now, so that nothing in it gets lost."""
    found.predictions.save(record / stored.FILE)
    content = {**_read(record), "evaluation": evaluation}
    write_text(record / RECORD_FILE, json.dumps(content, indent=2, allow_nan=False))
