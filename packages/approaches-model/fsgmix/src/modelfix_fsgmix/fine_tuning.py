"""Fine-tuning on each training image and its views, for a small grid of learning rates."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from modelfix_core.approach import Candidate, Task
from modelfix_core.dataset import Split
from modelfix_core.torch import TorchModel, augment
from modelfix_core.torch.training import (
    Feed,
    FineTuning,
    Loss,
    Views,
    cross_entropy,
    fine_tune,
    jensen_shannon,
    validate,
)
from torch import Tensor

from modelfix_fsgmix.approach import FSGMixConfig
from modelfix_fsgmix.guidance import Guidance

JUDGED_AFTER = 2  # epochs


def consistency(logits: Tensor, y: Tensor, weight: float) -> Tensor:
    """Return cross-entropy of the image plus weighted Jensen-Shannon divergence of all views.

    Parameters
    ----------
    logits : Tensor, [V, N, K]
        Of the image itself first.
    y : Tensor of int64, [N]
    weight : float
    """
    return cross_entropy(logits[:1], y) + weight * jensen_shannon(logits)


def loss_of(config: FSGMixConfig) -> Loss:
    """Return the loss that the options ask for."""
    if config.loss == "expanded":
        return cross_entropy
    return partial(consistency, weight=config.consistency)


def views_of(config: FSGMixConfig, guidance: Guidance, shots: Split, device: str) -> Views:
    """Return what makes the images of a batch and their views, [1 + views, N, C, H, W]."""
    companions = Companions(shots, device) if config.fail_mix else None

    def views(x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        x = augment.crop_and_flip(x, rng, config.crop, config.flip)
        partners = companions.draw(x, y, rng) if companions else None
        drawn = augment.views(x, guidance.mixing, rng, config.views, partners)
        return torch.cat([x[None], drawn])

    return views


class Companions:
    """Failures of the same class that training images may be blended with."""

    def __init__(self, shots: Split, device: str) -> None:
        order = np.argsort(shots.y, kind="stable")
        self.images = torch.from_numpy(shots.images(order)).to(device)
        self.labels, self.starts, self.counts = np.unique(
            shots.y[order], return_index=True, return_counts=True
        )

    def draw(self, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Return one failure of its class for each image, or the image where there is none."""
        labels = y.cpu().numpy()
        place = np.searchsorted(self.labels, labels).clip(max=len(self.labels) - 1)
        row = self.starts[place] + (rng.random(len(labels)) * self.counts[place]).astype(int)
        known = torch.from_numpy(self.labels[place] == labels).to(x.device)
        drawn = self.images[torch.from_numpy(row).to(x.device)]
        return torch.where(known.view(-1, 1, 1, 1), drawn, x)


def repair(
    net: TorchModel, task: Task, config: FSGMixConfig, guidance: Guidance
) -> Iterator[Candidate]:
    """Yield the candidates of every learning rate, each from the original weights.

    A rate is given up when the validation loss is worse than the original's after two epochs and
    still rising.
    """
    train, shots = task.train, task.repair.select(guidance.shots)
    assert train is not None, "`FSGMix.check` refuses tasks without training images"
    split = joined(train, shots) if config.include_failures else train
    views = views_of(config, guidance, shots, task.device)
    net.reset()
    original_loss, _ = validate(net, Feed(task.validation, task.device))
    for position, rate in enumerate(config.learning_rates):
        net.reset()
        losses: list[float] = []
        run = fine_tune(
            net,
            task,
            split,
            recipe_of(config, rate),
            loss_of(config),
            views,
            name=f"learning-rate-{rate:g}",
            part=(position, len(config.learning_rates)),
        )
        for candidate in run:
            yield candidate
            losses.append(candidate.values["validation_loss"])
            if is_hopeless(losses, original_loss):
                break


def recipe_of(config: FSGMixConfig, rate: float) -> FineTuning:
    """Return how the model is fine-tuned with one learning rate."""
    return FineTuning(
        epochs=config.epochs,
        learning_rate=rate,
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        patience=config.patience,
        precision=config.precision,
        images_per_epoch=config.images_per_epoch,
        recalibrate_bn=config.recalibrate_bn,
    )


def is_hopeless(losses: list[float], original: float) -> bool:
    """Whether the validation losses of the first two epochs are worse than before, and rise."""
    return len(losses) == JUDGED_AFTER and losses[1] > max(losses[0], original)


def joined(train: Split, shots: Split) -> Split:
    """Return the training images followed by the shots, held in memory."""
    x = shots.images() if train.x.dtype != np.uint8 else _as_bytes(shots)
    return Split(np.concatenate([train.x, x]), np.concatenate([train.y, shots.y]))


def _as_bytes(split: Split) -> np.ndarray:
    return np.round(split.images() * 255).astype(np.uint8)
