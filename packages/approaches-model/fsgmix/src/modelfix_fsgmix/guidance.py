"""From a few failures to the augmentation: their distribution, the operations, the mixing.

Of the model nothing but its predictions is used. The paper could not be read; everything here is a
reconstruction from the description in the comparative study.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import Unadaptable
from modelfix_core.seeds import generator
from modelfix_core.torch import augment
from modelfix_core.torch.augment import Mixing, Variant
from torch import Tensor

from modelfix_fsgmix.approach import FSGMixConfig
from modelfix_fsgmix.descriptor import describe, reduced

POOL_PER_CLASS = 500
NULL_DRAWS = 200
NULL_PERCENTILE = 95
CLIP = 10.0
PRIOR = 10  # images with a spread of 1 that are added to the failures' spread
DEPTHS = (1, 2, 3)
WEIGHTS = tuple(step / 10 for step in range(11))
DESCRIBED_AT_ONCE = 1024

Progress = Callable[[str], None]


class Predictor(Protocol):
    """All that guidance needs of a model."""

    def predict(self, x: Split) -> np.ndarray:
        """Return logits [N, K]."""
        ...


@dataclass(frozen=True)
class Guidance:
    """What the failures say.

    Attributes
    ----------
    failures : int
        Failing images of the repair split.
    shots : ndarray of int, [R]
        Positions in the repair split of those that guide.
    distance, null : float
        Of training images to the failures, and the 95th percentile of that to training images.
    variants : tuple of Variant
    distances : ndarray of float, [V]
        To the failures after each variant.
    probabilities : ndarray of float, [V]
    depth : int
        Longest chain of the best mixing.
    weight : float
        Weight of the chains of the best mixing.
    mixing : Mixing
        What to augment with: guided, or plain AugMix where the failures are like training images.
    """

    failures: int
    shots: np.ndarray
    distance: float
    null: float
    variants: tuple[Variant, ...]
    distances: np.ndarray
    probabilities: np.ndarray
    depth: int
    weight: float
    mixing: Mixing

    @property
    def guided(self) -> bool:
        """Whether the failures differ from training images."""
        return self.distance > self.null

    def __str__(self) -> str:
        seen = f"{self.failures} failures, {len(self.shots)} of them guide"
        if not self.guided:
            return f"{seen}; they are like training images, hence plain AugMix"
        best = ", ".join(str(self.variants[i]) for i in np.argsort(self.distances)[:3])
        return f"{seen}: {best}; depth {self.depth}, weight {self.weight:g}"


def guide(
    model: Predictor,
    train: Split,
    repair: Split,
    config: FSGMixConfig,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress = lambda note: None,
) -> Guidance:
    """Choose the augmentation that moves training images to where the model fails.

    Parameters
    ----------
    model : Predictor
    train, repair : Split
    config : FSGMixConfig
    seed : int
    device : str
    progress : callable
        Gets what is being done.

    Returns
    -------
    Guidance

    Raises
    ------
    Unadaptable
        If fewer than two images of the repair split are mispredicted.
    """
    progress("predicting the repair split")
    failing = np.flatnonzero(model.predict(repair).argmax(axis=1) != repair.y)
    if len(failing) < 2:
        raise Unadaptable(
            f"the model mispredicts {len(failing)} images of the repair split; at least 2 failures "
            "are needed to estimate their distribution"
        )
    shots = draw_shots(failing, repair.y, config, generator(seed, stage="shots"))
    progress("describing the training images")
    rng = generator(seed, stage="guidance")
    classes = int(max(train.y.max(), repair.y.max())) + 1
    frame = Frame.of(train, classes, config.probe_side, device, rng)
    estimate = Failing.of(frame.standard(*images_of(repair, shots, frame)))
    chosen = rng.choice(len(train), size=min(config.probe, len(train)), replace=False)
    probe, labels = images_of(train, chosen, frame)
    probe_z = frame.standard(probe, labels)
    distance = estimate.distance(probe_z)
    null = null_distance(probe_z, frame.pool, len(shots), rng)
    progress("trying the operations")
    shape = tuple(probe.shape[1:])
    variants = augment.variants(shape)
    distances = np.array(
        [estimate.distance(frame.standard(changed(probe, v), labels)) for v in variants]
    )
    probabilities = preferences(distances, distance, config.exploration)
    progress("searching depth and weight of the mixing")
    depth, weight = best_mixing(
        estimate, frame, probe, labels, variants, probabilities, config.width, rng
    )
    if distance > null:
        mixing = Mixing(
            variants,
            tuple(probabilities),
            config.width,
            depth,
            max(weight, config.weight_floor),
            config.weight_spread,
        )
    else:
        mixing = Mixing.uniform(train.x.shape[1:], width=config.width)
    return Guidance(
        len(failing),
        shots,
        distance,
        null,
        variants,
        distances,
        probabilities,
        depth,
        weight,
        mixing,
    )


def draw_shots(
    failing: np.ndarray, y: np.ndarray, config: FSGMixConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw up to ``n_shot`` failures of each class, ``shots_at_most`` in all.

    Parameters
    ----------
    failing : ndarray of int, [F]
        Positions.
    y : ndarray of int, [N]
    config : FSGMixConfig
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int, [R]
        Sorted positions.
    """
    order = rng.permutation(failing)
    by_class = order[np.argsort(y[order], kind="stable")]
    _, starts, counts = np.unique(y[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(by_class)) - np.repeat(starts, counts)
    few = by_class[rank < config.n_shot]
    return np.sort(rng.permutation(few)[: config.shots_at_most])


def images_of(split: Split, index: np.ndarray, frame: "Frame") -> tuple[Tensor, Tensor]:
    """Return images, reduced as `frame` does, and labels at `index` as tensors on its device."""
    images = torch.from_numpy(split.images(index)).to(frame.device)
    return reduced(images, frame.side), torch.from_numpy(split.y[index]).to(frame.device)


@dataclass(frozen=True)
class Frame:
    """Descriptors relative to those of the training images of the same class.

    Attributes
    ----------
    mean, std : Tensor, [K, D]
        Of the descriptors of each class.
    pool : Tensor, [M, D]
        Standard descriptors of the training images of which the frame was made.
    side : int
        Larger images are reduced to it.
    device : str
    """

    mean: Tensor
    std: Tensor
    pool: Tensor
    side: int
    device: str

    @classmethod
    def of(
        cls, train: Split, classes: int, side: int, device: str, rng: np.random.Generator
    ) -> "Frame":
        """Describe up to 500 training images of each class."""
        order = rng.permutation(len(train))
        by_class = order[np.argsort(train.y[order], kind="stable")]
        present, starts, counts = np.unique(
            train.y[by_class], return_index=True, return_counts=True
        )
        rank = np.arange(len(by_class)) - np.repeat(starts, counts)
        index = by_class[rank < POOL_PER_CLASS]
        parts = []
        for start in range(0, len(index), DESCRIBED_AT_ONCE):
            images = train.images(index[start : start + DESCRIBED_AT_ONCE])
            parts.append(describe(reduced(torch.from_numpy(images).to(device), side)))
        found = torch.cat(parts)
        labels = torch.from_numpy(train.y[index]).to(device)
        # Classes without training images are compared with all of them.
        mean = found.mean(dim=0).repeat(classes, 1)
        std = found.std(dim=0, correction=0).repeat(classes, 1)
        for label in present:
            own = found[labels == label]
            mean[label], std[label] = own.mean(dim=0), own.std(dim=0, correction=0)
        frame = cls(mean, std, found, side, device)
        return cls(mean, std, frame._standard(found, labels), side, device)

    def standard(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the standard descriptors of labelled images, [N, D], in [-10, 10]."""
        return self._standard(describe(images), labels)

    def _standard(self, found: Tensor, labels: Tensor) -> Tensor:
        return ((found - self.mean[labels]) / (self.std[labels] + 1e-3)).clamp(-CLIP, CLIP)


@dataclass(frozen=True)
class Failing:
    """The distribution of the failures: a diagonal Gaussian of standard descriptors, [D] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, standard: Tensor) -> "Failing":
        """Estimate it from the standard descriptors of the shots, [..., R, D]."""
        n = standard.shape[-2]
        variance = (n * standard.var(dim=-2, correction=0) + PRIOR) / (n + PRIOR)
        return cls(standard.mean(dim=-2), variance.sqrt())

    def distances(self, standard: Tensor) -> Tensor:
        """Return the squared distances of mean and spread from those of `standard`, [N, D]."""
        mean, std = standard.mean(dim=0), standard.std(dim=0, correction=0)
        return (mean - self.mean).square().sum(-1) + (std - self.std).square().sum(-1)

    def distance(self, standard: Tensor) -> float:
        """Return the distance where there is one distribution."""
        return float(self.distances(standard))


def null_distance(probe: Tensor, pool: Tensor, shots: int, rng: np.random.Generator) -> float:
    """Return which distance as few training images as there are shots seldom exceed."""
    size = min(shots, len(pool))
    draws = [rng.choice(len(pool), size, replace=False) for _ in range(NULL_DRAWS)]
    subsets = pool[torch.from_numpy(np.stack(draws)).to(pool.device)]
    distances = Failing.of(subsets).distances(probe)
    return float(np.percentile(distances.cpu().numpy(), NULL_PERCENTILE))


def changed(images: Tensor, variant: Variant) -> Tensor:
    """Apply a variant to all images at its full level."""
    n = len(images)
    strength = augment.strengths([variant], np.array([variant.level]), images.shape[1:])
    number = np.full(n, augment.NUMBER[variant.operation])
    return augment.apply(images, number, np.repeat(strength, n))


def preferences(distances: np.ndarray, distance: float, exploration: float) -> np.ndarray:
    """Return probabilities of the variants: those that come near the failures are likely.

    Parameters
    ----------
    distances : ndarray of float, [V]
    distance : float
        Without any operation: sets how sharp the preference is.
    exploration : float
        Share that all variants have alike.
    """
    temperature = 1 + 0.02 * distance
    near = np.exp(-(distances - distances.min()) / temperature)
    return (1 - exploration) * near / near.sum() + exploration / len(distances)


def best_mixing(
    failing: Failing,
    frame: Frame,
    probe: Tensor,
    labels: Tensor,
    variants: tuple[Variant, ...],
    probabilities: np.ndarray,
    width: int,
    rng: np.random.Generator,
) -> tuple[int, float]:
    """Choose depth and weight together, because deep chains overshoot and low weights undo it."""
    results = []
    for depth in DEPTHS:
        mixing = Mixing(variants, tuple(probabilities), width, depth)
        mixed = augment.mixtures(probe, mixing, rng)[0]
        for weight in WEIGHTS:
            z = frame.standard(torch.lerp(probe, mixed, weight), labels)
            results.append((failing.distance(z), depth, weight))
    _, depth, weight = min(results)
    return depth, weight
