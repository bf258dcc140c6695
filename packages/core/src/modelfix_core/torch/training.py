"""Fine-tuning shared by approaches: a candidate per epoch, and it survives an interruption."""

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from modelfix_core.approach import Candidate, Task
from modelfix_core.dataset import Split
from modelfix_core.files import atomic_path
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.seeds import generator, seed_for
from modelfix_core.torch.bridge import TorchModel

REPORT_EVERY = 0.5  # seconds
VALIDATION_BATCH = 500
RECALIBRATION_IMAGES = 2000

# From logits [V, N, K] of V views of N images (the first is the image itself) and labels [N].
Loss = Callable[[Tensor, Tensor], Tensor]
# From images [N, C, H, W] in [0, 1], labels [N] and a generator to views [V, N, C, H, W].
Views = Callable[[Tensor, Tensor, np.random.Generator], Tensor]


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
        Nesterov's, of ``sgd``; 0 is none.
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
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    final_learning_rate: float = 1e-6
    patience: int | None = 5
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    images_per_epoch: int | None = None
    recalibrate_bn: bool = False

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


def fine_tune(
    net: TorchModel,
    task: Task,
    split: Split,
    recipe: FineTuning,
    loss: Loss = cross_entropy,
    views: Views | None = None,
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
    run = _Run(net, task, split, recipe, loss, views, name, part)
    yield from run.resume()
    while not run.finished:
        yield run.epoch()


class _Run:
    def __init__(self, net, task, split, recipe, loss, views, name, part) -> None:
        self.net, self.task, self.recipe, self.loss = net, task, recipe, loss
        self.views = views or (lambda x, _y, _rng: x[None])
        self.name, self.part = name, part
        self.images = min(recipe.images_per_epoch or len(split), len(split))
        self.steps = math.ceil(self.images / recipe.batch_size)
        self.losses: list[float] = []  # on validation, one per finished epoch
        self.checkpoints = _checkpoints(task, recipe, split, name)
        self.reported = 0.0
        trained = [p for p in net.parameters() if p.requires_grad]
        device = torch.device(task.device)
        fabric = Fabric(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            precision=recipe.precision,
        )
        optimizer = _optimizer(recipe, trained)
        self.module, self.optimizer = fabric.setup(net, optimizer)
        self.fabric = fabric
        self.train = Feed(split, fabric.device)
        self.validation = Feed(task.validation, fabric.device)
        net.eval()

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
            _load_state(self.optimizer, optimizer)
            self.losses = [candidate.values["validation_loss"] for candidate in candidates]
        yield from candidates

    def epoch(self) -> Candidate:
        number = len(self.losses) + 1
        rng = partial(generator, self.task.seed, run=self.name, epoch=number)
        order = rng(stage="order").permutation(len(self.train))[: self.images]
        with _reproducible(seed_for(seed=self.task.seed, run=self.name, epoch=number)):
            loss, accuracy = self._pass(number, order, rng(stage="views"))
            if self.recipe.recalibrate_bn:
                size = self.recipe.batch_size
                recalibrate_batchnorm(self.net, self.train, order[:RECALIBRATION_IMAGES], size)
        self.net.eval()
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
            },
        )
        if self.checkpoints is not None:
            self.checkpoints.write(candidate, _state(self.optimizer))
        note = f"validation loss {validation_loss:.4f}, accuracy {validation_accuracy:.2%}"
        self._report(number, self.steps, note)
        return candidate

    def _pass(self, number, order, rng) -> tuple[float, float]:
        """Train one epoch; return its mean loss and the accuracy on the images themselves."""
        total = torch.zeros((), device=self.fabric.device)
        right = torch.zeros((), device=self.fabric.device)
        seen = 0
        self.net.train()
        batches = self.train.batches(order, self.recipe.batch_size)
        for step, (x, y) in enumerate(batches, start=1):
            self._set_rate((number - 1) * self.steps + step - 1)
            stack = self.views(x, y, rng)
            logits = self.module(stack.flatten(0, 1)).view(len(stack), len(y), -1)
            loss = self.loss(logits, y)
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.optimizer.step()
            total += loss.detach() * len(y)
            right += (logits[0].detach().argmax(dim=1) == y).sum()
            seen += len(y)
            if time.monotonic() - self.reported > REPORT_EVERY:
                note = f"loss {float(total) / seen:.4f}, accuracy {float(right) / seen:.2%}"
                self._report(number, step, note)
        return float(total) / seen, float(right) / seen

    def _set_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(step, self.steps * self.recipe.epochs)

    def _report(self, epoch: int, step: int, note: str) -> None:
        self.reported = time.monotonic()
        position, runs = self.part
        epochs = self.recipe.epochs
        done = (position * epochs + epoch - 1) * self.steps + step
        text = f"{self.name}, epoch {epoch} of {epochs}: {note}"
        self.task.progress(done, runs * epochs * self.steps, text)


def _optimizer(recipe: FineTuning, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    common = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, **common)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=nesterov, **common)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Draw dropout from `seed` with deterministic kernels; the global state is put back after."""
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(range(torch.cuda.device_count())), deterministic:
        torch.manual_seed(seed)
        yield


# -- checkpoints -------------------------------------------------------------------------------


def _state(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    return {
        f"{number}.{key}": value.cpu().numpy()
        for number, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def _load_state(optimizer: torch.optim.Optimizer, arrays: dict[str, np.ndarray]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = torch.from_numpy(array)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _checkpoints(task: Task, recipe: FineTuning, split: Split, name: str) -> "_Checkpoints | None":
    if task.folder is None:
        return None
    identity = {
        "recipe": asdict(recipe),
        "seed": task.seed,
        "model": task.model.hash,
        "images": len(split),
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
        weights = candidate.weights
        assert weights is not None, "fine-tuning proposes weights, not a model"
        header = {
            "identity": self.identity,
            "validation_accuracy": candidate.validation_accuracy,
            "values": dict(candidate.values),
            "names": list(weights),
        }
        self._save(self._epoch(candidate.step), header, list(weights.values()))
        last = {"identity": self.identity, "epoch": candidate.step, "names": list(optimizer)}
        self._save(self.folder / "optimizer.npz", last, list(optimizer.values()))

    def read(self) -> tuple[list[Candidate], dict[str, np.ndarray]]:
        """Return the finished epochs of the same run and the optimiser's state after the last."""
        last, optimizer = self._load(self.folder / "optimizer.npz")
        candidates = []
        for number in range(1, last.get("epoch", 0) + 1):
            header, weights = self._load(self._epoch(number))
            if not header:
                return [], {}
            accuracy = header["validation_accuracy"]
            candidates.append(Candidate(weights, None, accuracy, number, header["values"]))
        return candidates, optimizer

    def _epoch(self, number: int) -> Path:
        return self.folder / f"epoch-{number:02d}.npz"

    def _save(self, path: Path, header: dict, arrays: list[np.ndarray]) -> None:
        # Any: NumPy's stub has a keyword beside the arrays, `allow_pickle`, that no name here is.
        named: dict[str, Any] = {f"array_{number}": array for number, array in enumerate(arrays)}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **named)

    def _load(self, path: Path) -> tuple[dict, dict[str, np.ndarray]]:
        if not path.exists():
            return {}, {}
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if header["identity"] != self.identity:
                return {}, {}
            arrays = [file[f"array_{number}"] for number in range(len(header["names"]))]
        return header, dict(zip(header["names"], arrays, strict=True))
