"""Evaluate a fixed model against its original: predictions, metrics, attack, gains."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from modelfix_core.approach import Outcome
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model

from modelfix_metrics.attacks import ATTACKED, AttackOptions
from modelfix_metrics.decisions import (
    Flips,
    accuracy,
    check_identity,
    nfr,
    predicted,
    repair_rate,
    repair_rate_printed,
)
from modelfix_metrics.fairness import aaod_values
from modelfix_metrics.predictions import Predictions
from modelfix_metrics.value import Comparison, MetricValue, mcnemar_p

if TYPE_CHECKING:
    from modelfix_metrics.aligning import AlignedTarget

CORRUPTED_POINTS = 10
DISTRIBUTIONS = (
    "modelfix-metrics",
    "modelfix-core",
    "numpy",
    "scikit-learn",
    "onnxruntime",
    "torch",
    "foolbox",
)


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation of a fixed model found.

    Attributes
    ----------
    table : pyarrow.Table
        The predictions, as `Predictions.to_table` gives them.
    values : list of MetricValue
        Of the fixed model.
    original : list of MetricValue
        Of the original model, for the metrics that exist for a single model.
    comparisons : list of Comparison
        For these metrics.
    seconds : dict of str to float
    """

    table: pa.Table
    values: list[MetricValue]
    original: list[MetricValue] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> MetricValue:
        for value in self.values:
            if value.metric == metric:
                return value
        raise KeyError(metric)

    @property
    def predictions(self) -> Predictions:
        """The predictions as arrays."""
        return Predictions.from_table(self.table)

    @property
    def outcome_on_test(self) -> Outcome:
        """CORRUPTED if accuracy on these inputs fell by more than 10 points, else FIXED."""
        before = next(value for value in self.original if value.metric == "accuracy")
        (right_before, inputs), (right_after, _) = before.counts, self["accuracy"].counts
        # In integers: 0.8 - 0.7 is more than 0.1 in floating point.
        corrupted = 100 * (right_before - right_after) > CORRUPTED_POINTS * inputs
        return Outcome.CORRUPTED if corrupted else Outcome.FIXED

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values: what a record keeps of it."""
        return {
            "metrics": {value.metric: value.as_dict() for value in self.values},
            "original": {value.metric: value.as_dict() for value in self.original},
            "comparisons": {c.metric: c.as_dict() for c in self.comparisons},
            "outcome_on_test": str(self.outcome_on_test),
            "seconds": self.seconds,
        }


def evaluate(
    original: Model,
    fixed: Model,
    test: Split,
    *,
    classes: Sequence[str],
    epsilon: float | None,
    order_seed: int,
    attacked: int = ATTACKED,
    device: str = "cpu",
    attack: AttackOptions | None = None,
    split: str = "test",
    reporter: Any = None,
    combined: "AlignedTarget | None" = None,
) -> Evaluation:
    """Evaluate `fixed` against `original` on the same inputs.

    Parameters
    ----------
    original, fixed : Model
    test : Split
    classes : sequence of str
        Class names.
    epsilon : float or None
        Radius of the attack in pixel space [0, 1]; None: no attack.
    order_seed : int
        Of the order in which inputs are attacked; one per subject and repetition, so that the
        attacked inputs of different entrants overlap.
    attacked : int
        How many inputs are attacked.
    device : str
        Where the attack runs.
    attack : AttackOptions, optional
        Default: ``asr`` and ``asr_margin`` by PGD.
    split : str
        Name of the split.
    reporter : callable, optional
        Gets ``(done, total, note)`` in attacked inputs.
    combined : AlignedTarget, optional
        Both models as one after post-processing; evaluated in place of `fixed`.

    Returns
    -------
    Evaluation

    Raises
    ------
    ModelfixError
        If models, inputs and classes do not fit each other, or the attack is asked for where its
        libraries are missing.
    """
    started = perf_counter()
    attack = attack or AttackOptions()
    hashes = original.hash, fixed.hash
    predictions = Predictions.of(original, fixed, test, split=split, classes=classes)
    if combined is not None:
        predictions = replace(predictions, after=combined.logits(test), fixed=combined.fingerprint)
    seconds = {"predictions": perf_counter() - started}
    values = metrics_from_predictions(predictions)
    before = original_from_predictions(predictions)
    comparisons = _compare(predictions, before, values)
    if attack.metrics and epsilon is not None:
        from modelfix_metrics.attacking import Attacking

        attacking = Attacking(
            original,
            fixed,
            test,
            predictions,
            epsilon,
            order_seed,
            attacked,
            device,
            attack,
            reporter,
            combined,
        )
        found = attacking.run()
        values += found.values
        before += found.original
        comparisons += found.comparisons
        seconds.update(found.seconds)
    else:
        reason = "no_attack_epsilon" if attack.metrics else "attack_skipped"
        for metric in attack.metrics or ("asr",):
            values.append(MetricValue.absent(metric, reason, split))
    if (original.hash, fixed.hash) != hashes:
        raise ModelfixError("a model was changed by its evaluation; please report it.")
    seconds["total"] = perf_counter() - started
    return Evaluation(predictions.to_table(), values, before, comparisons, seconds)


def metrics_from_predictions(source: str | Path | pa.Table | Predictions) -> list[MetricValue]:
    """Compute every metric but the attacks' from stored predictions.

    Parameters
    ----------
    source : path, pyarrow.Table or Predictions
        ``predictions.parquet``, its table or its content.

    Returns
    -------
    list of MetricValue
        ``accuracy``, ``repair_rate``, ``nfr``, ``aaod`` and their variants, of the fixed model.

    Raises
    ------
    ModelfixError
        If the predictions cannot be read, are empty, or contradict themselves.
    """
    predictions = _predictions(source)
    y, split = predictions.y, predictions.split
    before, after = predicted(predictions.before), predicted(predictions.after)
    flips = Flips.count(y, before, after)
    values = [
        accuracy(y, after, split),
        repair_rate(flips, split),
        nfr(flips, split),
        repair_rate_printed(flips, split),
    ]
    check_identity(accuracy(y, before, split, "original"), *values[:3])
    return values + aaod_values(y, predictions.after, predictions.group, split)


def original_from_predictions(source: str | Path | pa.Table | Predictions) -> list[MetricValue]:
    """Compute the metrics that exist for a single model, of the original one.

    Parameters
    ----------
    source : path, pyarrow.Table or Predictions

    Returns
    -------
    list of MetricValue
        ``accuracy``, ``aaod`` and its variants.
    """
    predictions = _predictions(source)
    y, split = predictions.y, predictions.split
    return [
        accuracy(y, predicted(predictions.before), split, "original"),
        *aaod_values(y, predictions.before, predictions.group, split, "original"),
    ]


def _predictions(source: str | Path | pa.Table | Predictions) -> Predictions:
    if isinstance(source, Predictions):
        return source
    if isinstance(source, pa.Table):
        return Predictions.from_table(source)
    return Predictions.load(source)


def _compare(
    predictions: Predictions, before: list[MetricValue], after: list[MetricValue]
) -> list[Comparison]:
    right, right_after = predictions.right_before, predictions.right_after
    p_value = mcnemar_p((right & ~right_after).sum(), (~right & right_after).sum())
    fixed = {value.metric: value for value in after}
    return [
        Comparison(value, fixed[value.metric], p_value if value.metric == "accuracy" else None)
        for value in before
    ]


@dataclass(frozen=True)
class ModelComparison:
    """What changes for the inputs when a new model takes the place of an old one.

    Attributes
    ----------
    regressed : ndarray of int64
        Ids of the inputs that the old model gets right and the new one wrong.
    repaired : ndarray of int64
        Ids of the inputs that the old model gets wrong and the new one right.
    values : list of MetricValue
        Of the new model.
    comparisons : list of Comparison
    """

    regressed: np.ndarray
    repaired: np.ndarray
    values: list[MetricValue]
    comparisons: list[Comparison]


def compare(old: Model, new: Model, split: Split, name: str = "test") -> ModelComparison:
    """Compare two models on the same inputs, without attack: what a release gate needs.

    Parameters
    ----------
    old, new : Model
    split : Split
    name : str
        How the values call the split.

    Returns
    -------
    ModelComparison
    """
    predictions = Predictions.of(old, new, split, split=name)
    right, right_after = predictions.right_before, predictions.right_after
    values = metrics_from_predictions(predictions)
    before = original_from_predictions(predictions)
    return ModelComparison(
        regressed=predictions.ids[right & ~right_after],
        repaired=predictions.ids[~right & right_after],
        values=values,
        comparisons=_compare(predictions, before, values),
    )


def versions() -> Mapping[str, str]:
    """Return the versions of the libraries that decide about values, where installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
