"""The rounds: adapt, look, retrain, look again; the best model on validation is kept."""

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from modelfix_core.approach import Candidate, Evidence, Task
from modelfix_core.checkpoint import read_checkpoint, write_checkpoint
from modelfix_core.dataset import Split
from modelfix_core.seeds import generator
from modelfix_core.torch import TorchModel
from modelfix_core.torch.training import (
    RECALIBRATION_IMAGES,
    VALIDATION_BATCH,
    Feed,
    FineTuning,
    Supervised,
    Training,
    recalibrate_batchnorm,
    validate,
)

from modelfix_apricot.adaptation import move
from modelfix_apricot.approach import ApricotConfig
from modelfix_apricot.submodels import Submodels, flat, set_flat, steps_of, train_submodels

logger = logging.getLogger(__name__)

REPORT_EVERY = 0.5  # seconds


def recipe_of(config: ApricotConfig, images: int) -> FineTuning:
    """Return how the model is retrained on so many images."""
    return FineTuning(
        epochs=config.rounds_for(images) * config.retraining_epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        optimizer="adam",
        weight_decay=0.0,
        schedule="constant",
        patience=None,
    )


def repair(net: TorchModel, task: Task, config: ApricotConfig) -> Iterator[Candidate | Evidence]:
    """Train submodels, then yield the best model so far after each round."""
    loop = Loop(net, task, config)
    yield loop.original()
    if config.eta > 0:
        submodels = train_submodels(net, task, config, loop.report)
        yield votes(loop.train, loop.predictions(np.arange(len(loop.train))), submodels)
        loop.submodels = submodels
    yield from loop.run()


def votes(train: Split, predicted: np.ndarray, submodels: Submodels) -> Evidence:
    """Tell of each training image that the original mispredicts how many submodels are right."""
    failing = np.flatnonzero(predicted != train.y)
    return Evidence(
        "votes",
        "Training images that the original model mispredicts, and how many of the "
        f"{submodels.right.shape[1]} submodels are right; where all agree nothing moves.",
        {
            "sample": train.ids[failing],
            "label": train.y[failing],
            "predicted": predicted[failing],
            "right_submodels": submodels.right[failing].sum(axis=1),
        },
    )


@dataclass
class State:
    """How far a run has come.

    Attributes
    ----------
    epochs : int
        Of retraining, in all.
    best : int
        Number of the best model so far; 0 is the original, others count the improvements.
    best_accuracy : float
        Of it, on validation.
    improved : int
        The round in which it was found.
    rounds : list of (int, float, dict)
        Of each finished round the best model then, its accuracy, and the round's values.
    current : dict
        Values of the round that has begun; empty between rounds.
    """

    best_accuracy: float
    epochs: int = 0
    best: int = 0
    improved: int = 0
    rounds: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    current: dict[str, float] = field(default_factory=dict)


class Loop:
    """The rounds of one run.

    Parameters
    ----------
    net : TorchModel
        With the weights of the original model.
    task : Task
    config : ApricotConfig
    submodels : Submodels, optional
        Without them nothing is adapted.
    """

    def __init__(
        self,
        net: TorchModel,
        task: Task,
        config: ApricotConfig,
        submodels: Submodels | None = None,
    ) -> None:
        assert task.train is not None, "`Apricot.check` refuses tasks without training images"
        self.net, self.task, self.config, self.submodels = net, task, config, submodels
        self.train = task.train
        recipe = recipe_of(config, len(self.train))
        self.lesson = Supervised(net, self.train, recipe)
        self.training = Training(
            net,
            self.lesson,
            recipe,
            device=task.device,
            seed=task.seed,
            name="retraining",
            on_step=self._report_step,
        )
        self.validation = Feed(task.validation, net.device)
        self.total = config.rounds_for(len(self.train))
        self.before = config.submodels * steps_of(self.train.y, config) if config.eta else 0
        self.reported = 0.0
        self.checkpoints = Checkpoints.of(task, config)
        self.best: dict[str, np.ndarray] = {}
        self.state = State(self._accuracy())

    def original(self) -> Candidate:
        """Return the original model, the first to be the best."""
        return Candidate(weights={}, validation_accuracy=self.state.best_accuracy)

    def run(self) -> Iterator[Candidate]:
        """Yield the best model so far after each round, those of finished rounds again first."""
        yield from self._resume()
        yield from self._rounds()
        moves_kept = sum(v["kept"] for _, _, v in self.state.rounds if v["moved"])
        if self.submodels is not None and not moves_kept:
            logger.warning(
                "no adaptation was kept: the result is that of plain retraining (eta = 0)"
            )

    def _rounds(self) -> Iterator[Candidate]:
        while len(self.state.rounds) < self.total:
            state, number = self.state, len(self.state.rounds) + 1
            if not state.current:
                state.current = self._adapt(number)
                patience = self.config.patience
                if patience is not None and number - state.improved > patience:
                    logger.info("no better model in %d rounds, stopped", patience)
                    return
            while state.epochs < number * self.config.retraining_epochs:
                self._retrain(number)
            yield self._candidate(number)

    # -- a round -------------------------------------------------------------------------------

    def _adapt(self, number: int) -> dict[str, float]:
        """Move the weights for the failing images of the round, and go back if it is worse."""
        index = self._batch(number)
        failing = index[self.predictions(index) != self.train.y[index]]
        moved, scale = 0, 1.0
        if self.submodels is not None:
            step = move(
                self.submodels.right[failing],
                self.config.eta,
                self.config.strategy,
                self.config.sigma,
            )
            set_flat(self.net, step.apply(flat(self.net), self.submodels.weights))
            moved, scale = step.samples, step.scale
        if moved and self.config.recalibrate_bn:
            size = min(RECALIBRATION_IMAGES, len(self.train))
            recalibrate_batchnorm(
                self.net, self.lesson.feed, np.arange(size), self.config.batch_size
            )
            self.net.eval()
        accuracy = self._accuracy()
        kept = accuracy >= self.state.best_accuracy
        self._consider(accuracy, number)
        if not kept:
            self.net.reset()
            self.net.set_weights(self.best)
        self._report(
            number, 0, f"{len(failing)} failing, adapted accuracy {accuracy:.2%}, kept: {kept}"
        )
        return {
            "failing": len(failing),
            "moved": moved,
            "scale": scale,
            "adapted_accuracy": accuracy,
            "kept": float(kept),
        }

    def _retrain(self, number: int) -> None:
        """Train an epoch; after the last one of the round the model can be the best."""
        state = self.state
        loss, train_accuracy = self.training.epoch(state.epochs + 1)
        state.epochs += 1
        if state.epochs == number * self.config.retraining_epochs:
            accuracy = self._accuracy()
            if self.config.select_post_training:
                self._consider(accuracy, number)
            values = state.current | {
                "loss": loss,
                "train_accuracy": train_accuracy,
                "retrained_accuracy": accuracy,
                "steps": state.epochs * self.training.steps,
            }
            state.rounds.append((state.best, state.best_accuracy, values))
            state.current = {}
            self._report(
                number,
                self.config.retraining_epochs * self.training.steps,
                f"loss {loss:.4f}, accuracy {accuracy:.2%}, best {state.best_accuracy:.2%}",
            )
        if self.checkpoints is not None:
            self.checkpoints.write(state, self.net, self.training)

    def _consider(self, accuracy: float, number: int) -> None:
        """Keep a copy of the weights if they are better than the best."""
        state = self.state
        if accuracy > state.best_accuracy:
            state.best, state.best_accuracy, state.improved = state.best + 1, accuracy, number
            self.best = self.net.weights()
            if self.checkpoints is not None:
                self.checkpoints.write_best(state.best, self.best)

    def _candidate(self, number: int) -> Candidate:
        _, accuracy, values = self.state.rounds[number - 1]
        return Candidate(
            weights=self.best, validation_accuracy=accuracy, step=number, values=values
        )

    def _batch(self, number: int) -> np.ndarray:
        """Return the training images that a round adapts to."""
        size = self.config.round_size(len(self.train))
        if size == len(self.train):
            return np.arange(size)
        each = math.ceil(len(self.train) / size)
        number, place = divmod(number - 1, each)
        rng = generator(self.task.seed, stage="adaptation", number=number)
        return rng.permutation(len(self.train))[place * size : (place + 1) * size]

    # -- what the net makes of images ----------------------------------------------------------

    def predictions(self, index: np.ndarray) -> np.ndarray:
        """Return the predicted labels of training images, int64 [n]."""
        parts, done = [], 0
        with torch.inference_mode():
            for x, _ in self.lesson.feed.batches(index, VALIDATION_BATCH):
                parts.append(self.net(x).argmax(dim=1).cpu())
                done += len(x)
                if time.monotonic() - self.reported > REPORT_EVERY:
                    self._report(len(self.state.rounds) + 1, 0, f"adapting, {done} images seen")
        return torch.cat(parts).numpy()

    def _accuracy(self) -> float:
        return validate(self.net, self.validation)[1]

    # -- progress and interruptions ------------------------------------------------------------

    def report(self, steps: int, note: str) -> None:
        """Tell of `steps` done out of those of the submodels and of all rounds."""
        self.reported = time.monotonic()
        retraining = self.total * self.config.retraining_epochs * self.training.steps
        self.task.progress(steps, self.before + retraining, note)

    def _report(self, number: int, step: int, note: str) -> None:
        done = (number - 1) * self.config.retraining_epochs * self.training.steps + step
        self.report(self.before + done, f"round {number} of {self.total}: {note}")

    def _report_step(self, epoch: int, step: int, note: str) -> None:
        number, within = divmod(epoch - 1, self.config.retraining_epochs)
        self._report(number + 1, within * self.training.steps + step, note)

    def _resume(self) -> Iterator[Candidate]:
        found = None if self.checkpoints is None else self.checkpoints.read()
        if found is None or self.checkpoints is None:
            return
        self.state, weights, optimizer = found
        for number, (best, _, _) in enumerate(self.state.rounds, start=1):
            self.best = self.checkpoints.read_best(best)
            yield self._candidate(number)
        self.best = self.checkpoints.read_best(self.state.best)
        self.net.reset()
        self.net.set_weights(weights)
        self.training.load_state(optimizer)


class Checkpoints:
    """``state.npz`` after each epoch, and ``best-NNNN.npz`` for every improvement.

    The state names the improvements that belong to it, so one that was written by an epoch that
    did not finish is only written again.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    @classmethod
    def of(cls, task: Task, config: ApricotConfig) -> "Checkpoints | None":
        """Return those of a task, if it has a folder."""
        if task.folder is None or task.train is None:
            return None
        identity = {
            "config": config.model_dump(mode="json"),
            "seed": task.seed,
            "model": task.model.hash,
            "images": len(task.train),
        }
        return cls(Path(task.folder) / "rounds", json.dumps(identity, sort_keys=True))

    def write(self, state: State, net: TorchModel, training: Training) -> None:
        """Keep the state after an epoch."""
        arrays = {f"weight {name}": array for name, array in net.weights().items()}
        arrays |= {f"optimizer {name}": array for name, array in training.state().items()}
        write_checkpoint(self.folder / "state.npz", self.identity, vars(state), arrays)

    def read(self) -> tuple[State, dict[str, np.ndarray], dict[str, np.ndarray]] | None:
        """Return state, weights that differ from the original's, and the optimiser's state."""
        found = read_checkpoint(self.folder / "state.npz", self.identity)
        if found is None:
            return None
        header, arrays = found
        header["rounds"] = [tuple(entry) for entry in header["rounds"]]

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

        return State(**header), part("weight "), part("optimizer ")

    def write_best(self, number: int, weights: dict[str, np.ndarray]) -> None:
        """Keep an improvement."""
        write_checkpoint(self._best(number), self.identity, {}, weights)

    def read_best(self, number: int) -> dict[str, np.ndarray]:
        """Return an improvement; number 0 is the original model."""
        if number == 0:
            return {}
        found = read_checkpoint(self._best(number), self.identity)
        assert found is not None, "an improvement is written before the state that names it"
        return found[1]

    def _best(self, number: int) -> Path:
        return self.folder / f"best-{number:04d}.npz"
