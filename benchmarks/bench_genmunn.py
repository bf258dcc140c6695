"""GenMuNN: fitness of a search's variants against one pass of the whole network per variant.

The baseline gives a plain PyTorch network each variant's weights, elite included, and runs all
fitness data; ours is `modelfix_genmunn.fitness.Fitness` with the elite kept by the algorithm. Both
searches use the same seed and must end with the same population. The localisation is compared with
counts collected sample by sample and unit by unit.
"""

# environment: genmunn

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.model import Model
from modelfix_core.search import GeneticAlgorithm
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import TorchModel, export, load
from modelfix_genmunn.approach import mutable_layers
from modelfix_genmunn.fitness import LOSS_DIGITS, Fitness, patched
from modelfix_genmunn.mutation import Mutation
from modelfix_genmunn.run import first_generation
from modelfix_genmunn.spectrum import blame, spectra
from torch import nn

SAMPLES, COUNTED, BATCH = 1000, 300, 500
POPULATION, ELITE, GENERATIONS = 40, 4, 12


class OnePassEach:
    """The straightforward fitness: every variant is a network of its own, predicting everything."""

    def __init__(self, module: nn.Module, model: Model, patches, x: Split) -> None:
        self.module, self.model, self.patches = copy.deepcopy(module), model, patches
        self.parameters = dict(self.module.named_parameters())
        self.x, self.y = torch.from_numpy(x.images()), torch.from_numpy(x.y)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return right answers and negated mean loss, [P, 2]."""
        return np.stack([self.one(variant) for variant in values])

    @torch.inference_mode()
    def one(self, variant: np.ndarray) -> tuple[float, float]:
        """Score one variant."""
        for name, weight in patched(self.model, self.patches, variant).items():
            self.parameters[name].copy_(torch.from_numpy(weight))
        logits = torch.cat([self.module(batch) for batch in self.x.split(BATCH)])
        loss = nn.functional.cross_entropy(logits.double(), self.y)
        right = int((logits.argmax(dim=1) == self.y).sum())
        return right, -round(float(loss), LOSS_DIGITS)


def evolve(model: Model, patches, fitness: Callable, everyone: bool) -> GeneticAlgorithm:
    """Search; with `everyone`, the elite is scored again in each generation, as a loop would."""
    mutation = Mutation(model, patches, 4, 0.5)
    rng = np.random.default_rng(0)
    search = GeneticAlgorithm(
        first_generation(mutation, POPULATION, rng),
        mutation,
        rng,
        elite=ELITE,
        generations=GENERATIONS,
    )
    while not search.finished:
        values, _ = search.ask()
        if everyone and search.generation:
            fitness(search.population[:ELITE])
        search.tell(fitness(values))
    return search


def counts(net: TorchModel, layers, x: Split, failing: np.ndarray) -> list[np.ndarray]:
    """Return n_cf of each layer, collected sample by sample and unit by unit."""
    found = []
    for layer in layers:
        names = [layer.input, layer.activated]
        total = 0
        for i in np.flatnonzero(failing):
            image = torch.from_numpy(x.images(slice(i, i + 1)))
            with torch.no_grad():
                values = net.activations(image, names)
            a, b = (values[name].flatten(2).mean(2) if values[name].ndim > 2 else values[name]
                    for name in names)  # fmt: skip
            a, b = a[0].numpy() > 0, b[0].numpy()
            last = layer.activated == net.model.output_name
            on = [j == b.argmax() if last else b[j] > 0 for j in range(len(b))]
            total = total + np.array([[active and covered for covered in a] for active in on], int)
        found.append(total)
    return found


def result(name: str, slow: float, fast: float) -> dict:
    print(f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s)")
    return {"name": name, "ratio": slow / fast, "baseline_seconds": slow, "ours_seconds": fast}


def compare(name: str, module: nn.Module, shape: tuple[int, int, int]) -> list[dict]:
    model = export(module, shape)
    rng = np.random.default_rng(0)
    x = rng.random((SAMPLES, *model.input_shape), dtype=np.float32)
    y = model.predict(x).argmax(axis=1)
    failing = np.arange(SAMPLES) % 10 == 0
    y[failing] = (y[failing] + 1) % model.num_classes
    data, net, layers = Split(x, y), load(model), mutable_layers(model)

    part = data.select(slice(0, COUNTED))
    start = process_time()
    expected = counts(net, layers, part, failing[:COUNTED])
    slow = process_time() - start
    start = process_time()
    found = spectra(net, layers, part, failing[:COUNTED])
    fast = process_time() - start
    for plain, spectrum in zip(expected, found, strict=True):
        np.testing.assert_array_equal(plain, spectrum.covered_failing)
    results = [result(f"genmunn-spectrum-{name}", slow, fast)]

    patches, _ = blame(model, layers, spectra(net, layers, data, failing), 0.01)
    start = process_time()
    baseline = evolve(model, patches, OnePassEach(module, model, patches, data), everyone=True)
    slow = process_time() - start
    start = process_time()
    ours = evolve(model, patches, Fitness(net, patches, data), everyone=False)
    fast = process_time() - start
    np.testing.assert_array_equal(ours.population, baseline.population)
    np.testing.assert_array_equal(ours.fitness[:, 0], baseline.fitness[:, 0])
    return [*results, result(f"genmunn-search-{name}", slow, fast)]


def digits_network() -> nn.Module:
    sizes = [(64, 64), (64, 64), (64, 10)]
    first, second, last = (nn.Linear(*size) for size in sizes)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last).eval()


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # processor time then says what was computed, on busy machines too
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lenet5, digits = build("lenet5", 10, 1).eval(), digits_network()
    results = [*compare("lenet5", lenet5, (1, 28, 28)), *compare("digits", digits, (1, 8, 8))]
    if options.json is not None:
        options.json.write_text("".join(json.dumps(line) + "\n" for line in results))
    return results


if __name__ == "__main__":
    main()
