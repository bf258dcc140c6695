"""What Editable Training teaches: the base objective, and edits that succeed and do no harm."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.torch.bridge import TorchModel
from modelfix_core.torch.margins import margins
from modelfix_core.torch.training import Epoch, Feed, FineTuning, Step
from torch import Tensor
from torch.nn import functional

from modelfix_editable_training.editor import Editor

SMALLEST_POOL = 64  # of mispredicted images; the nearest to a mistake fill it up
BATCH = 500
# From images, labels and logits of a batch to the base objective.
Base = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(_x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    """Return the cross-entropy with the labels."""
    return functional.cross_entropy(logits, y)


def distillation(original: TorchModel) -> Base:
    """Return the divergence from the original model's predictions, mean over the images."""

    def loss(x: Tensor, _y: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            target = functional.softmax(original(x), dim=1)
        return functional.kl_div(
            functional.log_softmax(logits, dim=1), target, reduction="batchmean"
        )

    return loss


def drift(before: Tensor, after: Tensor) -> Tensor:
    """Return the cross-entropy of edited predictions with the unedited, which are constant."""
    target = functional.softmax(before.detach(), dim=1)
    return -(target * functional.log_softmax(after, dim=1)).sum(dim=1).mean()


class Editing:
    """A lesson whose steps also edit the model for one image and judge the edit.

    Parameters
    ----------
    editor : Editor
    split : Split
        The training images.
    recipe : FineTuning
        For batch size and images per epoch.
    pool : Pool
        Where edited images and their wanted labels come from.
    base : callable
    locality, edit : float
        Weights of drift and of the edit loss.
    first_order : bool
    every : int
        Steps for each edit.
    """

    def __init__(
        self,
        editor: Editor,
        split: Split,
        recipe: FineTuning,
        pool: "Pool",
        base: Base = cross_entropy,
        *,
        locality: float = 0.01,
        edit: float = 0.01,
        first_order: bool = False,
        every: int = 1,
    ) -> None:
        self.editor, self.recipe, self.pool, self.base = editor, recipe, pool, base
        self.locality, self.edit = locality, edit
        self.first_order, self.every = first_order, every
        self.net = editor.halves.net
        self.images = min(recipe.images_per_epoch or len(split), len(split))
        self.feed = Feed(split, self.net.device)

    def __len__(self) -> int:
        return math.ceil(self.images / self.recipe.batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about the edits, and the number of images."""
        editor = self.editor
        return {
            "images": len(self.feed),
            "edits": [self.pool.name, self.locality, self.edit, self.first_order, self.every],
            "editor": [editor.steps, editor.alpha, editor.epsilon, *editor.halves.names],
            "base": self.base.__qualname__,
        }

    def epoch(self, epoch: Epoch) -> Iterator[Step]:
        """Yield the steps of an epoch."""
        size = self.recipe.batch_size
        order = epoch.draws(stage="order").permutation(len(self.feed))[: self.images]
        edits = epoch.draws(stage="edits")
        if self.locality or self.edit:
            self.pool.begin(self.net, self.feed, order)
        self.net.train()
        for number, (x, y) in enumerate(self.feed.batches(order, size)):
            editing = (self.locality or self.edit) and number % self.every == 0
            places = order[number * size : number * size + len(y)]
            loss, logits = self.loss(x, y, self.pool.draw(edits) if editing else None)
            self.pool.update(places, logits.detach(), y)
            right = (logits.detach().argmax(dim=1) == y).sum()
            yield Step(loss, right, len(y))
            self.net.train()

    def loss(
        self, x: Tensor, y: Tensor, pair: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the objective and the logits of a batch.

        Parameters
        ----------
        x : Tensor, [N, C, H, W]
        y : Tensor of int64, [N]
        pair : (Tensor [1, C, H, W], Tensor [1]), optional
            An image and its wanted label; without it the base objective stands alone.

        Returns
        -------
        loss : Tensor, []
        logits : Tensor, [N, K]
            Computed in training mode.
        """
        halves = self.editor.halves
        h = halves.prefix(x)
        logits = halves.suffix(h)
        base = self.base(x, y, logits)
        if pair is None:
            return base, logits
        self.net.eval()
        edit = self.editor.edit(
            halves.prefix(pair[0]), pair[1], graph=True, first_order=self.first_order
        )
        still = h if halves.pure else halves.prefix(x)
        after = halves.suffix(still, edit.weights)
        return base + self.locality * drift(logits, after) + self.edit * edit.loss, logits


class Pool:
    """Edits of the training images nearest to a mistake: all that are mispredicted.

    Margins are measured once at the start of an epoch and then kept up to date by what the steps
    predict anyway.

    Attributes
    ----------
    name : str
    """

    name = "mispredicted-train"

    def begin(self, net: TorchModel, feed: Feed, order: np.ndarray) -> None:
        """Measure the margins of an epoch's images, in evaluation mode."""
        net.eval()
        self.feed = feed
        self.places = np.sort(order)
        self.margins = np.full(len(feed), np.inf, dtype=np.float32)
        with torch.inference_mode():
            parts = [margins(net(x), y) for x, y in feed.batches(self.places, BATCH)]
        self.margins[self.places] = torch.cat(parts).cpu().numpy()

    def update(self, places: np.ndarray, logits: Tensor, y: Tensor) -> None:
        """Take the margins of a training step."""
        if hasattr(self, "margins"):
            self.margins[places] = margins(logits, y).cpu().numpy()

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw an image [1, C, H, W] and its wanted label [1]."""
        wrong = np.flatnonzero(self.margins < 0)
        if len(wrong) < SMALLEST_POOL:
            known = self.places
            count = min(SMALLEST_POOL, len(known))
            wrong = known[np.argpartition(self.margins[known], count - 1)[:count]]
        place = wrong[rng.integers(len(wrong))]
        return next(iter(self.feed.batches(np.array([place]), 1)))


class FailurePool(Pool):
    """Edits of the images of a split that the original model mispredicts."""

    name = "repair-failures"

    def __init__(self, failures: Split, device: torch.device) -> None:
        self.failures = Feed(failures, device)

    def begin(self, net: TorchModel, feed: Feed, order: np.ndarray) -> None:
        """Do nothing: the pool is fixed."""

    def update(self, places: np.ndarray, logits: Tensor, y: Tensor) -> None:
        """Do nothing: the pool is fixed."""

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw an image [1, C, H, W] and its true label [1]."""
        place = rng.integers(len(self.failures))
        return next(iter(self.failures.batches(np.array([place]), 1)))


class RandomLabelPool(Pool):
    """Edits of any training image to any class, as in the paper."""

    name = "random-label"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def begin(self, net: TorchModel, feed: Feed, order: np.ndarray) -> None:
        """Remember the images."""
        self.feed, self.places = feed, order

    def update(self, places: np.ndarray, logits: Tensor, y: Tensor) -> None:
        """Do nothing: every image is as good as another."""

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw an image [1, C, H, W] and a label [1]."""
        place = self.places[rng.integers(len(self.places))]
        x, y = next(iter(self.feed.batches(np.array([place]), 1)))
        return x, torch.full_like(y, int(rng.integers(self.classes)))
