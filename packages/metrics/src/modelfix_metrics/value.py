"""What a metric gives: a value with its definition, counts, warnings, and the gain between two."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from modelfix_core.errors import ModelfixError

Direction = Literal["high", "low"]


class Status(StrEnum):
    """Whether a metric has a value."""

    OK = "OK"
    UNDEFINED = "UNDEFINED"
    """The formula has no value on these data, for example a ratio over no inputs."""
    ABSENT = "ABSENT"
    """What the metric needs is not there, for example a sensitive attribute."""


@dataclass(frozen=True)
class Definition:
    """How a metric is defined; `version` rises whenever the same data would give another value."""

    metric: str
    direction: Direction
    formula: str
    version: int = 1
    has_gain: bool = True

    @property
    def id(self) -> str:
        """Metric and version, such as ``repair_rate/1``."""
        return f"{self.metric}/{self.version}"


DEFINITIONS = {
    definition.metric: definition
    for definition in (
        Definition("accuracy", "high", "right after / all inputs"),
        Definition(
            "repair_rate", "high", "wrong before, right after / wrong before", has_gain=False
        ),
        Definition(
            "repair_rate_printed", "high", "wrong before, right after / all inputs", has_gain=False
        ),
        Definition("nfr", "low", "right before, wrong after / all inputs", has_gain=False),
        Definition("aaod", "low", "mean over classes of the halved TPR and FPR gaps of the groups"),
        Definition("aaod_soft", "low", "as aaod, with mean probabilities instead of rates"),
        Definition("aaod_max", "low", "largest instead of mean over classes"),
        Definition("aaod_study", "low", "as aaod, with rate 0 for empty cells"),
        Definition("asr", "low", "misclassified after the attack on the logits / attacked inputs"),
        Definition("asr_margin", "low", "as asr, attacking the margin of the logits"),
        Definition(
            "asr_study", "low", "as asr, attacking probabilities in the network's input space"
        ),
        Definition(
            "asr_printed", "low", "right before and wrong after the attack / attacked inputs"
        ),
        Definition("asr_conditional", "low", "as asr_printed, over inputs right before the attack"),
        Definition("robust_accuracy", "high", "right after the attack / attacked inputs"),
    )
}


@dataclass(frozen=True)
class MetricValue:
    """One value of one metric.

    Attributes
    ----------
    metric : str
        Key of `DEFINITIONS`.
    definition : str
        Its definition with version, such as ``repair_rate/1``; settings that change the meaning
        follow after a colon (``asr/1:fast-gradient``).
    direction : {"high", "low"}
        Which values are better.
    split : str
    value : float
        In [0, 1], or NaN with a `reason`.
    numerator : int, float or None
        Integer for counts; the sum over classes for AAOD.
    denominator : int or None
    status : Status
    reason : str or None
        Why there is no value.
    interval : tuple of float, or None
        Wilson interval at 95 % of a ratio of counts.
    warnings : tuple of str
    details : mapping of str to object
        What else is worth keeping; JSON values only.
    """

    metric: str
    definition: str
    direction: Direction
    split: str
    value: float
    numerator: float | None = None
    denominator: int | None = None
    status: Status = Status.OK
    reason: str | None = None
    interval: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def ratio(
        cls, metric: str, numerator: int, denominator: int, split: str, **further: Any
    ) -> "MetricValue":
        """Return a ratio of counts with its Wilson interval; the denominator is not 0."""
        numerator, denominator = int(numerator), int(denominator)
        return _value(
            metric,
            split,
            value=numerator / denominator,
            numerator=numerator,
            denominator=denominator,
            interval=wilson(numerator, denominator),
            **further,
        )

    @classmethod
    def mean(
        cls, metric: str, total: float, terms: int, split: str, **further: Any
    ) -> "MetricValue":
        """Return the mean of `terms` terms that sum to `total`."""
        return _value(
            metric,
            split,
            value=float(total) / terms,
            numerator=float(total),
            denominator=int(terms),
            **further,
        )

    @classmethod
    def undefined(cls, metric: str, reason: str, split: str, **further: Any) -> "MetricValue":
        """Return NaN because the formula has no value on these data."""
        return _value(
            metric, split, value=math.nan, status=Status.UNDEFINED, reason=reason, **further
        )

    @classmethod
    def absent(cls, metric: str, reason: str, split: str, **further: Any) -> "MetricValue":
        """Return NaN because what the metric needs is not there."""
        return _value(metric, split, value=math.nan, status=Status.ABSENT, reason=reason, **further)

    @property
    def counts(self) -> tuple[int, int]:
        """Numerator and denominator of a ratio of counts.

        Raises
        ------
        ModelfixError
            If the value is no ratio of counts.
        """
        if not isinstance(self.numerator, int) or self.denominator is None:
            raise ModelfixError(
                f"{self.metric} on the {self.split} split is no ratio of counts (status "
                f"{self.status}); evaluate the record again."
            )
        return self.numerator, self.denominator

    def with_warnings(self, warnings: tuple[str, ...]) -> "MetricValue":
        """Return a copy with further warnings."""
        return replace(self, warnings=self.warnings + warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; NaN becomes None, as JSON has no NaN."""
        content = asdict(self)
        content["value"] = None if math.isnan(self.value) else self.value
        content["status"] = str(self.status)
        content["interval"] = None if self.interval is None else list(self.interval)
        content["warnings"] = list(self.warnings)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "MetricValue":
        """Read what `as_dict` gave.

        Raises
        ------
        ModelfixError
            If entries are missing, unknown or of the wrong kind.
        """
        try:
            value, interval = content["value"], content["interval"]
            return cls(
                **{
                    **content,
                    "value": math.nan if value is None else float(value),
                    "status": Status(content["status"]),
                    "interval": None if interval is None else (interval[0], interval[1]),
                    "warnings": tuple(content["warnings"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelfixError(
                f"a stored metric value cannot be read ({error}); evaluate the record again."
            ) from error


def _value(metric: str, split: str, variant: str | None = None, **fields: Any) -> MetricValue:
    definition = DEFINITIONS[metric]
    name = definition.id if variant is None else f"{definition.id}:{variant}"
    fields["warnings"] = tuple(fields.get("warnings", ()))
    return MetricValue(metric, name, definition.direction, split, **fields)


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the Wilson interval at 95 % of `count` out of `total` (at least 1)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, total, method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """A metric on the original and on the fixed model.

    Attributes
    ----------
    before, after : MetricValue
        Of the same metric and definition.
    p_value : float or None
        Of the exact McNemar test on the same inputs, where the metric is a ratio of counts.
    """

    before: MetricValue
    after: MetricValue
    p_value: float | None = None

    def __post_init__(self) -> None:
        if self.before.definition != self.after.definition:
            raise ModelfixError(
                f"{self.before.definition} and {self.after.definition} are different metrics; "
                "compare values of one definition."
            )

    @property
    def metric(self) -> str:
        """The metric compared."""
        return self.after.metric

    @property
    def gain(self) -> float:
        """Relative change towards better in percent, or NaN with a `reason`."""
        return relative_gain(self.metric, self.before.value, self.after.value)[0]

    @property
    def reason(self) -> str | None:
        """Why there is no gain."""
        return relative_gain(self.metric, self.before.value, self.after.value)[1]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; NaN becomes None."""
        numbers = {"before": self.before.value, "after": self.after.value, "gain": self.gain}
        return {
            **{key: None if math.isnan(v) else v for key, v in numbers.items()},
            "reason": self.reason,
            "p_value": self.p_value,
        }


def relative_gain(metric: str, before: float, after: float) -> tuple[float, str | None]:
    """Return the relative change towards better in percent.

    ``100 (after - before) / before`` where high values are better, its negative where low ones
    are. From 0 it is 0 if nothing changed and undefined otherwise.

    Returns
    -------
    gain : float
        Percent, or NaN.
    reason : str or None
        Why the gain is NaN.

    Raises
    ------
    ModelfixError
        For repair rate and NFR, which are relative to the original model already.
    """
    definition = DEFINITIONS[metric]
    if not definition.has_gain:
        raise ModelfixError(
            f"{metric} has no gain: it is relative to the original model already; compare the "
            "values themselves."
        )
    if math.isnan(before) or math.isnan(after):
        return math.nan, "undefined_value"
    if before == 0:
        return (0.0, None) if after == 0 else (math.nan, "zero_before")
    change = after - before if definition.direction == "high" else before - after
    return 100 * change / before, None


def mcnemar_p(only_before: int, only_after: int) -> float:
    """Return the two-sided p value of the exact McNemar test of two discordant counts."""
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, int(only_before)], [int(only_after), 0]], exact=True).pvalue)
