"""Post-processing: five rules that combine the original and the fixed model, and their fits.

With logits ``z_o``, ``z_n`` of the original (old) and the fixed (new) model, ``p = softmax(z_o)``
and ``q = softmax(z_n)``, every rule gives probabilities ``r``. They are kept as ``log r``, which
stand for logits everywhere: the label is their arg max and ``softmax(log r) = r``.

Where both models agree on the label, SV, HV and US keep it, so their NFR is at most that of the
fixed model alone. The rules are those of the code published with Li et al., ICSE 2023.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from modelfix_core.errors import ModelfixError

from modelfix_metrics.decisions import are_probabilities, predicted

METHODS = {
    "sv": "soft voting",
    "hv": "hard voting",
    "up": "uncertainty alignment with perturbation",
    "ud": "uncertainty alignment with dropout",
    "us": "uncertainty alignment with temperature scaling",
    "us-paper": "US with the published penalty on the temperature",
    "us-labelled": "US with two temperatures fitted to labels",
    "us-weight": "a mixture whose weight is fitted to labels",
}
DEFAULT_METHODS = ("sv", "hv", "up", "ud", "us")  # those of the study

LOWEST, HIGHEST, GRID = 0.05, 20.0, 200  # temperatures that are searched
PENALTY = 5e-4  # of US-paper, on the squared temperature
TOO_LOW = 0.8  # below this temperature US-paper drops the penalty
WEIGHTS = np.arange(1001) / 1000
FLOOR, CEILING = 0.001, 0.999  # of an uncertainty


def log_probabilities(outputs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return ``log softmax(outputs / temperature)``.

    Parameters
    ----------
    outputs : ndarray of float, [N, K]
        Logits. Probabilities are taken by their logarithm, which stands for logits.
    temperature : float
        Above 0.

    Returns
    -------
    ndarray of float64, [N, K]
    """
    z = np.asarray(outputs, dtype=np.float64)
    if are_probabilities(z):
        z = np.log(np.maximum(z, np.finfo(np.float32).tiny))
    z = (z - z.max(axis=1, keepdims=True)) / temperature
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


# -- rules -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """``r = k softmax(z_o / T_o) + (1 - k) softmax(z_n / T_n)``: SV, and US in its forms.

    Attributes
    ----------
    weight : float
        k of the original model, in [0, 1].
    original, fixed : float
        Temperatures T_o and T_n.
    """

    weight: float = 0.5
    original: float = 1.0
    fixed: float = 1.0

    def combine(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return log r, [N, K] of float64, of the logits of both models, [N, K] each."""
        with np.errstate(divide="ignore"):  # a weight of 0 leaves that model out
            old, new = np.log(self.weight), np.log1p(-self.weight)
        return np.logaddexp(
            old + log_probabilities(before, self.original),
            new + log_probabilities(after, self.fixed),
        )

    def margin(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return by how much the winning class leads, [N]; near 0 rounding decides."""
        top = np.sort(np.exp(self.combine(before, after)), axis=1)
        return top[:, -1] - top[:, -2]


@dataclass(frozen=True)
class MoreConfident:
    """HV: p where ``max p > max q``, else q; a tie goes to the fixed model."""

    def combine(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return log r, [N, K] of float64, of the logits of both models, [N, K] each."""
        p, q = log_probabilities(before), log_probabilities(after)
        old = p.max(axis=1, keepdims=True) > q.max(axis=1, keepdims=True)
        return np.where(old, p, q)

    def margin(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return the difference of the confidences, [N]."""
        p, q = (np.exp(log_probabilities(z).max(axis=1)) for z in (before, after))
        return np.abs(p - q)


@dataclass(frozen=True)
class Perturbation:
    """UP: uncertainties under Gaussian noise on the input.

    Attributes
    ----------
    samples : int
        Draws S.
    noise : float
        Standard deviation, in the space where it is added.
    space : {"pixel", "model"}
        ``pixel``: before the model's normalisation, clipped to [0, 1]; ``model``: after it,
        unclipped, as in the published code.
    shared : bool
        The same noise for both models, as in the published code, or noise of its own for each.
    """

    samples: int = 10
    noise: float = 0.01
    space: Literal["pixel", "model"] = "pixel"
    shared: bool = True

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if not 0 <= self.noise < float("inf"):
            raise ModelfixError(f"noise is {self.noise}; it must be a number from 0.")
        if self.space not in ("pixel", "model"):
            raise ModelfixError(f"space is {self.space!r}; choose pixel or model.")


@dataclass(frozen=True)
class Dropout:
    """UD: uncertainties under dropout on the features that enter a dense layer.

    Attributes
    ----------
    samples : int
        Passes S.
    rate : float
        Share of the features that are dropped, in [0, 1); the others are scaled by 1/(1 - rate).
    layer : str or None
        The dense layer; default the last one of the original model.
    """

    samples: int = 10
    rate: float = 0.2
    layer: str | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if not 0 <= self.rate < 1:
            raise ModelfixError(f"the dropout rate is {self.rate}; it must lie in [0, 1).")


Rule = Mixture | MoreConfident | Perturbation | Dropout


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ModelfixError(f"samples is {samples}; at least one pass is needed.")


def alignment_weights(original: Any, fixed: Any) -> tuple[Any, Any]:
    """Return the weights of both models from their uncertainties.

    Both are clipped to [0.001, 0.999]; then ``w_o = u_n / (2 (u_o + u_n))`` in [0, 1/2] and
    ``w_n = 1 - w_o``. The half added to the fixed model's is a prior in its favour: equal
    uncertainties, in particular both at the floor, give 1/4 and 3/4.

    Parameters
    ----------
    original, fixed : ndarray or Tensor of float
        Total variances u_o and u_n.
    """
    u_o, u_n = original.clip(FLOOR, CEILING), fixed.clip(FLOOR, CEILING)
    total = 2 * (u_o + u_n)
    return u_n / total, 0.5 + u_o / total


# -- fits, on the validation split -----------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A rule with its parameters, and what went wrong when they were fitted."""

    rule: Rule
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        return asdict(self.rule)


def fit(
    method: str,
    before: np.ndarray,
    after: np.ndarray,
    y: np.ndarray,
    perturbation: Perturbation | None = None,
    dropout: Dropout | None = None,
) -> Fit:
    """Return the rule of a method, its parameters fitted to the validation split.

    Parameters
    ----------
    method : str
        Key of `METHODS`. Only ``us-labelled`` and ``us-weight`` look at `y`.
    before, after : ndarray of float, [N, K]
        Logits of the original and of the fixed model on the validation split.
    y : ndarray of int, [N]
    perturbation, dropout : optional
        Settings of UP and UD.

    Returns
    -------
    Fit

    Raises
    ------
    ModelfixError
        If there is no such method.
    """
    if method not in METHODS:
        raise ModelfixError(
            f"{method!r} is no post-processing method; choose from {', '.join(METHODS)}."
        )
    if method == "sv":
        return Fit(Mixture())
    if method == "hv":
        return Fit(MoreConfident())
    if method == "up":
        return Fit(perturbation or Perturbation())
    if method == "ud":
        return Fit(dropout or Dropout())
    if method == "us-weight":
        return Fit(Mixture(weight=fit_weight(before, after, y)))
    if method == "us-labelled":
        fits = [_or_one(likeliest_temperature(z, y), "to labels") for z in (before, after)]
        (original, first), (fixed, second) = fits
        return Fit(Mixture(original=original, fixed=fixed), (*first, *second))
    found = aligned_temperature(before, after, PENALTY if method == "us-paper" else 0.0)
    if method == "us-paper" and (found is None or found < TOO_LOW):
        found = aligned_temperature(before, after)
    temperature, warnings = _or_one(found, "to the fixed model's confidences")
    return Fit(Mixture(original=temperature), warnings)


def aligned_temperature(
    before: np.ndarray, after: np.ndarray, penalty: float = 0.0
) -> float | None:
    """Return T that brings ``softmax(z_o / T)`` closest to q; no labels are used.

    It minimises the mean over inputs and classes of the squared difference, plus ``penalty T²``.

    Returns
    -------
    float or None
        None if the best temperature is at a bound of [0.05, 20] or the loss is not finite.
    """
    q = np.exp(log_probabilities(after))

    def loss(temperature: float) -> float:
        difference = np.exp(log_probabilities(before, temperature)) - q
        return float(np.mean(difference**2)) + penalty * temperature**2

    return _best_temperature(loss)


def likeliest_temperature(outputs: np.ndarray, y: np.ndarray) -> float | None:
    """Return T with the least negative log likelihood of the labels; None as above."""
    rows = np.arange(len(y))
    return _best_temperature(lambda t: -float(log_probabilities(outputs, t)[rows, y].mean()))


def fit_weight(before: np.ndarray, after: np.ndarray, y: np.ndarray) -> float:
    """Return the weight k of the original model with the least NFR.

    Out of 0, 0.001, ..., 1 and among those whose accuracy is not below that of the fixed model;
    the smallest of equals, so 0 where none improves.
    """
    p, q = (np.exp(log_probabilities(z)) for z in (before, after))
    old, new = predicted(before), predicted(after)
    apart = old != new  # elsewhere no mixture changes the label
    p, q, labels, right_before = p[apart], q[apart], y[apart], (old == y)[apart]
    best, least = 0.0, int((right_before & (new[apart] != labels)).sum())
    needed = int((new[apart] == labels).sum())
    for weight in WEIGHTS:
        right = (weight * p + (1 - weight) * q).argmax(axis=1) == labels
        flips = int((right_before & ~right).sum())
        if right.sum() >= needed and flips < least:
            best, least = float(weight), flips
    return best


def _or_one(temperature: float | None, to: str) -> tuple[float, tuple[str, ...]]:
    if temperature is not None:
        return temperature, ()
    return 1.0, (
        f"no temperature between {LOWEST:g} and {HIGHEST:g} could be fitted {to}: 1 is used",
    )


def _best_temperature(loss: Callable[[float], float]) -> float | None:
    """Minimise over log T: a grid finds the valley, golden section its bottom."""
    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), GRID)
    losses = np.array([loss(np.exp(place)) for place in grid])
    if not np.isfinite(losses).all():
        return None
    best = int(losses.argmin())
    if best in (0, GRID - 1):
        return None
    ratio = (np.sqrt(5) - 1) / 2
    low, high = grid[best - 1], grid[best + 1]
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(np.exp(left)), loss(np.exp(right))
    while high - low > 1e-9:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(np.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(np.exp(right))
    return float(np.exp((low + high) / 2))
