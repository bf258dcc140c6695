"""The HUDD approach: what it is, its options, and how it runs on a task."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from modelfix_core.approach import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Evidence,
    Framework,
    Localisation,
    Need,
    Task,
)
from modelfix_core.errors import Unadaptable
from pydantic import Field

from modelfix_hudd.places import Outline, outline

FEWEST_PLACES = 2


class HuddConfig(ApproachConfig):
    """Options of HUDD.

    Sources: "code" is the authors' implementation, "study" the comparative study, "ours" neither.
    """

    failures: Literal["repair", "validation"] = Field(
        "repair",
        description="Split whose mispredicted images are explained; further images always come "
        "from the repair split (study, as we read it).",
    )
    layers: int = Field(
        16, ge=2, le=1000, description="Layers whose heatmaps are compared, at most (code: 11)."
    )
    lrp_eps: float = Field(
        1e-9, gt=0, le=1, description="Stabiliser of divisions by relevance (code)."
    )
    memory: int = Field(
        2 * 1024**3,
        ge=1024**2,
        description="Bytes that heatmaps may take at a time; a layer above it is left out (ours).",
    )
    cluster_on: Literal["profile", "distance"] = Field(
        "profile",
        description="What Ward's method clusters: rows of the normalised distance matrix (code) "
        "or heatmaps by their distances.",
    )
    kmax: int = Field(
        500, ge=2, description="Most clusters tried, if half the failures are not fewer (code)."
    )
    k_select: Literal["gradient-knee", "knee", "minimum"] = Field(
        "gradient-knee",
        description="Number of clusters: knee of the gradient of the intra-cluster distance, of "
        "the distance itself, or its minimum (code: KG, KR, R).",
    )
    assign_factor: float = Field(
        2.0, gt=0, description="Images assigned to a cluster for each of its members (code)."
    )
    bag_factor: float = Field(
        1.0, gt=0, description="Images kept of them for each of its members (code)."
    )
    bagging: Literal["balanced", "reference"] = Field(
        "balanced",
        description="Whether each cluster's bag is cut to the common size, or the whole list, "
        "which takes images from the last clusters (code).",
    )
    learning_rates: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field(
        (1e-3,),
        min_length=1,
        description="Tried one after the other, each from the original weights (code: 1e-3; study: "
        "grid search).",
    )
    epochs: int = Field(
        10,
        ge=1,
        le=10_000,
        description="Epochs of each learning rate; every epoch is a candidate (code: 10 to 13).",
    )
    batch_size: int = Field(128, ge=1, description="Images of a step (code).")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of SGD, not Nesterov's (code).")
    weight_decay: float = Field(5e-4, ge=0, description="Of SGD (code).")
    patience: int | None = Field(
        None,
        ge=1,
        description="Epochs without a better validation loss before a stop (ours: none).",
    )


class Hudd(Approach):
    """Cluster the heatmaps of failures into root causes and retrain on images that resemble them.

    A relevance heatmap at every layer tells on what a misprediction rests. The layer whose heatmaps
    form the tightest clusters gives the root causes; further images whose heatmap is near a cluster
    join it, every cluster gets the same weight, and the model is retrained with them.
    """

    info = ApproachInfo(
        name="hudd",
        abbreviation="HUDD",
        title="HUDD",
        category=Category.MODEL,
        framework=Framework.TORCH,
        paper="Hazem Fahmy, Fabrizio Pastore, Mojtaba Bagherzadeh, Lionel Briand: Supporting Deep "
        "Neural Network Safety Analysis and Retraining Through Heatmap-Based Unsupervised "
        "Learning. IEEE Transactions on Reliability 70(4), 2021, pages 1641-1657. "
        "arXiv:2002.00863",
        summary="Heatmaps of failures are clustered into root causes, and the model is retrained "
        "with images that resemble each.",
        needs=frozenset({Need.TRAIN, Need.REPAIR, Need.VALIDATION, Need.GRADIENTS}),
        localises=True,
        certainty="code",
    )
    Config = HuddConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"learning_rates": (1e-2, 1e-3), "epochs": 5},
        "paper": {},
        "study": {"learning_rates": (1e-4, 1e-3, 1e-2), "epochs": 20},
    }

    def check(self, task: Task) -> None:
        """Refuse tasks without training images and models with fewer than two inner places."""
        self._outline(task)

    def _outline(self, task: Task) -> Outline:
        if task.train is None or len(task.train) == 0:
            raise Unadaptable("the task has no training images to retrain on")
        found = outline(task.model, self.config.layers)
        if len(found.places) < FEWEST_PLACES:
            raise Unadaptable(
                f"the model has {len(found.places)} inner layers whose heatmaps could be compared; "
                f"at least {FEWEST_PLACES} are needed"
            )
        return found

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation | Evidence]:
        """Yield layers with their scores, the root causes, and a candidate after every epoch."""
        task.progress(0, 1, "starting")
        with task.timing("conversion"):
            from modelfix_core.torch import load

            from modelfix_hudd.run import Run

            net = load(task.model, task.device)
        yield from Run(net, task, self.config, self._outline(task)).proposals()
