"""Fine-tuning on each training image and its views, for a small grid of learning rates."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from modelfix_core.approach import Candidate, Task
from modelfix_core.dataset import Split
from modelfix_core.joining import join
from modelfix_core.torch import TorchModel, augment
from modelfix_core.torch.training import (
    FineTuning,
    Loss,
    Views,
    consistency,
    cross_entropy,
    fine_tune_at,
)
from torch import Tensor

from modelfix_fsgmix.approach import FSGMixConfig
from modelfix_fsgmix.guidance import Guidance


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
    """Yield the candidates of every learning rate, each from the original weights."""
    train, shots = task.train, task.repair.select(guidance.shots)
    assert train is not None, "`FSGMix.check` refuses tasks without training images"
    split = join(train, shots) if config.include_failures else train
    views = views_of(config, guidance, shots, task.device)
    recipe = FineTuning.of(config)
    yield from fine_tune_at(config.learning_rates, net, task, split, recipe, loss_of(config), views)
