"""The release gate: whether a new model may take the place of an old one."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from modelfix_core import Dataset, Model, ModelfixError
from modelfix_core.fixing import check_classes, check_images


@dataclass(frozen=True)
class Limits:
    """What a new model may cost.

    Attributes
    ----------
    nfr : float or None
        Largest negative flip rate, in [0, 1]; None is no limit.
    accuracy_loss : float
        Largest fall of accuracy, in [0, 1].
    """

    nfr: float | None
    accuracy_loss: float


@dataclass(frozen=True)
class Verdict:
    """The comparison of two models on the same inputs.

    Attributes
    ----------
    passed : bool
    reasons : list of str
        Why it did not pass.
    inputs : int
    accuracy_before, accuracy_after, repair_rate, nfr : float
        In [0, 1]; the repair rate is NaN where the old model makes no mistake.
    newly_fixed, newly_broken : list of int
        Positions of the inputs in the data.
    """

    passed: bool
    reasons: list[str]
    inputs: int
    accuracy_before: float
    accuracy_after: float
    repair_rate: float
    nfr: float
    newly_fixed: list[int]
    newly_broken: list[int]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an undefined repair rate is null."""
        content = asdict(self)
        return content | {"repair_rate": None if np.isnan(self.repair_rate) else self.repair_rate}


def parse_share(text: str, option: str) -> float:
    """Read ``0.5%`` or ``0.005`` as a share in [0, 1]."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ModelfixError(f"{option} {text!r}: expected a share such as 0.5% or 0.005.")
    return value


def judge(old: Model, new: Model, data: Dataset, limits: Limits) -> Verdict:
    """Compare `old` and `new` on the split ``whole`` of `data`.

    Raises
    ------
    ModelfixError
        If a model does not fit the data.
    """
    split = data["whole"]
    for model in (old, new):
        check_images(model, "data", split)
        check_classes(model, max(len(data.classes), int(split.y.max()) + 1), exact=False)
    before = old.predict(split).argmax(axis=1) == split.y
    after = new.predict(split).argmax(axis=1) == split.y
    fixed, broken = ~before & after, before & ~after
    mistakes = int((~before).sum())
    nfr, loss = float(broken.mean()), float(before.mean() - after.mean())
    reasons = []
    if limits.nfr is not None and nfr > limits.nfr:
        reasons.append(f"NFR {nfr:.2%} exceeds the limit of {limits.nfr:.2%}")
    if loss > limits.accuracy_loss + 1e-12:
        reasons.append(f"accuracy fell by {loss:.2%}, more than {limits.accuracy_loss:.2%}")
    return Verdict(
        passed=not reasons,
        reasons=reasons,
        inputs=len(split),
        accuracy_before=float(before.mean()),
        accuracy_after=float(after.mean()),
        repair_rate=float(fixed.sum() / mistakes) if mistakes else float("nan"),
        nfr=nfr,
        newly_fixed=[int(i) for i in np.flatnonzero(fixed)],
        newly_broken=[int(i) for i in np.flatnonzero(broken)],
    )
