"""Fine-tuning shared by approaches: a candidate per epoch, and it survives an interruption."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from modelfix_core.approach import Candidate, Task
from modelfix_core.checkpoint import read_checkpoint, write_checkpoint
from modelfix_core.dataset import Split
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.seeds import generator, seed_for
from modelfix_core.torch.bridge import TorchModel

REPORT_EVERY = 0.5  # seconds
VALIDATION_BATCH = 500
RECALIBRATION_IMAGES = 2000
JUDGED_AFTER = 2  # epochs of a learning rate
BESIDE = "beside"  # heads the names of parameters that are no weights of the model

# From logits [V, N, K] of V views of N images (the first is the image itself) and labels [N].
Loss = Callable[[Tensor, Tensor], Tensor]
# From images [N, C, H, W] in [0, 1], labels [N], a generator and, where the lesson has them, the
# copies of these images [N, C, H, W] to views [V, N, C, H, W].
Views = Callable[..., Tensor]


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned.

    Attributes
    ----------
    epochs : int
        At most so many.
    learning_rate : float
        Of the first step.
    batch_size : int
    optimizer : {"sgd", "adam"}
    momentum : float
        Of ``sgd``; 0 is none.
    nesterov : bool
        Whether the momentum is Nesterov's.
    weight_decay : float
    schedule : {"cosine", "constant"}
        The learning rate falls with every step, or stays.
    final_learning_rate : float
        To which the cosine falls.
    patience : int or None
        Stop after so many epochs in which the validation loss did not get better.
    precision : {"32-true", "bf16-mixed"}
        Of the training passes; validation is always exact.
    images_per_epoch : int or None
        A fresh draw of so many images for each epoch; None takes all.
    recalibrate_bn : bool
        Estimate the statistics of BatchNorm again on clean training images before validation.
    clip : float or None
        Largest norm of all gradients together; larger ones are scaled down to it.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    final_learning_rate: float = 1e-6
    patience: int | None = 5
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    images_per_epoch: int | None = None
    recalibrate_bn: bool = False
    clip: float | None = None

    @classmethod
    def of(cls, options: object) -> "FineTuning":
        """Return the recipe that the attributes of `options` with the same names ask for."""
        known = [entry.name for entry in fields(cls) if hasattr(options, entry.name)]
        return cls(**{name: getattr(options, name) for name in known})

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step out of `steps`."""
        if self.schedule == "constant":
            return self.learning_rate
        final = min(self.final_learning_rate, self.learning_rate)
        return final + (self.learning_rate - final) * (1 + math.cos(math.pi * step / steps)) / 2


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of all views, logits [V, N, K] and labels [N]."""
    return functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)))


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the predictions for views of the same images.

    Parameters
    ----------
    logits : Tensor, [V, N, K]

    Returns
    -------
    Tensor, []
        Mean over images, in [0, log V]; at least float32, because half precision gives NaN.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # exp of log_softmax keeps both factors consistent where a probability underflows.
    log_p = functional.log_softmax(logits, dim=-1)
    p = log_p.exp()
    mixture = p.mean(dim=0).clamp(1e-7, 1).log()
    return (p * (log_p - mixture)).sum(dim=-1).mean()


def consistency(logits: Tensor, y: Tensor, weight: float) -> Tensor:
    """Return cross-entropy of the image plus weighted Jensen-Shannon divergence of all views.

    Parameters
    ----------
    logits : Tensor, [V, N, K]
        Of the image itself first.
    y : Tensor of int64, [N]
    weight : float
        Source: Hendrycks et al., "AugMix", ICLR 2020, with 12.
    """
    return cross_entropy(logits[:1], y) + weight * jensen_shannon(logits)


class Feed:
    """Batches of a split as tensors on a device.

    Parameters
    ----------
    split : Split
    device : str or torch.device
    memory : int
        Bytes up to which the images are kept on the device, as they are stored (uint8); larger
        splits are read ahead, batch by batch.
    """

    def __init__(
        self, split: Split, device: str | torch.device, memory: int = DEFAULT_MEMORY
    ) -> None:
        self.split = split
        self.device = device
        self.labels = torch.from_numpy(np.array(split.y)).to(device)
        fits = split.x.nbytes <= memory
        self.resident = torch.from_numpy(np.array(split.x)).to(device) if fits else None

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, order: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, float32 [n, C, H, W] in [0, 1], and labels [n] in the given order."""
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        for x, part in zip(self._images(parts), parts, strict=True):
            x = x.to(torch.float32)
            images = x.div_(255) if self.split.x.dtype == np.uint8 else x
            yield images, self.labels[torch.from_numpy(part).to(self.device)]

    def _images(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        if self.resident is None:
            yield from self._read_images(parts)
            return
        for part in parts:
            yield self.resident[torch.from_numpy(part).to(self.device)]

    def _read_images(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(1) as reader:
            waiting = [reader.submit(self.split.x.__getitem__, part) for part in parts[:2]]
            for position in range(len(parts)):
                if position + 2 < len(parts):
                    waiting.append(reader.submit(self.split.x.__getitem__, parts[position + 2]))
                yield torch.from_numpy(np.array(waiting.pop(0).result())).to(self.device)


def validate(net: nn.Module, feed: Feed) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy, computed in evaluation mode."""
    training = net.training
    net.eval()
    loss = torch.zeros((), dtype=torch.float64)
    right = 0
    with torch.inference_mode():
        for x, y in feed.batches(np.arange(len(feed)), VALIDATION_BATCH):
            logits = net(x)
            loss += functional.cross_entropy(logits, y, reduction="sum").double().cpu()
            right += int((logits.argmax(dim=1) == y).sum())
    net.train(training)
    return float(loss) / len(feed), right / len(feed)


def recalibrate_batchnorm(net: nn.Module, feed: Feed, order: np.ndarray, size: int) -> None:
    """Replace the statistics of BatchNorm by the mean of those of clean batches."""
    norms = [part for part in net.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for number, (x, _) in enumerate(feed.batches(order, size), start=1):
            for norm in norms:
                norm.momentum = 1 / number
            net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Step(NamedTuple):
    """One step of the optimiser.

    Attributes
    ----------
    loss : Tensor, []
        What the step descends.
    right : Tensor, []
        How many of the images were predicted right.
    images : int
        How many there were.
    """

    loss: Tensor
    right: Tensor
    images: int


@dataclass(frozen=True)
class Epoch:
    """What a lesson is given for one epoch.

    Attributes
    ----------
    number : int
        From 1.
    module : nn.Module
        The net in training mode and in the precision of the recipe.
    draws : callable
        Gives the generator of a stage, ``draws(stage="order")``: the same whenever this epoch is
        taught again.
    report : callable
        Gets a note; to be called every second or so of work between two steps.
    """

    number: int
    module: nn.Module
    draws: Callable[..., np.random.Generator]
    report: Callable[[str], None]


class Lesson(Protocol):
    """What a net is taught.

    A lesson holds no state that outlives an epoch, because an interrupted run goes on with the
    weights of the last finished epoch and nothing else.
    """

    def __len__(self) -> int:
        """Return the number of steps of an epoch, as known beforehand."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What of the lesson makes checkpoints another's."""
        ...

    def epoch(self, epoch: Epoch) -> Iterator[Step]:
        """Yield a step after the other; the optimiser takes each before the next is asked for."""
        ...


class Supervised:
    """The lesson of `fine_tune`: images with their labels, once in an epoch."""

    def __init__(
        self,
        net: TorchModel,
        split: Split,
        recipe: FineTuning,
        loss: Loss = cross_entropy,
        views: Views | None = None,
        copies: Split | None = None,
    ) -> None:
        self.net, self.recipe, self.loss = net, recipe, loss
        self.views = views or (lambda x, _y, _rng: x[None])
        self.images = min(recipe.images_per_epoch or len(split), len(split))
        self.feed = Feed(split, net.device)
        self.copies = None if copies is None else Feed(copies, net.device)

    def __len__(self) -> int:
        return math.ceil(self.images / self.recipe.batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        """The number of images there are."""
        return {"images": len(self.feed)}

    def epoch(self, epoch: Epoch) -> Iterator[Step]:
        """Yield the steps of an epoch in an order of its own."""
        size = self.recipe.batch_size
        order = epoch.draws(stage="order").permutation(len(self.feed))[: self.images]
        rng = epoch.draws(stage="views")
        for x, y, *copies in self._batches(order, size):
            stack = self.views(x, y, rng, *copies)
            logits = epoch.module(stack.flatten(0, 1)).view(len(stack), len(y), -1)
            right = (logits[0].detach().argmax(dim=1) == y).sum()
            yield Step(self.loss(logits, y), right, len(y))
        if self.recipe.recalibrate_bn:
            recalibrate_batchnorm(self.net, self.feed, order[:RECALIBRATION_IMAGES], size)

    def _batches(self, order: np.ndarray, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield images, labels and, where there are some, the copies of these images."""
        if self.copies is None:
            yield from self.feed.batches(order, size)
            return
        pairs = zip(self.feed.batches(order, size), self.copies.batches(order, size), strict=True)
        for (x, y), (copies, _) in pairs:
            yield x, y, copies


def fine_tune(
    net: TorchModel,
    task: Task,
    split: Split,
    recipe: FineTuning,
    loss: Loss = cross_entropy,
    views: Views | None = None,
    copies: Split | None = None,
    *,
    name: str = "fine-tuning",
    part: tuple[int, int] = (0, 1),
) -> Iterator[Candidate]:
    """Train from the net's current weights and yield a candidate after every epoch.

    With ``task.folder`` each epoch leaves a checkpoint there. A later call with the same arguments
    yields the candidates of the finished epochs again and goes on as if it had never stopped.

    Parameters
    ----------
    net : TorchModel
        Trained in place; parameters with ``requires_grad=False`` stay. Left in evaluation mode.
    task : Task
        For validation split, seed, device, folder and progress.
    split : Split
        What to train on.
    recipe : FineTuning
    loss : callable
        From logits [V, N, K] and labels [N] to a scalar.
    views : callable, optional
        From images [N, C, H, W], labels and a generator to views [V, N, C, H, W], the image itself
        first; all are passed through the net at once. Default: the image alone.
    copies : Split, optional
        One image for each of `split` (a changed copy, say) that `views` gets as a fourth argument.
    name : str
        Of this run among those of the approach: heads its progress, seeds and checkpoints.
    part : (int, int)
        Position of this run and number of runs, for the progress.

    Yields
    ------
    Candidate
        With ``validation_accuracy`` and the values ``loss``, ``train_accuracy``,
        ``validation_loss`` and ``learning_rate``.
    """
    lesson = Supervised(net, split, recipe, loss, views, copies)
    yield from teach(net, task, lesson, recipe, name=name, part=part)


def fine_tune_at(
    learning_rates: Sequence[float],
    net: TorchModel,
    task: Task,
    split: Split,
    recipe: FineTuning,
    loss: Loss = cross_entropy,
    views: Views | None = None,
    copies: Split | None = None,
) -> Iterator[Candidate]:
    """Yield the candidates of every learning rate, each from the original weights.

    A rate is given up when the validation loss is worse than the original's after two epochs and
    still rising.

    Parameters
    ----------
    learning_rates : sequence of float
        Take the place of the recipe's, one after the other.
    net, task, split, recipe, loss, views, copies
        As for `fine_tune`.
    """
    net.reset()
    original_loss, _ = validate(net, Feed(task.validation, task.device))
    for position, rate in enumerate(learning_rates):
        net.reset()
        losses: list[float] = []
        run = fine_tune(
            net,
            task,
            split,
            replace(recipe, learning_rate=rate),
            loss,
            views,
            copies,
            name=f"learning-rate-{rate:g}",
            part=(position, len(learning_rates)),
        )
        for candidate in run:
            yield candidate
            losses.append(candidate.values["validation_loss"])
            if is_hopeless(losses, original_loss):
                break


def is_hopeless(losses: Sequence[float], original: float) -> bool:
    """Whether the validation losses of the first two epochs are worse than before, and rise."""
    return len(losses) == JUDGED_AFTER and losses[1] > max(losses[0], original)


def teach(
    net: TorchModel,
    task: Task,
    lesson: Lesson,
    recipe: FineTuning,
    *,
    name: str = "fine-tuning",
    part: tuple[int, int] = (0, 1),
    measure: Callable[[], Mapping[str, float]] | None = None,
) -> Iterator[Candidate]:
    """Train as `fine_tune` does, with the steps of any lesson.

    Parameters
    ----------
    net : TorchModel
        Trained in place; left in evaluation mode.
    task : Task
    lesson : Lesson
        What the steps of an epoch are; of the recipe, the options that say which images are seen
        are its business.
    recipe : FineTuning
    name : str
    part : (int, int)
    measure : callable, optional
        Called after every epoch, with the net in evaluation mode; gives further values of the
        candidate.

    Yields
    ------
    Candidate
        As from `fine_tune`.
    """
    run = _Run(net, task, lesson, recipe, name, part, measure)
    yield from run.resume()
    while not run.finished:
        yield run.epoch()


class Training:
    """Training by epochs with one optimiser, whose state can be taken and put back.

    Parameters
    ----------
    net : nn.Module
        Trained in place; parameters with ``requires_grad=False`` stay. In evaluation mode between
        the epochs.
    lesson : Lesson
    recipe : FineTuning
        Its `epochs` are those of the learning rate's schedule; when to stop is the caller's.
    device : str
    seed : int
        With `name` and the number of an epoch it decides all draws of that epoch.
    name : str
    on_step : callable, optional
        Gets epoch, step and a note, every half second or so.

    Attributes
    ----------
    steps : int
        Of an epoch.
    """

    def __init__(
        self,
        net: nn.Module,
        lesson: Lesson,
        recipe: FineTuning,
        *,
        device: str = "cpu",
        seed: int = 0,
        name: str = "fine-tuning",
        on_step: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.net, self.lesson, self.recipe = net, lesson, recipe
        self.seed, self.name = seed, name
        self.steps = len(lesson)
        self.on_step = on_step or (lambda _epoch, _step, _note: None)
        self.reported = 0.0
        place = torch.device(device)
        self.fabric = Fabric(
            accelerator=place.type,
            devices=1 if place.index is None else [place.index],
            precision=recipe.precision,
        )
        optimizer = _optimizer(recipe, [p for p in net.parameters() if p.requires_grad])
        self.module, self.optimizer = self.fabric.setup(net, optimizer)
        net.eval()

    @property
    def device(self) -> torch.device:
        """Where the net is."""
        return self.fabric.device

    def epoch(self, number: int) -> tuple[float, float]:
        """Train epoch `number`, from 1; return its mean loss and the accuracy on its images."""
        with _reproducible(seed_for(seed=self.seed, run=self.name, epoch=number)):
            result = self._pass(number)
        self.net.eval()
        return result

    def state(self) -> dict[str, np.ndarray]:
        """Return the optimiser's state, and parameters that are no weights of the model."""
        state = {
            f"{number}.{key}": value.cpu().numpy()
            for number, entries in self.optimizer.state_dict()["state"].items()
            for key, value in entries.items()
            if isinstance(value, Tensor)
        }
        beside = self._beside().items()
        return state | {f"{BESIDE}.{name}": p.detach().cpu().numpy() for name, p in beside}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put back what `state` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        beside = self._beside()
        for name, array in arrays.items():
            number, key = name.split(".", 1)
            if number == BESIDE:
                with torch.no_grad():
                    beside[key].copy_(torch.from_numpy(array))
                continue
            state.setdefault(int(number), {})[key] = torch.from_numpy(array)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _beside(self) -> dict[str, nn.Parameter]:
        """Return what is trained along with the model and is none of its weights."""
        if not isinstance(self.net, TorchModel):
            return {}
        own = set(self.net.parameter_names.values())
        return {name: p for name, p in self.net.named_parameters() if name not in own}

    def _pass(self, number: int) -> tuple[float, float]:
        total = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device)
        seen = taken = 0

        def report(note: str) -> None:
            if time.monotonic() - self.reported > REPORT_EVERY:
                self.reported = time.monotonic()
                self.on_step(number, min(taken, self.steps), note)

        draws = partial(generator, self.seed, run=self.name, epoch=number)
        self.net.train()
        for step in self.lesson.epoch(Epoch(number, self.module, draws, report)):
            self._set_rate((number - 1) * self.steps + min(taken, self.steps - 1))
            self.optimizer.zero_grad()
            self.fabric.backward(step.loss)
            if self.recipe.clip is not None:
                self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.recipe.clip)
            self.optimizer.step()
            total += step.loss.detach() * step.images
            right += step.right
            seen += step.images
            taken += 1
            if time.monotonic() - self.reported > REPORT_EVERY:
                report(f"loss {float(total) / seen:.4f}, accuracy {float(right) / seen:.2%}")
        return float(total) / max(seen, 1), float(right) / max(seen, 1)

    def _set_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(step, self.steps * self.recipe.epochs)


class _Run:
    def __init__(self, net, task, lesson, recipe, name, part, measure=None) -> None:
        self.net, self.task, self.recipe = net, task, recipe
        self.name, self.part = name, part
        self.measure = measure or dict
        self.losses: list[float] = []  # on validation, one per finished epoch
        self.checkpoints = _checkpoints(task, recipe, lesson, name)
        self.training = Training(
            net,
            lesson,
            recipe,
            device=task.device,
            seed=task.seed,
            name=name,
            on_step=self._report,
        )
        self.validation = Feed(task.validation, self.training.device)

    @property
    def finished(self) -> bool:
        epochs = len(self.losses)
        if epochs >= self.recipe.epochs:
            return True
        if self.recipe.patience is None or not epochs:
            return False
        return epochs - 1 - int(np.argmin(self.losses)) >= self.recipe.patience

    def resume(self) -> Iterator[Candidate]:
        if self.checkpoints is None:
            return
        candidates, optimizer = self.checkpoints.read()
        if candidates:
            self.net.reset()
            self.net.set_weights(candidates[-1].weights)
            self.training.load_state(optimizer)
            self.losses = [candidate.values["validation_loss"] for candidate in candidates]
        yield from candidates

    def epoch(self) -> Candidate:
        number = len(self.losses) + 1
        loss, accuracy = self.training.epoch(number)
        validation_loss, validation_accuracy = validate(self.net, self.validation)
        self.losses.append(validation_loss)
        candidate = Candidate(
            weights=self.net.weights(),
            validation_accuracy=validation_accuracy,
            step=number,
            values={
                "loss": loss,
                "train_accuracy": accuracy,
                "validation_loss": validation_loss,
                "learning_rate": self.recipe.learning_rate,
                **self.measure(),
            },
        )
        if self.checkpoints is not None:
            self.checkpoints.write(candidate, self.training.state())
        note = f"validation loss {validation_loss:.4f}, accuracy {validation_accuracy:.2%}"
        self._report(number, self.training.steps, note)
        return candidate

    def _report(self, epoch: int, step: int, note: str) -> None:
        position, runs = self.part
        epochs, steps = self.recipe.epochs, self.training.steps
        done = (position * epochs + epoch - 1) * steps + step
        text = f"{self.name}, epoch {epoch} of {epochs}: {note}"
        self.task.progress(done, runs * epochs * steps, text)


def _optimizer(recipe: FineTuning, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    common = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, **common)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=nesterov, **common)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Draw dropout from `seed` with deterministic kernels; the global state is put back after."""
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(range(torch.cuda.device_count())), deterministic:
        torch.manual_seed(seed)
        yield


# -- checkpoints -------------------------------------------------------------------------------


def _checkpoints(
    task: Task, recipe: FineTuning, lesson: Lesson, name: str
) -> "_Checkpoints | None":
    if task.folder is None:
        return None
    identity = {
        "recipe": asdict(recipe),
        "seed": task.seed,
        "model": task.model.hash,
        **lesson.identity,
    }
    return _Checkpoints(Path(task.folder) / name, json.dumps(identity, sort_keys=True))


class _Checkpoints:
    """The epochs of one run: ``epoch-NN.npz`` with weights and values, and ``optimizer.npz``.

    The optimiser's state is kept of the last epoch only, and written after the epoch's weights: the
    epoch that it names is the last one from which the run can go on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def write(self, candidate: Candidate, optimizer: dict[str, np.ndarray]) -> None:
        assert candidate.weights is not None, "fine-tuning proposes weights, not a model"
        header = {
            "validation_accuracy": candidate.validation_accuracy,
            "values": dict(candidate.values),
        }
        write_checkpoint(self._epoch(candidate.step), self.identity, header, candidate.weights)
        last = {"epoch": candidate.step}
        write_checkpoint(self.folder / "optimizer.npz", self.identity, last, optimizer)

    def read(self) -> tuple[list[Candidate], dict[str, np.ndarray]]:
        """Return the finished epochs of the same run and the optimiser's state after the last."""
        last = read_checkpoint(self.folder / "optimizer.npz", self.identity)
        if last is None:
            return [], {}
        candidates = []
        for number in range(1, last[0]["epoch"] + 1):
            epoch = read_checkpoint(self._epoch(number), self.identity)
            if epoch is None:
                return [], {}
            header, weights = epoch
            accuracy = header["validation_accuracy"]
            candidates.append(Candidate(weights, None, accuracy, number, header["values"]))
        return candidates, last[1]

    def _epoch(self, number: int) -> Path:
        return self.folder / f"epoch-{number:02d}.npz"
