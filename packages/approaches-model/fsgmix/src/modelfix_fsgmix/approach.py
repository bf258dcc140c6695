"""The FSGMix approach: what it is, its options, and how it runs on a task."""

import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from modelfix_core.approach import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Framework,
    Need,
    Task,
)
from modelfix_core.errors import Unadaptable
from pydantic import Field

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 4


class FSGMixConfig(ApproachConfig):
    """Options of FSGMix.

    Sources: "study" is the comparative study, "AugMix" and "DeepRepair" are the methods that FSGMix
    most likely shares its augmentation and loss with, "ours" is a reconstruction.
    """

    n_shot: int = Field(10, ge=1, description="Failures of each class that guide, at most (ours).")
    shots_at_most: int = Field(
        1000, ge=2, description="Failures that guide, at most, in all (ours)."
    )
    probe: int = Field(
        512, ge=2, description="Training images on which operations are tried (ours)."
    )
    probe_side: int = Field(
        64, ge=8, description="Larger images are reduced to this side for guidance only (ours)."
    )
    exploration: float = Field(
        0.1, ge=0, le=1, description="Share of the draws that all operations have alike (ours)."
    )
    weight_floor: float = Field(
        0.2, ge=0, le=1, description="Least centre of the weight of the augmentation (ours)."
    )
    weight_spread: float = Field(
        0.15, ge=0, le=1, description="Standard deviation of that weight (ours)."
    )
    width: int = Field(3, ge=1, le=16, description="Chains of each view (AugMix).")
    views: int = Field(2, ge=1, le=8, description="Augmented views of each image (study).")
    fail_mix: bool = Field(
        False,
        description="One more chain blends each image with a guiding failure of its class (ours: "
        "another reading of the title).",
    )
    include_failures: bool = Field(
        False, description="Train on the guiding failures too (ours; the study: guides only)."
    )
    loss: Literal["jsd", "expanded"] = Field(
        "jsd",
        description="jsd: cross-entropy of the image and consistency of its views (AugMix, "
        "DeepRepair); expanded: cross-entropy of all views (literal reading of the study).",
    )
    consistency: float = Field(
        12.0, ge=0, description="Weight of the consistency (AugMix, DeepRepair)."
    )
    learning_rates: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field(
        (1e-2, 1e-3, 1e-4),
        min_length=1,
        description="Tried one after the other, each from the original weights (study: grid "
        "search, small rates).",
    )
    epochs: int = Field(10, ge=1, le=10_000, description="Epochs of each learning rate (ours).")
    batch_size: int = Field(128, ge=1, description="Training images of a step (AugMix).")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum (AugMix, DeepRepair).")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay (AugMix, DeepRepair).")
    patience: int | None = Field(
        5, ge=1, description="Epochs without a better validation loss before a stop (ours)."
    )
    crop: int = Field(
        0, ge=0, description="Pixels of random shift, as in the model's own training (AugMix)."
    )
    flip: bool = Field(
        False,
        description="Random mirroring, as in the model's own training; not for digits (AugMix).",
    )
    images_per_epoch: int | None = Field(
        None, ge=1, description="Training images of an epoch, drawn anew for each (ours: all)."
    )
    recalibrate_bn: bool = Field(
        False,
        description="Estimate the statistics of BatchNorm on clean images after each epoch (ours).",
    )
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true", description="Of the training passes (ours)."
    )


class FSGMix(Approach):
    """Fine-tune on views of the training images that resemble a few failures.

    The failures of the repair split show in which direction the operational images differ from the
    training images. Operations, their strengths and the mixing weight are chosen so that augmented
    training images fall there; the model learns to predict the same for an image and its views.
    """

    info = ApproachInfo(
        name="fsgmix",
        abbreviation="FM",
        title="FSGMix",
        category=Category.MODEL,
        framework=Framework.TORCH,
        paper="Xuhong Ren, Bing Yu, Hua Qi, Felix Juefei-Xu, Zhuo Li, Wanli Xue, Lei Ma, Jianjun "
        "Zhao: Few-Shot Guided Mix for DNN Repairing. IEEE International Conference on Software "
        "Maintenance and Evolution (ICSME) 2020, pages 717-721",
        summary="Fine-tuning on augmented training images; a few failures choose the augmentation.",
        needs=frozenset({Need.TRAIN, Need.REPAIR, Need.VALIDATION, Need.IMAGES, Need.GRADIENTS}),
        certainty="study-text",
    )
    Config = FSGMixConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"epochs": 5, "images_per_epoch": 10_000},
        "study": {"learning_rates": (1e-2, 1e-3, 1e-4), "epochs": 10},
        "literal": {"loss": "expanded"},
    }

    def check(self, task: Task) -> None:
        """Refuse tasks without training images, inputs that are no images, and fixed functions."""
        channels, height, width = task.model.input_shape
        if channels not in (1, 3) or min(height, width) < SMALLEST_SIDE:
            raise Unadaptable(
                f"the inputs have shape {[channels, height, width]}; images with 1 or 3 channels "
                f"and sides of at least {SMALLEST_SIDE} pixels are needed"
            )
        if task.train is None or len(task.train) < 2:
            raise Unadaptable("the task has no training images to augment")
        if not task.model.layers():
            raise Unadaptable("the model has no layer that could be trained")

    def candidates(self, task: Task) -> Iterator[Candidate]:
        """Yield the original model, then one candidate for each epoch of each learning rate."""
        task.progress(0, 1, "starting")
        train = task.train
        assert train is not None, "`check` refuses tasks without training images"
        with task.timing("conversion"):
            from modelfix_core.torch import load

            from modelfix_fsgmix.fine_tuning import repair
            from modelfix_fsgmix.guidance import guide

            net = load(task.model, task.device)
        guidance = guide(
            task.model,
            train,
            task.repair,
            self.config,
            seed=task.seed,
            device=task.device,
            progress=lambda note: task.progress(0, 1, note),
        )
        logger.info("%s", guidance)
        yield Candidate(
            weights={},
            values={
                "failures": guidance.failures,
                "shots": len(guidance.shots),
                "guided": guidance.guided,
                "distance": guidance.distance,
                "null_distance": guidance.null,
                "depth": guidance.depth,
                "weight": guidance.weight,
            },
        )
        yield from repair(net, task, self.config, guidance)
