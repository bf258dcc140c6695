"""The Editable Training approach: what it is, its options, and how it runs on a task."""

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

from modelfix_editable_training.places import editable_layers, trainable

ADAPTER_RATE = 1e-4  # of the editor (paper, ImageNet)


class EditableTrainingConfig(ApproachConfig):
    """Options of Editable Training.

    Sources: "paper" is Sinitsin et al. (ICLR 2020) with its code; "study" is the comparative study,
    which tells how a training objective becomes a fixing approach in words only; "ours" fills the
    gaps.
    """

    editable: Literal["auto", "adapter"] | tuple[str, ...] = Field(
        "auto",
        description="Which layers the editor changes: names of layers, `adapter` for a residual "
        "block added before the classifier (paper, for ImageNet), or `auto` (see the README).",
    )
    adapter_width: int = Field(4096, ge=1, description="Hidden units of the adapter (paper).")
    start: Literal["from-model", "scratch"] = Field(
        "from-model", description="Train from the model's weights (ours) or fresh ones (paper)."
    )
    edits: Literal["mispredicted-train", "repair-failures", "random-label"] = Field(
        "mispredicted-train",
        description="What is edited while training: mispredicted training images (study), failures "
        "of the repair split (ours), or any image with any label (paper).",
    )
    steps: int = Field(10, ge=1, le=100, description="Steps of the editor at most (paper).")
    alpha: float | None = Field(
        None,
        gt=0,
        description="Rate of the editor; default 1e-3, for an adapter 1e-4 (paper).",
    )
    beta: float = Field(
        0.5, ge=0, le=1, description="Decay of the editor's second moment, learned on (paper)."
    )
    epsilon: float = Field(1e-6, gt=0, description="Added to that moment (paper).")
    locality: float = Field(
        0.01, ge=0, description="Weight of the predictions' drift under an edit (paper)."
    )
    edit: float = Field(0.01, ge=0, description="Weight of what an edit leaves undone (paper).")
    base: Literal["cross-entropy", "distillation"] = Field(
        "cross-entropy",
        description="Base objective: the labels (paper, CIFAR-10), or the original model's "
        "predictions (paper, ImageNet).",
    )
    first_order: bool = Field(
        False, description="Leave out second derivatives (ours; faster, another result)."
    )
    every: int = Field(1, ge=1, description="Training steps for each edit (ours: 1, as paper).")
    clip: float = Field(10.0, gt=0, description="Largest norm of the gradient (paper).")
    learning_rates: tuple[Annotated[float, Field(gt=0, le=10)], ...] = Field(
        (1e-3, 1e-4),
        min_length=1,
        description="Of Adam, tried one after the other from the same start (study: grid search).",
    )
    epochs: int = Field(100, ge=1, le=10_000, description="Epochs of each learning rate (ours).")
    batch_size: int = Field(128, ge=1, description="Training images of a step (paper).")
    patience: int | None = Field(
        20,
        ge=1,
        description="Epochs without a better validation loss before a stop (ours; paper: 500).",
    )
    images_per_epoch: int | None = Field(
        None, ge=1, description="Training images of an epoch, drawn anew for each (ours: all)."
    )
    drawdown_edits: int = Field(
        10, ge=0, description="Edits of validation images that measure the drawdown (paper)."
    )
    apply_edits: bool = Field(
        False,
        description="Propose one more model in which the failures of the repair split are edited "
        "one by one, each kept if validation accuracy does not fall (ours).",
    )


class EditableTraining(Approach):
    """Train a model so that an editor can correct single mistakes without harm to the rest.

    An edit is a few gradient steps on one image and some layers until the model gives the wanted
    label. The training differentiates through the edits; for fixing, the edited images are those
    that the model gets wrong.
    """

    info = ApproachInfo(
        name="editable-training",
        abbreviation="ET",
        title="Editable Training",
        category=Category.MODEL,
        framework=Framework.TORCH,
        paper="Anton Sinitsin, Vsevolod Plokhotnyuk, Dmitriy Pyrkin, Sergei Popov, Artem Babenko: "
        "Editable Neural Networks. International Conference on Learning Representations (ICLR) "
        "2020, arXiv:2004.00345",
        summary="Retraining through an editor that corrects mispredicted training images.",
        needs=frozenset({Need.TRAIN, Need.VALIDATION, Need.GRADIENTS}),
        certainty="code",
    )
    Config = EditableTrainingConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"learning_rates": (1e-3,), "epochs": 15, "patience": 5},
        "paper": {
            "start": "scratch",
            "edits": "random-label",
            "learning_rates": (1e-3,),
            "epochs": 2000,
            "patience": 500,
        },
        "study": {},
    }

    def check(self, task: Task) -> None:
        """Refuse tasks without training images, without layers to edit, or with one class."""
        if task.train is None or len(task.train) < 2:
            raise Unadaptable("the task has no training images")
        if task.model.num_classes < 2:
            raise Unadaptable(
                "the model has fewer than two classes, so nothing can be mispredicted"
            )
        if len(trainable(task.model)) < 2:
            raise Unadaptable(
                "the model has fewer than two dense or convolutional layers; one is edited, and "
                "another learns to be edited"
            )
        editable_layers(task.model, self.config.editable)

    def candidates(self, task: Task) -> Iterator[Candidate]:
        """Yield the original model, then one candidate for each epoch of each learning rate."""
        task.progress(0, 1, "starting")
        with task.timing("conversion"):
            from modelfix_editable_training.run import repair
        yield Candidate(weights={})
        yield from repair(task, self.config)
