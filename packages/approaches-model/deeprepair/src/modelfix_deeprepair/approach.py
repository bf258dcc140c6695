"""The DeepRepair approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from modelfix_core.approach import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Evidence,
    Framework,
    Need,
    Task,
)
from modelfix_core.errors import Unadaptable
from pydantic import Field, model_validator

SMALLEST_SIDE = 16


class DeepRepairConfig(ApproachConfig):
    """Options of DeepRepair.

    Sources: "code" is the authors' implementation, "study" the comparative study, "ours" neither.
    """

    n_fail: int = Field(
        100, ge=1, description="Failures of each class that are clustered, at most (code)."
    )
    k: int = Field(
        5, ge=1, description="Clusters of each class, at most; each gives one style image (code)."
    )
    backend: Literal["haar", "wave-ae", "vgg-ae", "wct2", "feature-adain"] = Field(
        "haar",
        description="What transfers a style: bands of a Haar pyramid (ours); an autoencoder with "
        "Haar pooling, learned on the training images (ours, close to the code); the same with the "
        "encoder of VGG19 from a local file (ours, closer); WCT2 from its authors' files (code); "
        "statistics of the model's own first layer (ours, white-box).",
    )
    vgg_weights: Path | None = Field(
        None, description="File of VGG19's weights, named as torchvision's, for vgg-ae."
    )
    wct2_weights: Path | None = Field(
        None, description="Folder of WCT2's checkpoints (cat5), for wct2."
    )
    alpha: float = Field(1.0, ge=0, le=1, description="Strength of the style (code).")
    levels: int = Field(3, ge=1, le=4, description="Of the Haar pyramid (ours).")
    eigenvalue: float = Field(
        1e-5,
        ge=1e-7,
        le=1,
        description="Added to each eigenvalue of the covariances of Haar bands; smaller ones "
        "amplify rounding in flat images (ours).",
    )
    autoencoder_epochs: int = Field(5, ge=1, description="Of the autoencoder (ours).")
    autoencoder_images: int = Field(
        10_000, ge=1, description="Images of each of these epochs, at most (ours)."
    )
    style_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the training images that are stylised; the others stand for their "
        "stylised copies themselves (code: all; the study cannot have done so for ImageNet).",
    )
    all_ops: bool = Field(
        False, description="Change colour, contrast, brightness and sharpness too (code: off)."
    )
    width: int = Field(3, ge=1, le=16, description="Chains of each view (code).")
    depth: int = Field(3, ge=1, le=8, description="Longest chain (code).")
    views: int = Field(2, ge=1, le=8, description="Views of each image (code).")
    align_style: bool = Field(
        True,
        description="Crop and flip an image and its stylised copy alike (ours; code: the image "
        "only).",
    )
    include_failures: bool = Field(
        False, description="Train on the clustered failures too (ours; code: styles only)."
    )
    consistency: float = Field(12.0, ge=0, description="Weight of the consistency (code).")
    learning_rates: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field(
        (1e-2, 1e-3, 1e-4),
        min_length=1,
        description="Tried one after the other, each from the original weights (study: grid "
        "search; code: 0.1).",
    )
    epochs: int = Field(
        30, ge=1, le=10_000, description="Of each learning rate (ours; code: until the stop)."
    )
    batch_size: int = Field(64, ge=1, description="Training images of a step (code).")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum (code).")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay (code).")
    patience: int | None = Field(
        5, ge=1, description="Epochs without a better validation loss before a stop (code)."
    )
    crop: int = Field(
        0, ge=0, description="Pixels of random shift, as in the model's own training (code: 4)."
    )
    flip: bool = Field(
        False,
        description="Random mirroring, as in the model's own training; not for digits (code: on).",
    )
    images_per_epoch: int | None = Field(
        None, ge=1, description="Training images of an epoch, drawn anew for each (code: all)."
    )
    recalibrate_bn: bool = Field(
        False,
        description="Estimate the statistics of BatchNorm on clean images after each epoch (ours).",
    )
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true", description="Of the training passes (ours)."
    )

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if (self.backend == "vgg-ae") != (self.vgg_weights is not None):
            raise ValueError("backend vgg-ae and a file of vgg_weights go together")
        if (self.backend == "wct2") != (self.wct2_weights is not None):
            raise ValueError("backend wct2 and a folder of wct2_weights go together")
        return self


class DeepRepair(Approach):
    """Fine-tune on training images in the style of the failures.

    Failures of the repair split are clustered class by class; an image of each cluster gives its
    style to training images, whose labels stay known. The model learns to predict the same for an
    image and for mixtures of augmented and stylised versions of it.
    """

    info = ApproachInfo(
        name="deeprepair",
        abbreviation="DR",
        title="DeepRepair",
        category=Category.MODEL,
        framework=Framework.TORCH,
        paper="Bing Yu, Hua Qi, Qing Guo, Felix Juefei-Xu, Xiaofei Xie, Lei Ma, Jianjun Zhao: "
        "DeepRepair: Style-Guided Repairing for Deep Neural Networks in the Real-World Operational "
        "Environment. IEEE Transactions on Reliability 71(4), 2022, pages 1401-1416",
        summary="Fine-tuning on training images in the style of clustered failures.",
        needs=frozenset({Need.TRAIN, Need.REPAIR, Need.VALIDATION, Need.IMAGES, Need.GRADIENTS}),
        certainty="code",
    )
    Config = DeepRepairConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"epochs": 5, "images_per_epoch": 10_000, "batch_size": 128},
        "study": {},
        "paper": {"backend": "wave-ae", "learning_rates": (0.1,), "epochs": 100},
    }

    def check(self, task: Task) -> None:
        """Refuse inputs that are no images, tasks without training images, fixed functions."""
        channels, height, width = task.model.input_shape
        if channels not in (1, 3) or min(height, width) < SMALLEST_SIDE:
            raise Unadaptable(
                f"the inputs have shape {[channels, height, width]}; images with 1 or 3 channels "
                f"and sides of at least {SMALLEST_SIDE} pixels are needed"
            )
        if task.train is None or not len(task.train):
            raise Unadaptable("the task has no training images to stylise")
        layers = task.model.layers()
        if not layers:
            raise Unadaptable("the model has no layer that could be trained")
        if self.config.backend == "feature-adain" and layers[0].kind != "conv":
            raise Unadaptable(
                f"the first layer, {layers[0].name}, is no convolution; the backend feature-adain "
                "changes the channels of one"
            )

    def candidates(self, task: Task) -> Iterator[Candidate | Evidence]:
        """Yield the styles, the original model, and each epoch of each learning rate."""
        task.progress(0, 1, "starting")
        with task.timing("conversion"):
            from modelfix_core.torch import load

            from modelfix_deeprepair.repair import proposals

            net = load(task.model, task.device)
        yield from proposals(net, task, self.config)
