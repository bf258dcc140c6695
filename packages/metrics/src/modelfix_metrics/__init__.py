"""The metrics of modelfix, computed from stored predictions, and the attack."""

from modelfix_metrics.attacks import Attack, AttackOptions
from modelfix_metrics.cell import CellEvaluation, evaluate_record
from modelfix_metrics.evaluation import (
    Evaluation,
    ModelComparison,
    compare,
    evaluate,
    metrics_from_predictions,
    original_from_predictions,
)
from modelfix_metrics.predictions import Predictions
from modelfix_metrics.value import (
    DEFINITIONS,
    Comparison,
    Definition,
    MetricValue,
    Status,
    relative_gain,
)

__all__ = [
    "DEFINITIONS",
    "Attack",
    "AttackOptions",
    "CellEvaluation",
    "Comparison",
    "Definition",
    "Evaluation",
    "MetricValue",
    "ModelComparison",
    "Predictions",
    "Status",
    "compare",
    "evaluate",
    "evaluate_record",
    "metrics_from_predictions",
    "original_from_predictions",
    "relative_gain",
]
