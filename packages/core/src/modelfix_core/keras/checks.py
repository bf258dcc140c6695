"""The comparison of every conversion with onnxruntime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.seeds import generator

TOLERANCE = 1e-4  # of float32 sums of the size of one
SAMPLES = 4


@dataclass(frozen=True)
class Checkpoint:
    """A place at which both sides can be compared: the layer's name and its ONNX tensor."""

    layer: str
    tensor: str


def check_conversion(
    model: Model,
    checkpoints: Sequence[Checkpoint],
    compute: Callable[[np.ndarray, Sequence[Checkpoint]], Sequence[np.ndarray]],
) -> None:
    """Compare Keras with onnxruntime on random images.

    Parameters
    ----------
    model : Model
    checkpoints : sequence of Checkpoint
        In graph order, the logits last.
    compute : callable
        Gives, for images [N, C, H, W] and checkpoints, Keras' tensors with the axes of ONNX.

    Raises
    ------
    ModelfixError
        If the logits differ by more than `TOLERANCE` (relative where they exceed 1); names the
        first layer that does.
    """
    shape = (SAMPLES, *model.input_shape)
    x = generator(0, stage="check of a conversion").random(shape, dtype=np.float32)
    logits = checkpoints[-1]
    if _difference(model.predict(x), compute(x, [logits])[0]) <= TOLERANCE:
        return
    names = [point.tensor for point in checkpoints]
    expected = model.activations(x, list(dict.fromkeys(names)))
    for point, found in zip(checkpoints, compute(x, checkpoints), strict=True):
        difference = _difference(expected[point.tensor], found)
        if not difference <= TOLERANCE:
            raise ModelfixError(
                f"{model.name}: Keras and onnxruntime disagree by {difference:.2g} (relative), "
                f"first at layer {point.layer!r}; the model cannot be used with Keras."
            )


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(expected - found).max(initial=0.0)) / scale
