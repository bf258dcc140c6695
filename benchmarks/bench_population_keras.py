# environment: core-keras
"""Population evaluation in Keras against one forward pass of the network per patched model.

100 patches of LeNet5's layers on 1,000 images; the same logits both ways. The loop compared with
sets the weights in place and runs a compiled forward pass: faster than ``set_weights`` and
``predict`` of Keras.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
from modelfix_core.keras import KerasModel, Population, export, load, predict
from modelfix_core.model import Model
from modelfix_core.population import Patch

CANDIDATES, IMAGES, WEIGHTS, REPEATS = 100, 1000, 8, 5


def lenet5() -> Model:
    import keras
    from keras import layers

    return export(
        keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(6, 5, activation="relu", name="conv1"),
                layers.MaxPooling2D(3),
                layers.Conv2D(16, 3, activation="relu", name="conv2"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(120, activation="relu", name="fc1"),
                layers.Dense(84, activation="relu", name="fc2"),
                layers.Dense(10, name="fc3"),
            ]
        )
    )


def straightforward(net: KerasModel, patch: Patch, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Set each candidate's weights and run the whole network."""
    name = net.model.layer(patch.layer).weight
    weight = net.model.weights[name].copy()
    logits = []
    for candidate in values:
        weight.reshape(-1)[patch.index] = candidate
        net.set_weights({name: weight})
        logits.append(predict(net, x, batch_size=len(x)))
    net.reset()
    return np.stack(logits)


def measure(net: KerasModel, layer: str) -> dict[str, float | str]:
    rng, model = np.random.default_rng(0), net.model
    x = rng.random((IMAGES, *model.input_shape), dtype=np.float32)
    y = rng.integers(0, model.num_classes, IMAGES)
    size = model.weights[model.layer(layer).weight].size
    patch = Patch(layer, rng.choice(size, WEIGHTS, replace=False))
    values = rng.normal(0, 0.3, (CANDIDATES, WEIGHTS)).astype(np.float32)

    start = perf_counter()
    population = Population(net, [patch], x, y)
    scores = population.evaluate(values)
    first = perf_counter() - start
    predict(net, x[:1])  # both sides are traced before they are timed
    ours, baselines = [], []
    for _ in range(REPEATS):
        start = perf_counter()
        population.evaluate(values)
        ours.append(perf_counter() - start)
        start = perf_counter()
        expected = straightforward(net, patch, values, x)
        baselines.append(perf_counter() - start)

    found = population.logits(values)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found.argmax(axis=2), expected.argmax(axis=2))
    np.testing.assert_array_equal(scores.right, expected.argmax(axis=2) == y)
    seconds, baseline = float(np.median(ours)), float(np.median(baselines))
    return {
        "name": f"population-keras-{layer}",
        "ratio": baseline / seconds,
        "baseline_seconds": baseline,
        "seconds": seconds,
        "first_seconds": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="append the measurements to this file")
    arguments = parser.parse_args()
    net = load(lenet5())
    for layer in ("fc3", "fc2", "fc1", "conv2", "conv1"):
        result = measure(net, layer)
        print(
            f"{result['name']}: {result['ratio']:.1f} x (baseline {result['baseline_seconds']:.3f} "
            f"s, ours {result['seconds']:.4f} s; first evaluation with preparation "
            f"{result['first_seconds']:.2f} s)"
        )
        if arguments.json:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
