"""The lessons: replay of what is still right, labels of regions, and images without labels."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.joining import join
from modelfix_core.torch import TorchModel
from modelfix_core.torch.augment import crop_and_flip
from modelfix_core.torch.training import Epoch, Feed, Step
from torch import Tensor
from torch.nn import functional

from modelfix_hybridrepair.approach import HybridRepairConfig
from modelfix_hybridrepair.selection import Regions
from modelfix_hybridrepair.smoothness import versions

PREDICTED_AT_ONCE = 1000

# From the number of the last finished epoch to the unsmoothness of the pool.
Unsmoothness = Callable[[int], np.ndarray]


def smoothed(labels: Tensor, classes: int, mass: float) -> Tensor:
    """Return labels as probabilities, [N, K], that leave `mass` to the other classes together."""
    other = mass / (classes - 1)
    target = torch.full((len(labels), classes), other, device=labels.device)
    return target.scatter_(1, labels[:, None], 1 - mass)


def sharpened(q: Tensor, temperature: float) -> Tensor:
    """Raise probabilities [..., K] to 1 / temperature and divide by their sum."""
    powers = q ** (1 / temperature)
    return powers / powers.sum(dim=-1, keepdim=True)


def mixed(
    x: Tensor, q: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, float]:
    """Blend a batch with itself in another order (mixup).

    Parameters
    ----------
    x : Tensor, [N, C, H, W]
    q : Tensor, [N, K]
    alpha : float
        Of the Beta distribution of the share.
    rng : numpy.random.Generator

    Returns
    -------
    x, q : Tensor
    share : float
        Of a sample's own part, in [0.5, 1].
    """
    drawn = float(rng.beta(alpha, alpha))
    share = max(drawn, 1 - drawn)
    order = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    return torch.lerp(x[order], x, share), torch.lerp(q[order], q, share), share


def draw(weight: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw positions with replacement in proportion to their weights, [count]."""
    return rng.choice(len(weight), count, p=weight / weight.sum())


class Rehearsal:
    """The warm-up: cross-entropy on the training images that the model gets right.

    Parameters
    ----------
    net : TorchModel
    labelled : Feed
        Training images first; what follows them is no part of replay.
    images : int
        Training images among them.
    config : HybridRepairConfig
    """

    def __init__(
        self, net: TorchModel, labelled: Feed, images: int, config: HybridRepairConfig
    ) -> None:
        self.net, self.labelled, self.images, self.config = net, labelled, images, config
        self.drawn = min(config.replay_images or images, images)

    def __len__(self) -> int:
        return max(1, self.drawn // self.config.batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        """The options, and how many images there are."""
        return {"images": self.images, "config": self.config.model_dump(mode="json")}

    def epoch(self, epoch: Epoch) -> Iterator[Step]:
        """Yield the steps on replayed images."""
        rows = self.replay(epoch, self.replayable(epoch), "replay")
        yield from self.supervised(epoch, rows, functional.cross_entropy)

    def replayable(self, epoch: Epoch) -> np.ndarray:
        """Return the training images that this epoch may replay."""
        return epoch.draws(stage="images").permutation(self.images)[: self.drawn]

    def replay(self, epoch: Epoch, rows: np.ndarray, stage: str) -> np.ndarray:
        """Return those of `rows` that the model predicts right now, in evaluation mode."""
        rng = epoch.draws(stage=f"{stage}-images")
        kept = []
        self.net.eval()
        with torch.inference_mode():
            for x, y in self.labelled.batches(rows, PREDICTED_AT_ONCE):
                kept.append((self.net(self._shown(x, rng)).argmax(dim=1) == y).cpu().numpy())
                epoch.report("predicting training images")
        self.net.train()
        return rows[np.concatenate(kept)]

    def supervised(
        self, epoch: Epoch, rows: np.ndarray, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[Step]:
        """Yield one pass over labelled images in random order, without an incomplete batch."""
        size = min(self.config.batch_size, max(len(rows), 1))
        order = epoch.draws(stage="order").permutation(rows)
        rng = epoch.draws(stage="supervised-images")
        for x, y in self.labelled.batches(order[: len(rows) // size * size], size):
            logits = epoch.module(self._shown(x, rng))
            yield Step(loss(logits, y), (logits.detach().argmax(dim=1) == y).sum(), len(y))

    def _shown(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        return crop_and_flip(x, rng, self.config.crop, self.config.flip)


class Repair(Rehearsal):
    """An epoch of repair: replay with the labels of regions, then with images without labels.

    Parameters
    ----------
    net : TorchModel
    train : Split
    pool : Split
        Images; its labels are those that regions gave, and are not read elsewhere.
    regions : Regions
    smooth : ndarray of bool, [N]
        Images that may be used without a label.
    unsmoothness : callable
        Gives that of the pool after an epoch, with the net as it is.
    config : HybridRepairConfig
    """

    def __init__(
        self,
        net: TorchModel,
        train: Split,
        pool: Split,
        regions: Regions,
        smooth: np.ndarray,
        unsmoothness: Unsmoothness,
        config: HybridRepairConfig,
    ) -> None:
        labelled = Feed(join(train, pool, regions.index), net.device)
        super().__init__(net, labelled, len(train), config)
        self.pool = Feed(pool, net.device)
        self.regions, self.smooth, self.unsmoothness = regions, smooth, unsmoothness
        self.classes = net.model.num_classes

    def __len__(self) -> int:
        first = (self.drawn + len(self.regions.index)) // self.config.batch_size
        return max(1, first + self._steps(self.drawn))

    @property
    def identity(self) -> dict[str, Any]:
        """That of replay, with the regions."""
        return {**super().identity, "regions": self.regions.label.tolist()}

    def _steps(self, replayed: int) -> int:
        return max(replayed, len(self.pool)) // self.config.batch_size

    def epoch(self, epoch: Epoch) -> Iterator[Step]:
        """Yield the steps of both passes."""
        weight = self.weights(epoch.number - 1)
        replayable = self.replayable(epoch)
        rows = self.replay(epoch, replayable, "first")
        extra = self.images + np.arange(len(self.regions.index))
        yield from self.supervised(epoch, np.concatenate([rows, extra]), self._smooth_loss)
        if self.config.replay == "twice":
            rows = self.replay(epoch, replayable, "second")
        if len(rows) and weight.any():
            yield from self.semi_supervised(epoch, rows, weight)

    def weights(self, finished: int) -> np.ndarray:
        """Return how likely each image of the pool is drawn after so many epochs, up to a factor.

        The images that may be used never change; how much they are, does.
        """
        self.net.eval()
        weight = np.where(self.smooth, 1 - self.unsmoothness(finished), 0.0)
        self.net.train()
        weight[self.regions.index] = 1
        return weight

    def _smooth_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        target = smoothed(y, self.classes, self.config.label_smoothing)
        return functional.cross_entropy(logits, target)

    def semi_supervised(self, epoch: Epoch, rows: np.ndarray, weight: np.ndarray) -> Iterator[Step]:
        """Yield steps on replayed images and on as many of the pool, with guessed labels.

        Parameters
        ----------
        epoch : Epoch
        rows : ndarray of int, [R]
            Training images that are replayed, again and again in new orders.
        weight : ndarray of float, [N]
            The images of the pool are drawn with replacement in proportion to it.
        """
        size, count = self.config.batch_size, self.config.n_iters
        with_label = min(size, len(rows))
        steps = self._steps(len(rows))
        rng = epoch.draws(stage="mixing")
        turns = math.ceil(steps * with_label / len(rows))
        order = np.concatenate([rng.permutation(rows) for _ in range(max(turns, 1))])
        drawn = draw(weight, steps * size, rng)
        labelled = self.labelled.batches(order[: steps * with_label], with_label)
        for (x, y), (u, region) in zip(labelled, self.pool.batches(drawn, size), strict=True):
            x = self._shown(x, rng)
            stack = versions(u, count, rng).flatten(0, 1)
            guess = self.guess(epoch, stack, region)
            known = functional.one_hot(y, self.classes).to(guess.dtype)
            inputs, targets, _ = mixed(
                torch.cat([x, stack]),
                torch.cat([known, guess.repeat(1 + count, 1)]),
                self.config.alpha,
                rng,
            )
            logits = epoch.module(inputs)
            first, others = logits[: len(y)], functional.softmax(logits[len(y) :], dim=1)
            # As in the original the labels of this term are not those that were mixed.
            loss = functional.cross_entropy(first, y)
            loss = loss + self.config.lam_ul * functional.mse_loss(others, targets[len(y) :])
            yield Step(loss, (first.detach().argmax(dim=1) == y).sum(), len(y))

    def guess(self, epoch: Epoch, stack: Tensor, region: Tensor) -> Tensor:
        """Guess the labels of images from all their versions; those of regions are known.

        Parameters
        ----------
        epoch : Epoch
        stack : Tensor, [V * N, C, H, W]
            Version by version.
        region : Tensor of int, [N]
            Label, or -1.

        Returns
        -------
        Tensor, [N, K]
        """
        with torch.no_grad():
            logits = epoch.module(stack).view(-1, len(region), self.classes)
        q = sharpened(functional.softmax(logits, dim=-1).mean(dim=0), self.config.temperature)
        known = smoothed(region.clamp(min=0), self.classes, self.config.label_smoothing)
        return torch.where((region >= 0)[:, None], known, q)
