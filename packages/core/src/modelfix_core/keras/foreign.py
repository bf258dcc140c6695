"""A Keras file, of Keras 3 or Keras 2, as a foreign model."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from modelfix_core.errors import ModelfixError
from modelfix_core.foreign import Original
from modelfix_core.keras.exporter import convert, load_file
from modelfix_core.keras.layout import NHWC


def read_keras(path: Path, shape: Sequence[int]) -> Original:
    """Read a ``.keras`` or ``.h5`` file and write it as ONNX.

    Parameters
    ----------
    path : Path
    shape : sequence of int
        Channels, height and width of the user's images, for models that leave them open or take
        them flat or without the axis of channels.

    Raises
    ------
    ModelfixError
        If the file cannot be read, is refused as unsafe, or cannot be converted.
    """
    keras_model = _for_images(load_file(path), str(path), shape)
    model = convert(keras_model, str(path))

    def run(x: np.ndarray) -> np.ndarray:
        images = x.transpose(NHWC)
        parts = [images[start : start + 100] for start in range(0, len(x), 100)]
        return np.concatenate([keras_model(part, training=False).numpy() for part in parts])

    return Original(str(path), model.proto(), run, notes=list(model.notes))


def _for_images(keras_model: keras.Model, name: str, shape: Sequence[int]) -> keras.Model:
    """Return the model with an input [N, H, W, C] of fixed size."""
    channels, height, width = shape
    images = (height, width, channels)
    if len(keras_model.inputs) != 1:
        raise ModelfixError(
            f"{name}: has {len(keras_model.inputs)} inputs; expected one batch of images."
        )
    taken = tuple(keras_model.inputs[0].shape[1:])
    if taken == images:
        # Keras 2 files may hold their one input in a list.
        return keras.Model(keras_model.inputs[0], keras_model.outputs[0], name=keras_model.name)
    target = [
        wanted
        for wanted in (images, (height, width), (height * width * channels,))
        if len(wanted) == len(taken)
        and all(t in (None, w) for t, w in zip(taken, wanted, strict=True))
        and int(np.prod(wanted)) == int(np.prod(images))
    ]
    if not target:
        raise ModelfixError(
            f"{name}: takes images of shape {list(taken)} but the data have {list(images)} "
            "(height, width, channels); use the images the model was trained for."
        )
    entry = keras.Input(images, name="images")
    x = entry if target[0] == images else keras.layers.Reshape(target[0], name="as_taken")(entry)
    return keras.Model(entry, keras_model(x))
