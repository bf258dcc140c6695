"""Train with edits, measure the drawdown after every epoch, and propose each epoch's model."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from modelfix_core.approach import Candidate, Task
from modelfix_core.errors import Unadaptable
from modelfix_core.model import Model
from modelfix_core.seeds import generator, seed_for
from modelfix_core.torch import PrefixCache, TorchModel, load
from modelfix_core.torch.initialising import reinitialise
from modelfix_core.torch.training import FineTuning, teach
from torch import Tensor, nn

from modelfix_editable_training.approach import ADAPTER_RATE, EditableTrainingConfig
from modelfix_editable_training.editor import Editor, Halves, Weights
from modelfix_editable_training.lesson import (
    Editing,
    FailurePool,
    Pool,
    RandomLabelPool,
    cross_entropy,
    distillation,
)
from modelfix_editable_training.places import ADAPTER, editable_layers, with_adapter

logger = logging.getLogger(__name__)

ADAPTER_LAYERS = (f"{ADAPTER}.0", f"{ADAPTER}.1")
BETA = "editor_beta"
BATCH = 500


def repair(task: Task, config: EditableTrainingConfig) -> Iterator[Candidate]:
    """Yield a candidate after every epoch of each learning rate."""
    model, layers = editable(task, config)
    adapted = model is not task.model
    for position, rate in enumerate(config.learning_rates):
        with task.timing("conversion"):
            net = load(model, task.device)
        if config.start == "scratch":
            reinitialise(net, seed_for(seed=task.seed, stage="weights"))
        editor = make_editor(net, layers, config)
        recipe = recipe_of(config, rate)
        lesson = make_lesson(editor, task, config, recipe)
        if position == 0:
            dry_run(lesson)
        watch = Drawdown(editor, task, config)
        epochs = teach(
            net,
            task,
            lesson,
            recipe,
            name=f"learning rate {rate:g}",
            part=(position, len(config.learning_rates)),
            measure=watch.measure,
        )
        best: Candidate | None = None
        for candidate in epochs:
            yield _whole(candidate, model) if adapted else candidate
            if best is None or _accuracy(candidate) >= _accuracy(best):
                best = candidate
        if config.apply_edits and best is not None:
            net.reset()
            net.set_weights(best.weights or {})
            candidate = watch.apply(best, task)
            yield _whole(candidate, model) if adapted else candidate


def editable(task: Task, config: EditableTrainingConfig) -> tuple[Model, tuple[str, ...]]:
    """Return the model that is trained, perhaps with an adapter, and its editable layers."""
    layers = editable_layers(task.model, config.editable)
    if layers:
        return task.model, layers
    seed = seed_for(seed=task.seed, stage="adapter")
    return with_adapter(task.model, config.adapter_width, seed), ADAPTER_LAYERS


def make_editor(net: TorchModel, layers: tuple[str, ...], config: EditableTrainingConfig) -> Editor:
    """Return the editor; its decay becomes a parameter of `net`, trained with the rest."""
    beta = nn.Parameter(torch.tensor(config.beta, device=net.device))
    net.register_parameter(BETA, beta)
    default = ADAPTER_RATE if layers == ADAPTER_LAYERS else 1e-3
    return Editor(Halves(net, layers), config.steps, config.alpha or default, config.epsilon, beta)


def recipe_of(config: EditableTrainingConfig, rate: float) -> FineTuning:
    """Return how the network is trained."""
    return FineTuning(
        epochs=config.epochs,
        learning_rate=rate,
        batch_size=config.batch_size,
        optimizer="adam",
        weight_decay=0.0,
        schedule="constant",
        patience=config.patience,
        images_per_epoch=config.images_per_epoch,
        clip=config.clip,
    )


def make_lesson(
    editor: Editor, task: Task, config: EditableTrainingConfig, recipe: FineTuning
) -> Editing:
    """Return what is taught: base objective, pool of edits and weights of the parts."""
    net = editor.halves.net
    assert task.train is not None, "`check` refuses tasks without training images"
    pool = Pool()
    if config.edits == "random-label":
        pool = RandomLabelPool(task.model.num_classes)
    elif config.edits == "repair-failures":
        wrong = task.model.predict(task.repair).argmax(axis=1) != task.repair.y
        if wrong.any():
            pool = FailurePool(task.repair.select(np.flatnonzero(wrong)), net.device)
        else:
            logger.info("no failure in the repair split: the training images are edited")
    original = load(task.model, task.device) if config.base == "distillation" else None
    return Editing(
        editor,
        task.train,
        recipe,
        pool,
        cross_entropy if original is None else distillation(original),
        locality=config.locality,
        edit=config.edit,
        first_order=config.first_order,
        every=config.every,
    )


def dry_run(lesson: Editing) -> None:
    """Differentiate through one edit; a network that cannot be is UNADAPTABLE.

    Raises
    ------
    Unadaptable
        With the reason.
    """
    x, y = next(iter(lesson.feed.batches(np.arange(min(2, len(lesson.feed))), 2)))
    wanted = (y[:1] + 1) % lesson.net.model.num_classes
    trained = [p for p in lesson.net.parameters() if p.requires_grad]
    try:
        loss, _ = lesson.loss(x, y, (x[:1], wanted))
        torch.autograd.grad(loss, trained, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise Unadaptable(
            f"the model cannot be differentiated through an edit ({reason})"
        ) from error


class Drawdown:
    """What edits do to the rest: measured on validation, the cut tensors computed once a time.

    Parameters
    ----------
    editor : Editor
    task : Task
    config : EditableTrainingConfig
    """

    def __init__(self, editor: Editor, task: Task, config: EditableTrainingConfig) -> None:
        self.editor, self.validation = editor, task.validation
        self.edits = min(config.drawdown_edits, len(task.validation))
        self.labels = torch.from_numpy(np.array(task.validation.y)).to(editor.halves.net.device)
        rng = generator(task.seed, stage="drawdown")
        self.places = rng.choice(len(task.validation), self.edits, replace=False)
        self.wanted = rng.integers(task.model.num_classes, size=self.edits)

    def measure(self) -> dict[str, float]:
        """Return the rise of the validation error by an edit, and how often edits succeed.

        Each image is edited alone, to a label drawn at random, as in the paper.
        """
        if not self.edits:
            return {}
        halves = self.editor.halves
        features = PrefixCache(halves.net, [halves.cut], self.validation)
        before = self._errors(features)
        errors, successes, steps = [], [], []
        for place, wanted in zip(self.places, self.wanted, strict=True):
            h = features[slice(place, place + 1)][halves.cut]
            edit = self.editor.edit(h, self.labels.new_tensor([wanted]), graph=False)
            errors.append(self._errors(features, edit.weights) if edit.steps else before)
            successes.append(edit.success)
            steps.append(edit.steps)
        return {
            "drawdown": float(np.mean(errors)) - before,
            "edit_success": float(np.mean(successes)),
            "edit_steps": float(np.mean(steps)),
        }

    def apply(self, trained: Candidate, task: Task) -> Candidate:
        """Edit the failures of the repair split one after the other.

        An edit is kept if the validation accuracy does not fall. Each edit starts from what the
        kept ones before it left, so they cannot be made at once.
        """
        halves, net = self.editor.halves, self.editor.halves.net
        held = PrefixCache(net, [halves.cut], self.validation)
        repair = PrefixCache(net, [halves.cut], task.repair)
        labels = torch.from_numpy(np.array(task.repair.y)).to(net.device)
        best = self._errors(held)
        kept = 0
        wrong = self._wrong(repair, labels)
        for done, place in enumerate(np.flatnonzero(wrong), start=1):
            task.progress(done, int(wrong.sum()), f"{kept} edits kept")
            window = slice(int(place), int(place) + 1)
            edit = self.editor.edit(repair[window][halves.cut], labels[window], graph=False)
            error = self._errors(held, edit.weights) if edit.steps else np.inf
            if edit.success and error <= best:
                best, kept = error, kept + 1
                net.set_weights(edit.weights)
        return Candidate(
            weights=net.weights(),
            validation_accuracy=1 - best,
            step=trained.step,
            values={"edits": kept},
        )

    def _errors(self, features: PrefixCache, weights: Weights | None = None) -> float:
        return float(self._wrong(features, self.labels, weights).mean())

    def _wrong(
        self, features: PrefixCache, labels: Tensor, weights: Weights | None = None
    ) -> np.ndarray:
        halves = self.editor.halves
        found = []
        with torch.no_grad():
            for start in range(0, len(features), BATCH):
                window = slice(start, start + BATCH)
                logits = halves.suffix(features[window][halves.cut], weights)
                found.append(logits.argmax(dim=1) != labels[window])
        return torch.cat(found).cpu().numpy()


def _whole(candidate: Candidate, model: Model) -> Candidate:
    """Turn weights of the model with the adapter into a model."""
    weights = candidate.weights or {}
    return replace(candidate, weights=None, model=model.with_weights(weights))


def _accuracy(candidate: Candidate) -> float:
    return candidate.validation_accuracy or 0.0
