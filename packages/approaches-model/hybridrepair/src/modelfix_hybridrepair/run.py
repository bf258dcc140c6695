"""One run of HybridRepair on a task: where is the model smooth, whom to ask, repair."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from modelfix_core.approach import Candidate, Evidence, Task
from modelfix_core.dataset import Split
from modelfix_core.seeds import generator
from modelfix_core.torch import TorchModel, batches
from modelfix_core.torch.training import Feed, FineTuning, teach
from torch import Tensor
from torch.nn import functional

from modelfix_hybridrepair.annotation import Annotator
from modelfix_hybridrepair.approach import HybridRepairConfig
from modelfix_hybridrepair.repair import Rehearsal, Repair
from modelfix_hybridrepair.selection import Regions, choose
from modelfix_hybridrepair.smoothness import mean_predictions, sparsity, threshold, unsmoothness

logger = logging.getLogger(__name__)


class Run:
    """HybridRepair at work on one task.

    The labels of the repair split go to the annotator; no other part of the run sees them.

    Parameters
    ----------
    net : TorchModel
        With the original weights.
    task : Task
    config : HybridRepairConfig
    """

    def __init__(self, net: TorchModel, task: Task, config: HybridRepairConfig) -> None:
        assert task.train is not None, "`HybridRepair.check` refuses tasks without training images"
        self.net, self.task, self.config, self.train = net, task, config, task.train
        self.annotate = Annotator(task.repair.y, config.budget(len(task.repair)))
        self.ids = task.repair.ids
        self.images = unlabelled(task.repair)
        self.pool = Feed(self.images, net.device)

    def proposals(self) -> Iterator[Candidate | Evidence]:
        """Yield the annotations and the candidates of repair."""
        e, predicted = self.unsmoothness(self.pool, "pool")
        tau = self.tau() if self.config.tau is None else self.config.tau
        smooth = e <= tau
        regions = choose(
            self.features(), e, self.annotate, self.config, self.task.seed, self._progress
        )
        logger.info(
            "%d images annotated, which label %d; %d of %d images are smooth (tau %.4f)",
            self.annotate.spent,
            len(regions.index),
            np.count_nonzero(smooth),
            len(smooth),
            tau,
        )
        yield self.evidence(regions, e, predicted)
        yield from self.repair(regions, smooth, e)

    def _progress(self, note: str) -> None:
        self.task.progress(0, 1, note)

    # -- where the model is smooth -------------------------------------------------------------

    def unsmoothness(self, feed: Feed, what: str, after: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the unsmoothness of images with the net as it is, and their mean predictions."""
        rng = generator(self.task.seed, stage="smoothness", images=what, epoch=after)
        q = mean_predictions(self.net, feed, self.config.n_iters, rng, self._progress)
        e, top = unsmoothness(q)
        logger.info(
            "unsmoothness of the %s after %d epochs: mean %.4f of at most %.3f bits, total %.1f",
            what,
            after,
            e.mean(),
            top,
            e.sum(),
        )
        return e, q.argmax(axis=1)

    def tau(self) -> float:
        """Estimate up to which unsmoothness the model is as smooth as at average density."""
        validation = self.task.validation
        e, _ = self.unsmoothness(Feed(validation, self.net.device), "validation images")
        output = self.net.model.output_name
        points, reference = (self.values(split, output) for split in (validation, self.train))
        sparse = sparsity(points, reference, self.config.k_neighbors, self._progress)
        return threshold(e, sparse, self.config.density_images)

    def features(self) -> np.ndarray:
        """Return what enters the last dense layer, each row of length 1, [N, D]."""
        tensor = self.net.model.layers("dense")[-1].input
        features = self.values(self.images, tensor)
        return functional.normalize(features.double(), dim=1).cpu().numpy()

    def values(self, split: Split, tensor: str) -> Tensor:
        """Return an inner tensor of all images, [N, D]."""
        parts = []
        with torch.inference_mode():
            for x in batches(split, device=self.net.device):
                parts.append(self.net.activations(x, [tensor])[tensor].flatten(1))
                self._progress("features")
        return torch.cat(parts)

    # -- annotations ---------------------------------------------------------------------------

    def evidence(self, regions: Regions, e: np.ndarray, predicted: np.ndarray) -> Evidence:
        """Return whom was asked, and which images got a label without being asked for."""
        rows = regions.index
        asked = np.isin(rows, regions.centres)
        order = np.lexsort((e[rows] * -1, ~asked, regions.cluster[rows]))
        rows, asked = rows[order], asked[order]
        return Evidence(
            "annotations",
            f"{self.annotate.spent} annotated images (of {len(e)}) speak for {len(rows)}; the "
            "prediction is that of the mean over augmentations, unsmoothness its entropy over the "
            "largest.",
            {
                "cluster": regions.cluster[rows],
                "sample": self.ids[rows],
                "label": regions.label[rows],
                "predicted": predicted[rows],
                "unsmoothness": e[rows],
                "role": np.where(asked, "annotated", "propagated").tolist(),
            },
        )

    # -- repair --------------------------------------------------------------------------------

    def repair(self, regions: Regions, smooth: np.ndarray, e: np.ndarray) -> Iterator[Candidate]:
        """Warm up, then yield a candidate after every epoch of repair."""
        config = self.config
        pool = Split(self.images.x, regions.label)

        def unsmooth(finished: int) -> np.ndarray:
            return e if finished == 0 else self.unsmoothness(self.pool, "pool", finished)[0]

        lesson = Repair(self.net, self.train, pool, regions, smooth, unsmooth, config)
        if config.warm_up:
            warm_up = Rehearsal(self.net, lesson.labelled, len(self.train), config)
            recipe = self.recipe(config.warm_up)
            # What these epochs lead to is where repair starts, no result of it.
            for _ in teach(self.net, self.task, warm_up, recipe, name="warm-up", part=(0, 2)):
                pass
        recipe = self.recipe(config.epochs)
        yield from teach(self.net, self.task, lesson, recipe, name="repair", part=(1, 2))
        unsmooth(config.epochs)

    def recipe(self, epochs: int) -> FineTuning:
        """Return how both lessons are taught."""
        return FineTuning(
            epochs=epochs,
            learning_rate=self.config.learning_rate,
            batch_size=self.config.batch_size,
            momentum=self.config.momentum,
            nesterov=False,
            weight_decay=self.config.weight_decay,
            schedule="constant",
            patience=None,
        )


def unlabelled(split: Split) -> Split:
    """Return the images of a split with -1 for every label."""
    return Split(split.x, np.full(len(split), -1))
