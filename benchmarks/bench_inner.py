# environment: inner
"""INNER: inputs routed together from cached values against one whole network pass per step.

The baseline does what the authors' code does: for each input and step two whole networks (one only
to find what the probe read), all probes on both, a restore of every weight, and gradients of all
parameters; each input is routed, whether or not the mask can still grow. Ours is
`modelfix_inner.localisation.count_hits`, the cache included. Both route the same inputs through
the same blocks of LeNet5 with the same probes, and must mark the same weights. The repair, whose
baseline runs whole networks and differentiates all parameters, must give the same model. The
defaults are small; the last ratio, of both together, depends on how much is repaired.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import TypeVar

import numpy as np
import torch
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import PrefixCache, TorchModel, export, load
from modelfix_inner.blocks import Block, find_blocks
from modelfix_inner.localisation import Reading, count_hits, make_mask
from modelfix_inner.probes import make_probe, train_probes
from modelfix_inner.repair import Marked, Repair
from modelfix_inner.samples import Samples
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CLASSES, LEARNED = 10, 1000
STEPS, RATE, DECAY, MARGIN = 40, 0.009, 0.005, 1e-7
BATCH, LEARNING_RATE, ALPHA, TEMPERATURE = 64, 7e-4, 0.8, 3.0
TOLERANCE = 1e-5
T = TypeVar("T")


class Straightforward:
    """The authors' way, in the words of the algorithm's description.

    Parameters
    ----------
    net : TorchModel
    blocks, probes : sequence
        All of them, whichever are repaired.
    """

    def __init__(self, net: TorchModel, blocks: Sequence[Block], probes: nn.ModuleList) -> None:
        self.net, self.blocks, self.probes = net, blocks, probes
        self.parameters = [*net.parameters(), *probes.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def readings(self, x: Tensor) -> list[Tensor]:
        """Run the whole network and every probe."""
        taps = [block.tap for block in self.blocks]
        values = self.net.activations(x, [*taps, self.net.model.output_name])
        return [probe(values[tap]) for probe, tap in zip(self.probes, taps, strict=True)]

    def count(self, position: int, x: Tensor) -> Tensor:
        """Count the inputs that mark each weight of a block."""
        weight = self.net.tensor(self.blocks[position].layer.weight)
        counts = torch.zeros_like(weight, dtype=torch.int64)
        for image in x.split(1):
            routing = self.route(position, image, weight)
            counts += routing > routing.double().mean() + MARGIN
        return counts

    def route(self, position: int, image: Tensor, weight: Tensor) -> Tensor:
        """Route one input."""
        original = {name: tensor.detach().clone() for name, tensor in self.net.tensors.items()}
        routing = torch.ones_like(weight)
        for _ in range(STEPS):
            self.net.set_weights(original)
            target = self.readings(image)[position].argmax(dim=1)
            with torch.no_grad():
                weight.mul_(routing)
            slopes = self.gradients(cross_entropy(self.readings(image)[position], target))
            routing = routing - RATE * slopes[id(weight)] - DECAY * routing.sign()
            routing = routing.clamp(0, 1)
        self.net.set_weights(original)
        return routing.detach()

    def gradients(self, loss: Tensor) -> dict[int, Tensor]:
        """Differentiate by all parameters."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return {id(p): g for p, g in zip(self.parameters, found, strict=True) if g is not None}

    def step(self, position: int, mask: Tensor, loss: Tensor) -> None:
        """Take a masked step of SGD."""
        slopes = self.gradients(loss)
        weight, bias = (self.net.tensor(n) for n in self.blocks[position].layer.parameters)
        with torch.no_grad():
            weight -= LEARNING_RATE * (slopes[id(weight)] * mask)
            bias -= LEARNING_RATE * slopes[id(bias)]

    def repair(self, position: int, mask: Tensor, faulty: Samples, clean: Tensor) -> None:
        """Make a pass over pairs by a block's probe."""
        parts = zip(faulty.x.split(BATCH), faulty.y.split(BATCH), clean.split(BATCH), strict=True)
        for x, y, partner in parts:
            wanted = [reading.detach() for reading in self.readings(partner)][position]
            reading = self.readings(x)[position]
            soft = (wanted / TEMPERATURE).softmax(dim=1)
            kd = -(soft * (reading / TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()
            loss = ALPHA * cross_entropy(reading, y) + (1 - ALPHA) * kd
            self.step(position, mask, loss)

    def relabel(self, position: int, mask: Tensor, faulty: Samples) -> None:
        """Make a pass over the faults by their labels."""
        for x, y in zip(faulty.x.split(BATCH), faulty.y.split(BATCH), strict=True):
            self.step(position, mask, cross_entropy(self.net(x), y))


def problem(faults: int) -> tuple[TorchModel, Samples, Samples]:
    """Return a random network, images labelled by it, and images labelled otherwise."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build("lenet5", CLASSES, 1).eval()
    x = torch.rand((LEARNED + faults, 1, 28, 28), generator=generator)
    with torch.no_grad():
        module.fc3.bias -= module(x).mean(dim=0)  # so that no class wins everywhere
        y = module(x).argmax(dim=1)
    clean = Samples(x[:LEARNED], y[:LEARNED])
    faulty = Samples(x[LEARNED:], (y[LEARNED:] + 1) % CLASSES)
    return load(export(module, (1, 28, 28))), clean, faulty


def trained_probes(net: TorchModel, blocks: Sequence[Block], clean: Samples) -> nn.ModuleList:
    taps = [block.tap for block in blocks]
    features = PrefixCache(net, taps, clean.x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probes = [
            make_probe(value.shape[1:], CLASSES, depth < 2)
            for depth, value in enumerate(features[slice(1)].values())
        ]
    rng = np.random.default_rng(0)
    train_probes(probes, features, clean.y, rng, epochs=5, learning_rate=0.01, batch_size=128)
    return nn.ModuleList(probes)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = process_time()
    result = work()
    return result, process_time() - start


def report(name: str, slow: float, fast: float, **values: float) -> dict:
    print(f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s)")
    seconds = {"baseline_seconds": slow, "ours_seconds": fast}
    return {"name": name, "ratio": slow / fast, **seconds, **values}


def compare_routing(
    net: TorchModel, blocks: Sequence[Block], probes: nn.ModuleList, x: Tensor
) -> tuple[list[dict], list[Tensor]]:
    """Mark the weights of every block both ways."""
    routing = {"steps": STEPS, "rate": RATE, "decay": DECAY}
    readings = [Reading(net, *pair) for pair in zip(blocks, probes, strict=True)]

    def ours() -> list[Tensor]:
        found = [count_hits(reading, x, until_full=True, **routing) for reading in readings]
        return [make_mask(counts, "reference", 0) for counts, _ in found]

    def baseline() -> list[Tensor]:
        slow = Straightforward(net, blocks, probes)
        return [slow.count(position, x) > 0 for position in range(len(blocks))]

    count_hits(readings[0], x[:2], **routing)  # the first call sets up kernels
    masks, fast = timed(ours)
    expected, slow = timed(baseline)
    for mask, other in zip(masks, expected, strict=True):
        assert torch.equal(mask, other), "the masks differ"
    # Without the union's early end, to see what routing together saves.
    counted, whole = timed(lambda: [count_hits(reading, x, **routing)[0] for reading in readings])
    assert all((count > 0).equal(mask) for count, mask in zip(counted, masks, strict=True))
    results = [
        report("inner-routing", slow, fast, inputs=len(x), blocks=len(blocks)),
        report("inner-routing-all-inputs", slow, whole, inputs=len(x), blocks=len(blocks)),
    ]
    return results, masks


def compare_repair(
    net: TorchModel,
    blocks: Sequence[Block],
    probes: nn.ModuleList,
    masks: Sequence[Tensor],
    faulty: Samples,
    clean: Tensor,
    epochs: int,
) -> dict:
    """Repair every block by its probe, and twice by the labels, both ways, without evaluation."""

    def ours() -> dict:
        net.reset()
        readings = [Reading(net, *pair) for pair in zip(blocks, probes, strict=True)]
        marked = [Marked(d, *pair) for d, pair in enumerate(zip(readings, masks, strict=True))]
        repair = Repair(net, faulty, clean)
        for _ in range(epochs):
            for part in marked:
                repair.by_probe(part)
            for part in marked * 2:
                repair.by_label(part)
        return net.weights()

    def baseline() -> dict:
        net.reset()
        slow = Straightforward(net, blocks, probes)
        for _ in range(epochs):
            for position, mask in enumerate(masks):
                slow.repair(position, mask, faulty, clean)
            for position, mask in [*enumerate(masks)] * 2:
                slow.relabel(position, mask, faulty)
        return net.weights()

    repaired, fast = timed(ours)
    expected, slow = timed(baseline)
    net.reset()
    assert repaired.keys() == expected.keys()
    largest = max(float(np.abs(repaired[n] - expected[n]).max()) for n in repaired)
    assert largest <= TOLERANCE, f"repaired weights differ by {largest:g}"
    return report("inner-repair", slow, fast, faults=len(faulty.y), largest_difference=largest)


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    parser.add_argument("--inputs", type=int, default=40, help="that are routed (preset: 100)")
    parser.add_argument("--faults", type=int, default=256, help="to repair (preset: 1000)")
    parser.add_argument("--epochs", type=int, default=2, help="of the repair (preset: 20)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # both ways; the times are the processor's
    net, clean, faulty = problem(options.faults)
    blocks = find_blocks(net.model)
    probes = trained_probes(net, blocks, clean)
    results, masks = compare_routing(net, blocks, probes, faulty.x[: options.inputs])
    partners = clean.x[: options.faults]
    repaired = compare_repair(net, blocks, probes, masks, faulty, partners, options.epochs)
    results.append(repaired)
    slow, fast = (results[0][key] + repaired[key] for key in ("baseline_seconds", "ours_seconds"))
    results.append(report("inner-routing-and-repair", slow, fast, epochs=options.epochs))
    if options.json is not None:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
