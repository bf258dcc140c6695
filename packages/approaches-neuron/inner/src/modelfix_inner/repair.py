"""Repair: masked gradient steps on one layer per block, led by its probe and by the labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.torch import TorchModel
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax
from torch.nn.modules.batchnorm import _BatchNorm

from modelfix_inner.localisation import Reading
from modelfix_inner.prefixes import Prefixes
from modelfix_inner.samples import Samples


@dataclass(frozen=True)
class Marked:
    """A block that is repaired.

    Attributes
    ----------
    depth : int
        Its position among the blocks, from 0.
    reading : Reading
        With the block and its probe, in evaluation mode.
    mask : Tensor of bool, like the layer's weight
        Which weights may move; the bias always may.
    """

    depth: int
    reading: Reading
    mask: Tensor


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy between softened outputs, mean over rows (step 7).

    Parameters
    ----------
    student, teacher : Tensor, [n, K]
        Logits; no gradient flows into the teacher's.
    temperature : float
    """
    wanted = softmax(teacher.detach() / temperature, dim=1)
    return -(wanted * log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


class Repair:
    """Passes over faulty inputs that change the marked weights of a network in place.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode before and after every pass; nothing else may change its weights.
    faulty : Samples
    clean : Tensor, [n, C, H, W]
        Partners of the first n faulty inputs.
    batch_size : int
    learning_rate : float
        Of SGD without momentum.
    alpha : float
        Weight of the label against the clean partner's reading.
    temperature : float
    batch_statistics : bool
        Whether BatchNorm, in the network and in the probes, uses the batches' statistics and lets
        its own drift, as the authors' code does.
    memory : int
        Bytes of values that may be kept between passes.
    """

    def __init__(
        self,
        net: TorchModel,
        faulty: Samples,
        clean: Tensor,
        *,
        batch_size: int = 64,
        learning_rate: float = 7e-4,
        alpha: float = 0.8,
        temperature: float = 3.0,
        batch_statistics: bool = False,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.net, self.y, self.pairs = net, faulty.y, len(clean)
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.alpha, self.temperature = alpha, temperature
        self.batch_statistics = batch_statistics
        self.faulty = Prefixes(net, faulty.x, batch_size, memory // 2)
        self.clean = Prefixes(net, clean, batch_size, memory // 2)

    def by_probe(self, marked: Marked) -> float:
        """Teach the probe's reading of faulty inputs: their label, and the partner's reading.

        Returns
        -------
        float
            Mean loss of the pass (step 7).
        """
        losses = []
        with self._training(marked) as parameters:
            for rows in self._batches(self.pairs):
                with torch.no_grad():
                    partner = self._reading(marked, self.clean, rows)
                reading = self._reading(marked, self.faulty, rows)
                by_label = cross_entropy(reading, self.y[rows])
                by_partner = distillation(reading, partner, self.temperature)
                loss = self.alpha * by_label + (1 - self.alpha) * by_partner
                self._step(parameters, marked.mask, loss)
                losses.append(float(loss.detach()))
        return sum(losses) / max(len(losses), 1)

    def by_label(self, marked: Marked) -> None:
        """Teach the network's own output for faulty inputs: their label (step 9)."""
        output = self.net.model.output_name
        with self._training(marked) as parameters:
            for rows in self._batches(len(self.y)):
                logits = self._run(marked, self.faulty, rows, [output])[output]
                self._step(parameters, marked.mask, cross_entropy(logits, self.y[rows]))

    def _reading(self, marked: Marked, inputs: Prefixes, rows: slice) -> Tensor:
        # All of the network has to see the batch where its statistics are to drift.
        beyond = [self.net.model.output_name] if self.batch_statistics else []
        tap = marked.reading.block.tap
        return marked.reading.probe(self._run(marked, inputs, rows, [tap, *beyond])[tap])

    def _run(
        self, marked: Marked, inputs: Prefixes, rows: slice, wanted: list[str]
    ) -> dict[str, Tensor]:
        """Compute tensors of some inputs, from what the layer reads or from the images."""
        start = [self.net.model.input_name] if self.batch_statistics else marked.reading.frontier
        return self.net.run(inputs.rows(start, rows), wanted)

    def _batches(self, count: int) -> Iterator[slice]:
        # A BatchNorm cannot take statistics of a single input.
        smallest = 2 if self.batch_statistics else 1
        for start in range(0, count - smallest + 1, self.batch_size):
            yield slice(start, min(start + self.batch_size, count))

    def _step(self, parameters: Sequence[Tensor], mask: Tensor, loss: Tensor) -> None:
        weight, *bias = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, [weight * mask, *bias], strict=True):
                parameter -= self.learning_rate * gradient

    @contextmanager
    def _training(self, marked: Marked) -> Iterator[list[Tensor]]:
        """Open the layer's parameters, and the statistics where they are to drift.

        Everything else stays frozen, so that nothing is differentiated below the layer.
        """
        self.net.requires_grad_(False)
        parameters = [self.net.tensor(name) for name in marked.reading.block.layer.parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        for inputs in (self.faulty, self.clean):
            inputs.drop_above(marked.depth)
            if not self.batch_statistics:
                inputs.keep(marked.depth, marked.reading.frontier)
        parts = [*self.net.modules(), *marked.reading.probe.modules()]
        drifting = [part for part in parts if isinstance(part, _BatchNorm)]
        for norm in drifting if self.batch_statistics else []:
            norm.train()
        try:
            yield parameters
        finally:
            for norm in drifting:
                norm.eval()
