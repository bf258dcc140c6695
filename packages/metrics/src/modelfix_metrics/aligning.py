"""UP and UD: both models under noise or dropout, weighed by their uncertainties (PyTorch)."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import modelfix_core.torch as bridge
import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.model import Model
from modelfix_core.seeds import generator
from torch import Tensor, nn

from modelfix_metrics.adversary import LogitsView, Target, find_device
from modelfix_metrics.combining import FLOOR, Dropout, Perturbation, alignment_weights
from modelfix_metrics.normalisation import normalisation_of

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Aligned:
    """What an aligned pair of models answers.

    Attributes
    ----------
    log_r : ndarray of float32, [N, K]
    original, fixed : ndarray of float32, [N]
        Uncertainties before clipping.
    """

    log_r: np.ndarray
    original: np.ndarray
    fixed: np.ndarray

    def at_floor(self) -> dict[str, float]:
        """Return the share of inputs whose uncertainty is at the floor; with both, w_o is 1/4."""
        old, new = self.original <= FLOOR, self.fixed <= FLOOR
        shares = {"original": old, "fixed": new, "both": old & new}
        return {name: float(share.mean()) for name, share in shares.items()}


class Moments:
    """Running mean of log p and total variance of p, so that memory does not grow with S."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.log_sum: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, log_p: Tensor) -> None:
        """Take the log probabilities of one pass, [n, K]."""
        squares = (2 * log_p).exp()
        if self.log_sum is None:
            self.log_sum, self.squares = log_p, squares
        else:
            self.log_sum = torch.logaddexp(self.log_sum, log_p)
            self.squares = self.squares + squares

    @property
    def log_mean(self) -> Tensor:
        """Logarithm of the mean probabilities, [n, K]."""
        assert self.log_sum is not None
        return self.log_sum - float(np.log(self.samples))

    @property
    def uncertainty(self) -> Tensor:
        """Sum over classes of the variances over the passes, [n]."""
        assert self.squares is not None
        return (self.squares / self.samples - (2 * self.log_mean).exp()).sum(dim=1)


class Alignment(nn.Module, ABC):
    """The original and the fixed model, weighed by their uncertainties; answers log r.

    Parameters
    ----------
    nets : pair of TorchModel
        Original and fixed.
    probabilities : pair of bool
        Whether their outputs are probabilities.
    samples : int
        Passes S.
    seed : int
        Every input's draws come from the seed and the input's id alone.
    """

    def __init__(
        self,
        nets: tuple[bridge.TorchModel, bridge.TorchModel],
        probabilities: tuple[bool, bool],
        samples: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.probabilities = probabilities
        self.samples = samples
        self.seed = seed

    def forward(self, x: Tensor, ids: np.ndarray, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log r and both uncertainties.

        Parameters
        ----------
        x : Tensor, [n, C, H, W]
        ids : ndarray of int, [n]
            Sample ids, from which the draws come.
        step : int
            Another number, other draws.

        Returns
        -------
        tuple of Tensor
            log r [n, K]; uncertainties of the original and of the fixed model, [n].
        """
        moments = Moments(self.samples), Moments(self.samples)
        for outputs in self.passes(x, ids, step):
            for moment, output, flag in zip(moments, outputs, self.probabilities, strict=True):
                if flag:
                    output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
                moment.add(output.log_softmax(dim=1))
        u_o, u_n = (moment.uncertainty for moment in moments)
        w_o, w_n = (weight[:, None].log() for weight in alignment_weights(u_o, u_n))
        log_r = torch.logaddexp(w_o + moments[0].log_mean, w_n + moments[1].log_mean)
        return log_r, u_o, u_n

    @abstractmethod
    def passes(self, x: Tensor, ids: np.ndarray, step: int) -> Iterator[Pair]:
        """Yield the outputs of both models, S times."""

    def _generators(self, ids: np.ndarray, step: int, which: str) -> list[np.random.Generator]:
        axes: dict[str, str | int] = {"stage": "post-processing", "step": step, "model": which}
        return [generator(self.seed, sample=int(sample), **axes) for sample in ids]


class Perturbed(Alignment):
    """UP: the same noise on the input of both models."""

    def __init__(self, nets, probabilities, rule: Perturbation, seed: int) -> None:
        super().__init__(nets, probabilities, rule.samples, seed)
        self.rule = rule
        for number, net in enumerate(nets):
            # Noise after the normalisation is this much noise on the pixels.
            scale = normalisation_of(net.model).scale if rule.space == "model" else np.ones(1)
            deviation = torch.from_numpy((rule.noise / scale).astype(np.float32))
            self.register_buffer(f"deviation_{number}", deviation)

    def passes(self, x: Tensor, ids: np.ndarray, step: int) -> Iterator[Pair]:
        """Yield the outputs of both models under each draw of noise."""
        names = ("both",) if self.rule.shared else ("original", "fixed")
        sources = [self._generators(ids, step, name) for name in names]
        for _ in range(self.samples):
            drawn = [self._draw(source, x) for source in sources]
            yield self._output(0, x, drawn[0]), self._output(1, x, drawn[-1])

    @staticmethod
    def _draw(source: Sequence[np.random.Generator], x: Tensor) -> Tensor:
        shape = x.shape[1:]
        noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in source])
        return torch.from_numpy(noise).to(x.device)

    def _output(self, number: int, x: Tensor, noise: Tensor) -> Tensor:
        noisy = x + noise * self.get_buffer(f"deviation_{number}")
        return self.nets[number](noisy.clamp(0, 1) if self.rule.space == "pixel" else noisy)


class Dropped(Alignment):
    """UD: dropout of its own for each model on the features that enter a dense layer."""

    def __init__(self, nets, probabilities, rule: Dropout, seed: int) -> None:
        super().__init__(nets, probabilities, rule.samples, seed)
        self.rate = rule.rate
        name = rule.layer or _last_dense(nets[0].model)
        self.places = [_features(net.model, name) for net in nets]

    def passes(self, x: Tensor, ids: np.ndarray, step: int) -> Iterator[Pair]:
        """Yield the outputs of both models under each draw; the features are computed once."""
        known = [
            {net.model.input_name: x, **net.activations(x, [place])}
            for net, place in zip(self.nets, self.places, strict=True)
        ]
        sources = [self._generators(ids, step, name) for name in ("original", "fixed")]
        for _ in range(self.samples):
            first, second = (self._output(i, known[i], sources[i]) for i in (0, 1))
            yield first, second

    def _output(
        self, number: int, known: dict[str, Tensor], source: Sequence[np.random.Generator]
    ) -> Tensor:
        net, place = self.nets[number], self.places[number]
        features = known[place]
        kept = np.stack([rng.random(features.shape[1:], np.float32) >= self.rate for rng in source])
        mask = torch.from_numpy(kept.astype(np.float32) / np.float32(1 - self.rate))
        output = net.model.output_name
        dropped = {**known, place: features * mask.to(features.device)}
        return net.run(dropped, [output])[output]


def _last_dense(model: Model) -> str:
    dense = model.layers("dense")
    if not dense:
        raise Unadaptable(
            "UD drops features before a dense layer, and the original model has none."
        )
    return dense[-1].name


def _features(model: Model, name: str) -> str:
    """Return the tensor that enters the dense layer called `name`."""
    dense = {layer.name: layer.input for layer in model.layers("dense")}
    if name not in dense:
        raise Unadaptable(
            f"{model.name} has no dense layer {name!r} for UD; it has {', '.join(dense) or 'none'}."
        )
    return dense[name]


class AlignedTarget(Target):
    """A pair of models as one that predicts and is attacked.

    Parameters
    ----------
    original, fixed : Model
    rule : Perturbation or Dropout
    seed : int
    device : str
    probabilities : pair of bool
        Whether the outputs of the models are probabilities.
    fresh : bool
        Other draws in every step of an attack, so that its gradients average over them (``eot``);
        otherwise the draws of an input are the same throughout.

    Attributes
    ----------
    fingerprint : str
        Hash of models, rule and seed.

    Raises
    ------
    Unadaptable
        If a model has no gradients, or not the layer for UD.
    """

    def __init__(
        self,
        original: Model,
        fixed: Model,
        rule: Perturbation | Dropout,
        seed: int,
        device: str = "cpu",
        probabilities: tuple[bool, bool] = (False, False),
        fresh: bool = False,
    ) -> None:
        self.model = fixed
        self.probabilities = False
        parts = [original.hash, fixed.hash, type(rule).__name__, asdict(rule), seed]
        self.fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        self._known: tuple[Split, Aligned] | None = None
        self.device = find_device(device)
        self.fresh = fresh
        self.samples = rule.samples
        try:
            nets = bridge.load(original), bridge.load(fixed)
        except ModelfixError as error:
            raise Unadaptable(f"no_gradients: {error}") from error
        net: Alignment = (
            Perturbed(nets, probabilities, rule, seed)
            if isinstance(rule, Perturbation)
            else Dropped(nets, probabilities, rule, seed)
        )
        net = net.to(self.device).eval()
        self.net = net.requires_grad_(False).to(memory_format=torch.channels_last)

    @property
    def batch(self) -> int:
        """Inputs attacked together; the gradient needs the activations of all passes."""
        return max(1, super().batch // max(1, self.samples // 4))

    def align(self, data: Split) -> Aligned:
        """Compute log r and the uncertainties of all of `data`, once."""
        if self._known is not None and self._known[0] is data:
            return self._known[1]
        with torch.no_grad():
            parts = [
                [
                    part.cpu().numpy()
                    for part in self.net(self._images(data, batch), data.ids[batch])
                ]
                for batch in data.batches(2 * super().batch)
            ]
        aligned = Aligned(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        self._known = data, aligned
        return aligned

    def logits(self, data: Split) -> np.ndarray:
        """Compute log r of all of `data`, [N, K]."""
        return self.align(data).log_r

    def _view(self, attack, data, positions) -> "_AlignedView":
        if attack.space != "pixel":
            raise Unadaptable("asr_study needs one network, not an aligned pair.")
        return _AlignedView(self.net, self.fresh)


class _AlignedView(LogitsView):
    """Pixels in, log r out, with the draws of the inputs that are attacked."""

    def __init__(self, net: Alignment, fresh: bool, ids: np.ndarray | None = None) -> None:
        super().__init__(net, False, (0.0, 1.0))
        self.fresh = fresh
        self.ids = ids
        self.step = 0

    def of(self, ids: np.ndarray) -> "_AlignedView":
        return _AlignedView(self.net, self.fresh, ids)

    def forward(self, x: Tensor) -> Tensor:
        if self.fresh:
            self.step += 1
        log_r, _, _ = self.net(x, self.ids, self.step)
        return log_r
