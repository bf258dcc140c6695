"""Submodels: copies of the architecture, each trained on a part of the training images.

On a CPU one process for each core trains them one after the other with a single thread, which is
faster there than training them as one; on a GPU they are stacked. A trained submodel and its votes
lie in a checkpoint, so an interrupted run goes on with those that are missing.
"""

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from modelfix_core.approach import Task
from modelfix_core.checkpoint import read_checkpoint, write_checkpoint
from modelfix_core.dataset import Dataset, Split
from modelfix_core.errors import Failure
from modelfix_core.files import write_text
from modelfix_core.model import Model
from modelfix_core.seeds import generator, seed_for
from modelfix_core.torch import TorchModel
from modelfix_core.torch.initialising import reinitialise
from modelfix_core.torch.training import (
    VALIDATION_BATCH,
    Feed,
    FineTuning,
    Supervised,
    Training,
)
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from modelfix_apricot.approach import ApricotConfig

logger = logging.getLogger(__name__)

POLL = 0.25  # seconds between looks at the processes
LITTLE_WORK = 2e9  # images times parameters: seconds of work, less than processes take to start
Report = Callable[[int, str], None]  # gets the steps done of all submodels, and a note


@dataclass(frozen=True)
class Submodels:
    """What the trained submodels are to the adaptation.

    Attributes
    ----------
    weights : Tensor of float32, [K, P]
        Their trainable parameters, in the order of ``net.parameters()``.
    right : ndarray of bool, [N, K]
        Whether submodel k predicts the label of training image i.
    """

    weights: Tensor
    right: np.ndarray


# -- what a submodel is ----------------------------------------------------------------------------


def subset(y: np.ndarray, number: int, config: ApricotConfig, seed: int) -> np.ndarray:
    """Draw the training images of a submodel, the same share of every class.

    Parameters
    ----------
    y : ndarray of int64, [N]
        Labels of the training images.
    number : int
        Of the submodel, from 0.
    config : ApricotConfig
    seed : int

    Returns
    -------
    ndarray of int64, [n]
        Positions in ascending order, as many for every submodel.
    """
    partition = config.subset_mode == "partition"
    # Disjoint parts come from one draw, overlapping subsets from one for each submodel.
    axes: dict[str, str | int] = {} if partition else {"submodel": number}
    rng = generator(seed, stage="subset", **axes)
    drawn = []
    for label in np.unique(y):
        shuffled = rng.permutation(np.flatnonzero(y == label))
        if partition:
            size = len(shuffled) // config.submodels
            drawn.append(shuffled[number * size : (number + 1) * size])
        else:
            drawn.append(shuffled[: int(config.subset_fraction * len(shuffled))])
    return np.sort(np.concatenate(drawn))


def start(net: TorchModel, number: int, config: ApricotConfig, seed: int) -> None:
    """Give `net` the weights with which a submodel starts."""
    net.reset()
    if config.submodel_start == "scratch":
        reinitialise(net, seed_for(seed=seed, stage="weights", submodel=number))


def recipe_of(config: ApricotConfig) -> FineTuning:
    """Return how a submodel is trained."""
    return FineTuning(
        epochs=config.submodel_epochs,
        learning_rate=config.submodel_learning_rate,
        batch_size=config.submodel_batch_size,
        optimizer="adam",
        weight_decay=0.0,
        schedule="constant",
        patience=None,
    )


def name_of(number: int) -> str:
    """Return the name of a submodel, on which the order of its images depends."""
    return f"submodel-{number}"


def steps_of(y: np.ndarray, config: ApricotConfig) -> int:
    """Return the steps that training one submodel takes."""
    images = len(subset(y, 0, config, seed=0))
    return config.submodel_epochs * math.ceil(images / config.submodel_batch_size)


# -- training one, and many at once ----------------------------------------------------------------


def train_one(
    net: TorchModel,
    train: Split,
    number: int,
    config: ApricotConfig,
    seed: int,
    on_step: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Train a submodel in the place of `net`.

    Returns
    -------
    weights : ndarray of float32, [P]
    right : ndarray of bool, [N]
        On all training images.
    """
    start(net, number, config, seed)
    recipe = recipe_of(config)
    lesson = Supervised(net, train.select(subset(train.y, number, config, seed)), recipe)
    training = Training(
        net,
        lesson,
        recipe,
        device=str(net.device),
        seed=seed,
        name=name_of(number),
        on_step=lambda epoch, step, _: on_step((epoch - 1) * len(lesson) + step),
    )
    for epoch in range(1, recipe.epochs + 1):
        training.epoch(epoch)
        on_step(epoch * len(lesson))
    return flat(net).cpu().numpy(), right_of(net, train)[0]


def train_stacked(
    net: TorchModel,
    train: Split,
    numbers: Sequence[int],
    config: ApricotConfig,
    seed: int,
    on_step: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Train several submodels as one: their weights stacked, their images side by side.

    Each is trained as by `train_one`, but for rounding and the draws of dropout.

    Returns
    -------
    weights : ndarray of float32, [k, P]
    right : ndarray of bool, [k, N]
    """
    parameters, buffers = _stack(net, numbers, config, seed)
    # One Adam for all: it acts on each weight alone.
    optimizer = torch.optim.Adam(parameters.values(), lr=config.submodel_learning_rate, fused=True)
    feed = Feed(train, net.device)
    subsets = np.stack([subset(train.y, number, config, seed) for number in numbers])
    size = config.submodel_batch_size
    done = 0

    def loss(parameters, buffers, x, y):
        return functional.cross_entropy(functional_call(net, (parameters, buffers), (x,)), y)

    losses = vmap(loss, randomness="different")
    for epoch in range(1, config.submodel_epochs + 1):
        order = _orders(subsets, numbers, epoch, seed)
        beside = [order[:, at : at + size].ravel() for at in range(0, order.shape[1], size)]
        net.train()
        for x, y in feed.batches(np.concatenate(beside), len(numbers) * size):
            x, y = x.unflatten(0, (len(numbers), -1)), y.view(len(numbers), -1)
            optimizer.zero_grad()
            losses(parameters, buffers, x, y).sum().backward()
            optimizer.step()
            done += 1
            on_step(done * len(numbers))
    net.eval()
    weights = torch.cat([value.detach().flatten(1) for value in parameters.values()], dim=1)
    return weights.cpu().numpy(), right_of(net, train, parameters, buffers)


def _stack(net, numbers, config, seed) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    states = []
    for number in numbers:
        start(net, number, config, seed)
        states.append({name: value.detach().clone() for name, value in net.state_dict().items()})

    def stack(names: Iterable[str]) -> dict[str, Tensor]:
        return {name: torch.stack([state[name] for state in states]) for name in names}

    parameters = stack(name for name, _ in net.named_parameters())
    # Other buffers are constants of the graph, the same for all.
    statistics = stack(name for name, _ in net.named_buffers() if "running_" in name)
    return {name: value.requires_grad_() for name, value in parameters.items()}, statistics


def _orders(subsets: np.ndarray, numbers: Sequence[int], epoch: int, seed: int) -> np.ndarray:
    """Return the images of an epoch in the order in which `Training` takes them, [k, n]."""
    rngs = (generator(seed, run=name_of(n), epoch=epoch, stage="order") for n in numbers)
    return np.stack(
        [part[rng.permutation(len(part))] for part, rng in zip(subsets, rngs, strict=True)]
    )


def flat(net: TorchModel) -> Tensor:
    """Return the trainable parameters in a row, [P], as a copy."""
    return parameters_to_vector(net.parameters()).detach().clone()


def set_flat(net: TorchModel, theta: Tensor) -> None:
    """Set the trainable parameters from a row, [P], in place."""
    parameters = list(net.parameters())
    parts = theta.split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def right_of(
    net: TorchModel,
    split: Split,
    parameters: dict[str, Tensor] | None = None,
    buffers: dict[str, Tensor] | None = None,
) -> np.ndarray:
    """Return which images of `split` are predicted right, bool [k, N].

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    split : Split
    parameters, buffers : dict of str to Tensor, [k, ...] each, optional
        Of k stacked models; by default those of the net, with k = 1.
    """

    def predict(x: Tensor) -> Tensor:
        if parameters is None:
            return net(x)[None]
        call = vmap(lambda p, b: functional_call(net, (p, b), (x,)))
        return call(parameters, buffers)

    feed = Feed(split, net.device)
    with torch.no_grad():
        parts = [
            (predict(x).argmax(dim=2) == y).cpu()
            for x, y in feed.batches(np.arange(len(split)), VALIDATION_BATCH)
        ]
    return torch.cat(parts, dim=1).numpy()


# -- all of them -----------------------------------------------------------------------------------


def train_submodels(
    net: TorchModel, task: Task, config: ApricotConfig, report: Report
) -> Submodels:
    """Train the submodels that are not there yet, and let all of them vote.

    Parameters
    ----------
    net : TorchModel
        Lent for the work; it has the weights of the original model afterwards.
    task : Task
    config : ApricotConfig
    report : callable
    """
    with _folder(task) as folder:
        plan = Plan.of(task, config, folder)
        missing = [number for number in range(config.submodels) if plan.read(number) is None]
        if missing:
            logger.info("training %d of %d submodels", len(missing), config.submodels)
            _way(net, task, config, missing)(net, task, plan, missing, report)
            net.reset()
        found = [plan.read(number) for number in range(config.submodels)]
    weights, right = zip(*(pair for pair in found if pair is not None), strict=True)
    return Submodels(torch.from_numpy(np.stack(weights)).to(net.device), np.stack(right, axis=1))


@contextmanager
def _folder(task: Task) -> Iterator[Path]:
    if task.folder is not None:
        yield Path(task.folder) / "submodels"
        return
    with TemporaryDirectory(prefix="apricot-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Plan:
    """Which submodels are trained where: what the processes need to know.

    Attributes
    ----------
    folder : Path
        Of checkpoints, and of what is handed to the processes.
    config : ApricotConfig
    seed : int
    identity : str
        Everything that decides the submodels.
    """

    folder: Path
    config: ApricotConfig
    seed: int
    identity: str

    @classmethod
    def of(cls, task: Task, config: ApricotConfig, folder: Path) -> "Plan":
        """Return the plan of a task."""
        fields = [name for name in type(config).model_fields if name.startswith("sub")]
        identity = {
            "model": task.model.hash,
            "seed": task.seed,
            "images": len(_train(task)),
            "config": config.model_dump(mode="json", include=set(fields)),
        }
        return cls(folder, config, task.seed, json.dumps(identity, sort_keys=True))

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return weights [P] and votes [N] of a submodel, or None where it is not trained yet."""
        found = read_checkpoint(self._path(number), self.identity)
        return None if found is None else (found[1]["weights"], found[1]["right"])

    def write(self, number: int, weights: np.ndarray, right: np.ndarray) -> None:
        """Keep a trained submodel."""
        arrays = {"weights": weights, "right": right}
        write_checkpoint(self._path(number), self.identity, {}, arrays)

    def _path(self, number: int) -> Path:
        return self.folder / f"{name_of(number)}.npz"

    # -- for the processes ---------------------------------------------------------------------

    def hand_over(self, task: Task) -> None:
        """Write model, images, options and a row of progress for the processes."""
        task.model.save(self.folder / "model.onnx")
        classes = [str(label) for label in range(task.model.num_classes)]
        Dataset({"train": _train(task)}, classes).save(self.folder)
        content = {
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "identity": self.identity,
        }
        write_text(self.folder / "plan.json", json.dumps(content))
        np.save(self.folder / "progress.npy", np.zeros(self.config.submodels, np.int64))

    @classmethod
    def load(cls, folder: Path) -> tuple["Plan", Model, Split]:
        """Read what `hand_over` wrote."""
        content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        config = ApricotConfig.model_validate(content["config"])
        plan = cls(folder, config, content["seed"], content["identity"])
        return plan, Model.load(folder / "model.onnx"), Dataset.load(folder)["train"]

    def progress(self) -> np.ndarray:
        """Return the steps done of each submodel, int64 [K], shared between the processes."""
        return np.load(self.folder / "progress.npy", mmap_mode="r+")


def _train(task: Task) -> Split:
    assert task.train is not None, "`Apricot.check` refuses tasks without training images"
    return task.train


def _way(net: TorchModel, task: Task, config: ApricotConfig, missing: list[int]) -> Callable:
    """Return how the submodels are trained; the starting of processes must be worth it."""
    if net.device.type != "cpu":
        return _on_device
    images = len(missing) * steps_of(_train(task).y, config) * config.submodel_batch_size
    size = sum(parameter.numel() for parameter in net.parameters())
    return _here if images * size < LITTLE_WORK or _cores() == 1 else _in_processes


def _here(net: TorchModel, task: Task, plan: Plan, missing: list[int], report: Report) -> None:
    steps = steps_of(_train(task).y, plan.config)
    finished = plan.config.submodels - len(missing)
    with one_thread():
        for position, number in enumerate(missing, start=finished):

            def on_step(done: int, position: int = position) -> None:
                note = f"submodels, {position} of {plan.config.submodels} ready"
                report(position * steps + done, note)

            found = train_one(net, _train(task), number, plan.config, plan.seed, on_step)
            plan.write(number, *found)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with a single thread, as the processes do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _on_device(net: TorchModel, task: Task, plan: Plan, missing: list[int], report: Report) -> None:
    steps = steps_of(_train(task).y, plan.config)
    finished = (plan.config.submodels - len(missing)) * steps
    for at in range(0, len(missing), plan.config.stacked):
        numbers = missing[at : at + plan.config.stacked]
        before = finished + at * steps
        note = f"submodels {at + 1} to {at + len(numbers)} of {len(missing)}"

        def on_step(done: int, before: int = before, note: str = note) -> None:
            report(before + done, note)

        weights, right = train_stacked(net, _train(task), numbers, plan.config, plan.seed, on_step)
        for position, number in enumerate(numbers):
            plan.write(number, weights[position], right[position])


def _in_processes(
    net: TorchModel, task: Task, plan: Plan, missing: list[int], report: Report
) -> None:
    plan.hand_over(task)
    steps = steps_of(_train(task).y, plan.config)
    finished = plan.config.submodels - len(missing)
    progress = plan.progress()
    processes = min(_cores(), len(missing))
    workers = [_Worker(plan, missing[at::processes], at) for at in range(processes)]
    try:
        while sum(worker.running() for worker in workers):
            done = int(progress.sum())
            ready = finished + int((progress >= steps).sum())
            report(finished * steps + done, f"submodels, {ready} of {plan.config.submodels} ready")
            time.sleep(POLL)
    finally:
        for worker in workers:
            worker.end()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """A process that trains submodels; it ends with this one, however that ends."""

    def __init__(self, plan: Plan, numbers: list[int], position: int) -> None:
        self.log = plan.folder / f"process-{position}.log"
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "modelfix_apricot.worker", str(plan.folder)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *map(str, numbers)],
                stdin=subprocess.PIPE,  # closed by the system when this process is gone
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | threads,
                start_new_session=True,  # an interrupt from the keyboard is ours to handle
            )

    def running(self) -> bool:
        """Whether it is still at work; an error of it is raised."""
        code = self.process.poll()
        if code:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"it ended with code {code}"
            raise Failure(f"a process that trains submodels failed: {reason}")
        return code is None

    def end(self) -> None:
        """End the process if it is running."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
