"""The HybridRepair approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

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
from pydantic import Field

SMALLEST_POOL = 100
SMALLEST_SIDE = 4


class HybridRepairConfig(ApproachConfig):
    """Options of HybridRepair.

    Sources: "code" is the authors' implementation with the options of its script, "ours" is not.
    """

    p_budget: float = Field(
        1.0, gt=0, le=100, description="Share of the repair split that is annotated, % (code)."
    )
    n_iters: int = Field(8, ge=1, le=64, description="Augmentations of an image, K (code).")
    k_neighbors: int = Field(
        100, ge=1, description="Nearest training images that tell the density (code)."
    )
    tau: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Unsmoothness up to which an image is used without a label; none estimates it "
        "(code; its fixed value is 0.1).",
    )
    density_images: int = Field(
        1000, ge=1, description="Validation images of average density that tell tau (code)."
    )
    min_samples: int = Field(
        3,
        ge=1,
        description="Neighbours that make a point dense, without the point itself (code).",
    )
    min_cluster_size: int = Field(5, ge=2, description="Of HDBSCAN (code).")
    avg_clustersize: int = Field(
        10, ge=1, description="Images of a cluster that share a label, on average (code)."
    )
    centres: Literal["members", "pool"] = Field(
        "members",
        description="Whether the image that is annotated for a cluster must belong to it (ours) "
        "or is the nearest of all (code).",
    )
    warm_up: int = Field(
        10, ge=0, le=10_000, description="Epochs on replayed training images before repair (code)."
    )
    epochs: int = Field(10, ge=1, le=10_000, description="Epochs of repair (code).")
    learning_rate: float = Field(1e-3, ge=0, le=10, description="Of SGD (code).")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of SGD, not Nesterov's (code).")
    weight_decay: float = Field(5e-4, ge=0, description="Of SGD (code).")
    batch_size: int = Field(
        64, ge=2, description="Labelled images of a step, and images without label (code)."
    )
    lam_ul: float = Field(100.0, ge=0, description="Weight of the loss without labels (code).")
    temperature: float = Field(0.5, gt=0, le=10, description="Of sharpening (code).")
    alpha: float = Field(0.75, gt=0, description="Of mixup's Beta distribution (code).")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Mass of the other classes in labels (code)."
    )
    replay: Literal["twice", "once"] = Field(
        "twice",
        description="How often in an epoch the training images that are still right are found "
        "(code: before each of its two passes).",
    )
    replay_images: int | None = Field(
        None, ge=1, description="Training images of an epoch, drawn anew for each (code: all)."
    )
    crop: int = Field(
        0, ge=0, description="Pixels of random shift, as in the model's own training (code)."
    )
    flip: bool = Field(
        False,
        description="Random mirroring, as in the model's own training; not for digits (code).",
    )

    def budget(self, pool: int) -> int:
        """Return how many of so many images are annotated."""
        return int(self.p_budget * pool / 100 + 1e-9)


class HybridRepair(Approach):
    """Annotate few images where the model is least smooth, and learn from all the others too.

    Images without labels are clustered by the model's features. The budget goes to the clusters
    whose predictions change most under augmentation; the label of a centre is given to its whole
    cluster. Images on which the model is smooth join without a label, and training images that the
    model still gets right are replayed.
    """

    info = ApproachInfo(
        name="hybridrepair",
        abbreviation="HR",
        title="HybridRepair",
        category=Category.MODEL,
        framework=Framework.TORCH,
        paper="Yu Li, Muxi Chen, Qiang Xu: HybridRepair: Towards Annotation-Efficient Repair for "
        "Deep Learning Models. ISSTA 2022, pages 227-238",
        summary="A few annotated images speak for their clusters, and fine-tuning uses the others "
        "without labels.",
        needs=frozenset({Need.TRAIN, Need.REPAIR, Need.VALIDATION, Need.IMAGES, Need.GRADIENTS}),
        certainty="code",
    )
    Config = HybridRepairConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"warm_up": 2, "epochs": 5, "replay_images": 6_400},
        "paper": {},
        "study": {},
    }

    def check(self, task: Task) -> None:
        """Refuse inputs that are no images, models without features, and too few images."""
        channels, height, width = task.model.input_shape
        if channels not in (1, 3) or min(height, width) < SMALLEST_SIDE:
            raise Unadaptable(
                f"the inputs have shape {[channels, height, width]}; images with 1 or 3 channels "
                f"and sides of at least {SMALLEST_SIDE} pixels are needed"
            )
        if task.train is None or len(task.train) == 0:
            raise Unadaptable("the task has no training images to replay")
        if not task.model.layers("dense"):
            raise Unadaptable("the model has no dense layer whose input could serve as features")
        fewest = max(SMALLEST_POOL, 2 * self.config.min_cluster_size)
        if len(task.repair) < fewest:
            raise Unadaptable(
                f"the repair split has {len(task.repair)} images; at least {fewest} are needed to "
                "find clusters"
            )
        if self.config.budget(len(task.repair)) < 1:
            raise Unadaptable(
                f"{self.config.p_budget:g} % of {len(task.repair)} images is no image to annotate"
            )

    def candidates(self, task: Task) -> Iterator[Candidate | Evidence]:
        """Yield the annotations and then a candidate after every epoch of repair."""
        task.progress(0, 1, "starting")
        with task.timing("conversion"):
            from modelfix_core.torch import load

            from modelfix_hybridrepair.run import Run

            net = load(task.model, task.device)
        yield from Run(net, task, self.config).proposals()
