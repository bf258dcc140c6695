"""What is attacked and how success is counted; the attack itself runs in `adversary`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from modelfix_core.errors import ModelfixError
from modelfix_core.seeds import generator

from modelfix_metrics.predictions import Predictions
from modelfix_metrics.value import MetricValue

Subset = Literal["pool", "all"]
ATTACKED = 1000  # inputs; what the study's printed values need
MASKING_POINTS = 0.10


@dataclass(frozen=True)
class Preset:
    """Steps of a gradient attack in the maximum norm; the step size is relative to epsilon."""

    steps: int
    relative_step: float
    random_start: bool


PRESETS = {
    "pgd": Preset(steps=40, relative_step=0.01 / 0.3, random_start=True),
    "fast-gradient": Preset(steps=1, relative_step=1.0, random_start=False),
}
"""Foolbox' ``LinfPGD`` with its defaults, as in the study, and ``LinfFastGradientAttack``."""

METRICS = ("asr", "asr_margin", "asr_study")


@dataclass(frozen=True)
class Attack:
    """Settings of one attack.

    Attributes
    ----------
    metric : {"asr", "asr_margin", "asr_study"}
        ``asr`` raises the cross entropy of the logits, ``asr_margin`` the best other logit minus
        that of the label, both in pixel space; ``asr_study`` raises the cross entropy of the
        probabilities, taken for logits, in the input space of the network.
    epsilon : float
        Radius in the maximum norm, in that space.
    preset : str
        Key of `PRESETS`.
    """

    metric: str
    epsilon: float
    preset: str = "pgd"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ModelfixError(f"{self.metric!r} is no attack metric; use {', '.join(METRICS)}.")
        if self.preset not in PRESETS:
            raise ModelfixError(f"{self.preset!r} is no attack; use {', '.join(PRESETS)}.")
        if not 0 <= self.epsilon < float("inf"):
            raise ModelfixError(f"epsilon is {self.epsilon}; it must be a number from 0.")

    @property
    def loss(self) -> str:
        """What the attack raises."""
        return "margin" if self.metric == "asr_margin" else "cross_entropy"

    @property
    def outputs(self) -> str:
        """What the loss is computed from."""
        return "probabilities" if self.metric == "asr_study" else "logits"

    @property
    def space(self) -> str:
        """Where epsilon and bounds apply: ``pixel`` ([0, 1]) or ``network`` (normalised)."""
        return "network" if self.metric == "asr_study" else "pixel"

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values."""
        derived = {"loss": self.loss, "outputs": self.outputs, "space": self.space}
        return {**asdict(self), **derived, **asdict(PRESETS[self.preset])}


@dataclass(frozen=True)
class AttackOptions:
    """How the attacks of an evaluation are run.

    Attributes
    ----------
    metrics : tuple of str
        Out of ``asr``, ``asr_margin``, ``asr_study``; empty for no attack.
    preset : str
        ``pgd`` or ``fast-gradient``.
    subset : {"pool", "all"}
        Draw the attacked inputs from those that both models get right, or from all.
    repetitions : sequence of Predictions
        Of the other repetitions of the entrant, whose fixed models must be right on the pool too.
    cache : Path or None
        Folder for the attacked original model, which serves every entrant of a subject.
    """

    metrics: tuple[str, ...] = ("asr", "asr_margin")
    preset: str = "pgd"
    subset: Subset = "pool"
    repetitions: Sequence[Predictions] = ()
    cache: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what decides about the values, as JSON values."""
        return {
            "metrics": list(self.metrics),
            "preset": self.preset,
            "subset": self.subset,
            "repetitions": sorted(p.fixed for p in self.repetitions),
        }


@dataclass(frozen=True)
class Sample:
    """Which test inputs are attacked.

    Attributes
    ----------
    order : ndarray of int64, [N]
        The seeded random order of all test inputs.
    ranks : ndarray of int64, [n]
        Positions in `order` of the attacked inputs, ascending.
    pool : int
        How many inputs could have been drawn.
    """

    order: np.ndarray
    ranks: np.ndarray
    pool: int

    @classmethod
    def draw(cls, pool: np.ndarray, order_seed: int, attacked: int = ATTACKED) -> "Sample":
        """Take the first `attacked` inputs of the seeded order that lie in `pool`, [N] of bool.

        The order depends on the seed and N alone, so samples of different pools overlap as far as
        the pools do, and a smaller sample is a prefix of a larger one.
        """
        if attacked < 1:
            raise ModelfixError(f"{attacked} inputs cannot be attacked; ask for at least one.")
        order = generator(order_seed, stage="attack-order").permutation(len(pool))
        return cls(order, np.flatnonzero(pool[order])[:attacked], int(pool.sum()))

    @property
    def positions(self) -> np.ndarray:
        """Positions of the attacked inputs in the test split, [n]."""
        return self.order[self.ranks]

    def __len__(self) -> int:
        return len(self.ranks)


START_BLOCK = 64  # inputs whose starts are drawn together


def random_starts(ranks: np.ndarray, shape: Sequence[int], order_seed: int) -> np.ndarray:
    """Draw the starting points of the inputs at these positions of the order, in [-1, 1].

    An input's start depends on the seed and its position in the order alone: it is the same for
    all models, metrics and batches.

    Parameters
    ----------
    ranks : ndarray of int, [n]
    shape : sequence of int
        Of one input.
    order_seed : int

    Returns
    -------
    ndarray of float32, [n, *shape]
    """
    starts = np.empty((len(ranks), *shape), dtype=np.float32)
    blocks = ranks // START_BLOCK
    for block in np.unique(blocks):
        member = blocks == block
        rng = generator(order_seed, stage="attack-start", block=int(block))
        drawn = rng.random((START_BLOCK, *shape), dtype=np.float32)
        starts[member] = 2 * drawn[ranks[member] % START_BLOCK] - 1
    return starts


@dataclass(frozen=True)
class Attacked:
    """What an attack did to one model.

    Attributes
    ----------
    wrong : ndarray of bool, [n]
        Whether the model misclassifies the attacked input.
    zero_gradient : ndarray of bool, [n]
        Whether the gradient was zero everywhere at the start.
    calls : int
        Inputs that went through the model, forward, all together; 0 where the result is cached.
    """

    wrong: np.ndarray
    zero_gradient: np.ndarray
    calls: int = 0

    def __len__(self) -> int:
        return len(self.wrong)

    def select(self, index: np.ndarray) -> "Attacked":
        """Return the results at `index`."""
        return Attacked(self.wrong[index], self.zero_gradient[index], self.calls)

    def join(self, other: "Attacked") -> "Attacked":
        """Return these results followed by `other`."""
        return Attacked(
            np.concatenate([self.wrong, other.wrong]),
            np.concatenate([self.zero_gradient, other.zero_gradient]),
            self.calls + other.calls,
        )

    @classmethod
    def none(cls) -> "Attacked":
        """Return the result of attacking nothing."""
        return cls(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))


@dataclass(frozen=True)
class AttackContext:
    """What the values of an attack say about their circumstances."""

    sample: Sample
    split: str = "test"
    variant: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def success_value(metric: str, attacked: Attacked, context: AttackContext) -> MetricValue:
    """Return the share of attacked inputs that the model misclassifies.

    Parameters
    ----------
    metric : str
        One of `METRICS`.
    attacked : Attacked
    context : AttackContext

    Returns
    -------
    MetricValue
        UNDEFINED with reason ``empty_pool`` where nothing could be attacked.
    """
    total = len(context.sample.order)
    details = {
        "pool": context.sample.pool,
        "pool_share": context.sample.pool / total,
        **context.details,
    }
    further = {"variant": context.variant, "details": details}
    if len(attacked) == 0:
        return MetricValue.undefined(
            metric, "empty_pool", context.split, numerator=0, denominator=0, **further
        )
    details["zero_gradient_share"] = float(attacked.zero_gradient.mean())
    details["model_calls"] = attacked.calls
    return MetricValue.ratio(metric, attacked.wrong.sum(), len(attacked), context.split, **further)


def derived_values(
    attacked: Attacked, right: np.ndarray, context: AttackContext
) -> list[MetricValue]:
    """Return the variants that follow from the flags of ``asr``.

    Parameters
    ----------
    attacked : Attacked
    right : ndarray of bool, [n]
        Whether the model gets the input right before the attack.
    context : AttackContext

    Returns
    -------
    list of MetricValue
        ``asr_printed`` (formula 7 over the attacked inputs), ``asr_conditional`` (over those that
        were right before), ``robust_accuracy``.
    """
    flipped, total = int((right & attacked.wrong).sum()), len(attacked)
    counts = {
        "asr_printed": (flipped, total),
        "asr_conditional": (flipped, int(right.sum())),
        "robust_accuracy": (int((~attacked.wrong).sum()), total),
    }
    return [
        MetricValue.ratio(name, count, of, context.split, variant=context.variant)
        if of
        else MetricValue.undefined(name, "empty_pool", context.split, variant=context.variant)
        for name, (count, of) in counts.items()
    ]


def masking_warning(plain: MetricValue, margin: MetricValue) -> tuple[str, ...]:
    """Return a warning if the margin attack and the plain one succeed very unequally often."""
    if not abs(plain.value - margin.value) > MASKING_POINTS:
        return ()
    return (
        f"asr is {plain.value:.1%} but asr_margin {margin.value:.1%}: they differ by more than 10 "
        "points, so the gradients of the cross entropy may be masked; trust asr_margin",
    )
