# environment: metrics
"""Post-processing: dropout behind cached features, and one fused graph against two models.

UD: the baseline runs both whole networks in every pass; ours runs them once and, in every pass,
only what comes after the dropout. Both draw the same masks and must give the same log r. SV: the
baseline runs both models and combines their logits; ours runs the fused graph, in which the layers
before the changed one are computed once. Both must give the same log r.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import TypeVar

import numpy as np
from modelfix_core import Model, Split
from modelfix_core.subjects.untrained import untrained
from modelfix_metrics.aligning import AlignedTarget, Dropped
from modelfix_metrics.combining import Dropout, Mixture
from modelfix_metrics.fusing import fuse

T = TypeVar("T")
TOLERANCE = 1e-4


class WholeNetworks(Dropped):
    """Computes the features anew in every pass."""

    def passes(self, x, ids, step):
        """Yield the outputs of both models under each draw."""
        sources = [self._generators(ids, step, name) for name in ("original", "fixed")]
        for _ in range(self.samples):
            outputs = []
            for number, (net, place) in enumerate(zip(self.nets, self.places, strict=True)):
                known = {net.model.input_name: x, **net.activations(x, [place])}
                outputs.append(self._output(number, known, sources[number]))
            yield outputs[0], outputs[1]


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result and the processor time of `work`."""
    started = process_time()
    return work(), process_time() - started


def models(name: str) -> tuple[Model, Model]:
    """Return an untrained model and one whose last dense layer differs."""
    original = untrained(name)
    weight = original.layers("dense")[-1].weight
    noise = np.random.default_rng(1).normal(size=original.weights[weight].shape)
    return original, original.with_weights({weight: original.weights[weight] + 0.1 * noise})


def dropout(original: Model, fixed: Model, data: Split, samples: int) -> dict:
    """Compare UD behind cached features with UD by whole networks."""
    target = AlignedTarget(original, fixed, Dropout(samples), 0)
    ours, seconds = timed(lambda: target.align(data).log_r)
    whole = AlignedTarget(original, fixed, Dropout(samples), 0)
    whole.net.__class__ = WholeNetworks
    theirs, baseline = timed(lambda: whole.align(data).log_r)
    assert np.abs(ours - theirs).max() < TOLERANCE
    return report("post-processing-dropout", baseline, seconds, samples=samples)


def voting(original: Model, fixed: Model, data: Split) -> dict:
    """Compare the fused graph of SV with both models and their combination."""
    fused = fuse(original, fixed, Mixture())
    for model in (original, fixed, fused):
        model.predict(data.images(slice(1)))  # the sessions exist before the clock starts
    ours, seconds = timed(lambda: fused.predict(data))
    theirs, baseline = timed(lambda: Mixture().combine(original.predict(data), fixed.predict(data)))
    assert np.abs(ours - theirs).max() < TOLERANCE
    return report("post-processing-voting", baseline, seconds)


def report(name: str, slow: float, fast: float, **values: float) -> dict:
    """Print the ratio and return it with the seconds."""
    print(f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s)")
    seconds = {"baseline_seconds": slow, "ours_seconds": fast}
    return {"name": name, "ratio": slow / fast, **seconds, **values}


def main(arguments: list[str] | None = None) -> list[dict]:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    parser.add_argument("--subject", default="mnist-lenet5")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args(arguments)
    original, fixed = models(options.subject)
    x = np.random.default_rng(0).random((options.images, *original.input_shape), dtype=np.float32)
    data = Split(x, np.zeros(options.images, dtype=np.int64))
    results = [
        dropout(original, fixed, data, options.samples),
        voting(original, fixed, data),
    ]
    if options.json is not None:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
