"""Runs the gradient attack on a model with PyTorch and Foolbox (extra ``attack``)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import eagerpy as ep
import foolbox
import modelfix_core.torch as bridge
import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.model import Model
from torch import Tensor, nn

from modelfix_metrics.attacks import PRESETS, Attack, Attacked, random_starts
from modelfix_metrics.decisions import predicted
from modelfix_metrics.normalisation import normalisation_of

BATCH = 125
BATCH_VALUES = 2**22  # pixels of a batch, so that large images come in smaller batches

Progress = Callable[[int], None]


class Target:
    """A model as it is attacked: frozen, on its device, loaded once for all attacks.

    Parameters
    ----------
    model : Model
    device : str
    probabilities : bool
        Whether the model's outputs are probabilities rather than logits.

    Raises
    ------
    ModelfixError
        If there is no such device.
    Unadaptable
        If the model has no gradients: it cannot be converted to PyTorch, or its logits do not
        depend on the input in a differentiable way.
    """

    def __init__(self, model: Model, device: str = "cpu", probabilities: bool = False) -> None:
        self.model = model
        self.probabilities = probabilities
        self.device = find_device(device)
        try:
            net = bridge.load(model, device).requires_grad_(False)
        except ModelfixError as error:
            raise Unadaptable(f"no_gradients: {error}") from error
        # Gradients of small convolutions take half the time in this layout.
        self.net = net.to(memory_format=torch.channels_last)
        probe = torch.zeros((1, *model.input_shape), device=self.device, requires_grad=True)
        if not self.net(probe).requires_grad:
            raise Unadaptable(f"no_gradients: the logits of {model.name} are not differentiable.")

    @property
    def batch(self) -> int:
        """Inputs attacked together."""
        return int(np.clip(BATCH_VALUES // np.prod(self.model.input_shape), 1, BATCH))

    def logits(self, data: Split) -> np.ndarray:
        """Compute the logits of all of `data` with the attacked network, [N, K]."""
        with torch.no_grad():
            parts = [
                self.net(self._images(data, part)).cpu().numpy()
                for part in data.batches(2 * self.batch)
            ]
        return np.concatenate(parts)

    def attack(
        self,
        attack: Attack,
        data: Split,
        ranks: np.ndarray,
        order: np.ndarray,
        order_seed: int,
        progress: Progress | None = None,
    ) -> Attacked:
        """Attack the inputs at `ranks` of `order` with their true labels.

        Parameters
        ----------
        attack : Attack
        data : Split
        ranks : ndarray of int, [n]
        order : ndarray of int, [N]
        order_seed : int
            From which the random starts are drawn.
        progress : callable, optional
            Gets the number of inputs finished after each batch.

        Returns
        -------
        Attacked
        """
        if len(ranks) == 0:
            return Attacked.none()
        view = self._view(attack, data, order[ranks])

        def run(part: np.ndarray) -> Attacked:
            x = self._images(data, order[part])
            y = self._tensor(data.y[order[part]].astype(np.int64))
            starts = self._tensor(random_starts(part, self.model.input_shape, order_seed))
            return _run(attack, view.of(data.ids[order[part]]), x, y, starts)

        parts = [ranks[start : start + self.batch] for start in range(0, len(ranks), self.batch)]
        result = Attacked.none()
        with _workers(self.device) as pool:
            for part, found in zip(parts, pool.map(run, parts), strict=True):
                result = result.join(found)
                if progress is not None:
                    progress(len(part))
        return result

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _images(self, data: Split, index) -> Tensor:
        return self._tensor(data.images(index)).contiguous(memory_format=torch.channels_last)

    def _view(self, attack: Attack, data: Split, positions: np.ndarray) -> "_View":
        if attack.space == "pixel":
            return LogitsView(self.net, self.probabilities, (0.0, 1.0))
        bounds = self._network_bounds(data, positions)
        return _NetworkView(self.net, self.probabilities, bounds, self._affine())

    def _affine(self) -> tuple[Tensor, Tensor]:
        normalisation = normalisation_of(self.model)
        scale = self._tensor(normalisation.scale.astype(np.float32))
        return scale, self._tensor(normalisation.shift.astype(np.float32))

    def _network_bounds(self, data: Split, positions: np.ndarray) -> tuple[float, float]:
        """Return the smallest and largest network input among the attacked ones."""
        scale, shift = self._affine()
        low, high = np.inf, -np.inf
        for start in range(0, len(positions), self.batch):
            pixels = self._images(data, positions[start : start + self.batch])
            inputs = pixels * scale + shift
            low, high = min(low, inputs.min().item()), max(high, inputs.max().item())
        return low, high


def find_device(name: str) -> torch.device:
    """Return the device of that name; an error says what there is."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelfixError(
            f"device {name!r} cannot be used by PyTorch here; use cpu, or cuda on a machine with "
            "a GPU and a PyTorch built for it."
        ) from error


@contextmanager
def _workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Give threads for whole batches in place of PyTorch's threads within an operation.

    On small networks PyTorch's threads mostly wait for each other, and burn the time of other
    processes while they do. One batch per thread also makes results independent of their number.
    """
    threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _run(attack: Attack, view: "_View", x: Tensor, y: Tensor, starts: Tensor) -> Attacked:
    """Attack one batch of pixels."""
    counted = _Counted(view)
    descent = (_MarginDescent if attack.loss == "margin" else _Descent)(attack, starts)
    seen = foolbox.PyTorchModel(counted, bounds=view.bounds, device=x.device)
    criterion = foolbox.criteria.Misclassification(y)
    attacked = descent.run(seen, view.inputs(x), criterion, epsilon=attack.epsilon)
    with torch.no_grad():
        wrong = predicted(counted(attacked).cpu().numpy()) != y.cpu().numpy()
    assert descent.zero_gradient is not None, "an attack takes a gradient step at least"
    return Attacked(wrong, descent.zero_gradient.cpu().numpy(), counted.calls)


class _Counted(nn.Module):
    """Counts the inputs that go through a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        return self.module(x)


class _View(nn.Module):
    """The network as the attack sees it."""

    def __init__(self, net: nn.Module, probabilities: bool, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.net = net
        self.probabilities = probabilities
        self.bounds = bounds
        self.eval()

    def of(self, ids: np.ndarray) -> "_View":
        """Return the network as a batch of these sample ids sees it."""
        return self


class LogitsView(_View):
    """Pixels in, logits out; of probabilities the logarithm."""

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return the pixels."""
        return pixels

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits, [n, K]."""
        outputs = self.net(x)
        if self.probabilities:
            return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
        return outputs


class _NetworkView(_View):
    """Normalised images in, probabilities out."""

    def __init__(self, net, probabilities, bounds, affine: tuple[Tensor, Tensor]) -> None:
        super().__init__(net, probabilities, bounds)
        self.scale, self.shift = affine

    def inputs(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale + self.shift

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.net((x - self.shift) / self.scale)
        return outputs if self.probabilities else outputs.softmax(dim=1)


class _Descent(foolbox.attacks.LinfPGD):
    """Foolbox' attack with starts of our own draw, so that no global generator is involved.

    Notes which inputs have a gradient of zero everywhere at the start.
    """

    def __init__(self, attack: Attack, starts: Tensor) -> None:
        preset = PRESETS[attack.preset]
        super().__init__(
            rel_stepsize=preset.relative_step, steps=preset.steps, random_start=preset.random_start
        )
        self.starts = starts
        self.zero_gradient: Tensor | None = None

    def get_random_start(self, x0: ep.Tensor, epsilon: float) -> ep.Tensor:
        return x0 + epsilon * ep.astensor(self.starts)

    def value_and_grad(self, loss_fn, x: ep.Tensor) -> tuple[ep.Tensor, ep.Tensor]:
        value, gradient = super().value_and_grad(loss_fn, x)
        if self.zero_gradient is None:
            self.zero_gradient = (gradient.raw == 0).flatten(1).all(dim=1)
        return value, gradient


class _MarginDescent(_Descent):
    """Raises the best other logit minus the label's: its gradient does not saturate."""

    def get_loss_fn(self, model: foolbox.Model, labels: ep.Tensor):
        label = labels.raw[:, None]

        def margin(inputs: ep.Tensor) -> ep.Tensor:
            logits = model(inputs).raw
            own = logits.gather(1, label)
            others = logits.scatter(1, label, -torch.inf).max(dim=1).values
            return ep.astensor((others - own[:, 0]).sum())

        return margin
