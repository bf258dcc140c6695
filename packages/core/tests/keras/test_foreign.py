"""Files of Keras 3 and Keras 2 become models that answer as Keras does.

The files ``keras2-*.h5`` were written by tf_keras 2.19, the last of the line of Keras 2, and
``keras2-expected.npz`` holds what it predicted for the images of `PROBE`.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from modelfix_core import Dataset, ModelfixError
from modelfix_core.foreign import Conventions, adopt, read

DATA = Path(__file__).parent / "data"
PROBE = np.random.default_rng(1).random((10, 8, 8, 1), dtype=np.float64).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def adopted(path, channels=1, scale=1.0):
    x = np.random.default_rng(0).integers(0, 256, (60, channels, 8, 8), dtype=np.uint8)
    dataset = Dataset.from_arrays(x, np.arange(60) % 3)
    original = read(path, None, (channels, 8, 8))
    return adopt(original, dataset, Conventions(scale=scale))


@pytest.mark.parametrize(
    ("name", "channels", "kinds"),
    [
        ("sequential", 1, ["conv", "batchnorm", "dense"]),
        ("functional", 3, ["conv", "batchnorm", "conv", "dense"]),
        ("flat", 1, ["dense", "dense"]),
    ],
)
def test_files_of_keras_2(name, channels, kinds):
    model = adopted(DATA / f"keras2-{name}.h5", channels)
    x = np.ascontiguousarray(np.repeat(PROBE, channels, 3).transpose(0, 3, 1, 2))
    found, expected = model.predict(x), np.load(DATA / "keras2-expected.npz")[name]
    if name != "flat":
        found = softmax(found)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert [layer.kind for layer in model.layers()] == kinds


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (64,), (None, None, 1)])
def test_images_in_every_shape(tmp_path, shape):
    """A grey image is the same numbers with, without an axis of channels, or flat."""
    inner = [layers.GlobalAveragePooling2D()] if None in shape else [layers.Flatten()]
    inner = [layers.Conv2D(2, 3), *inner] if len(shape) == 3 else inner
    keras_model = keras.Sequential([keras.Input(shape), *inner, layers.Dense(3)])
    keras_model.save(tmp_path / "m.keras")
    model = adopted(tmp_path / "m.keras")
    x = PROBE.transpose(0, 3, 1, 2)
    taken = PROBE.reshape(10, *(size or 8 for size in shape))
    np.testing.assert_allclose(model.predict(x), keras_model.predict(taken, verbose=0), atol=1e-5)
    assert model.input_shape == (1, 8, 8)


def test_scale_lies_in_the_graph(tmp_path):
    keras_model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Flatten(),
         layers.Dense(3, activation="softmax")]
    )  # fmt: skip
    keras_model.save(tmp_path / "m.h5")
    model = adopted(tmp_path / "m.h5", scale=255.0)
    expected = keras_model.predict(PROBE * 255, verbose=0)
    found = softmax(model.predict(PROBE.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_layers_outside_our_set_go_through_tf2onnx_and_it_is_said(tmp_path):
    keras_model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.SeparableConv2D(4, 3), layers.BatchNormalization(),
         layers.Flatten(), layers.Dense(3)]
    )  # fmt: skip
    keras_model.save(tmp_path / "m.keras")
    model = adopted(tmp_path / "m.keras")
    expected = keras_model.predict(PROBE, verbose=0)
    np.testing.assert_allclose(model.predict(PROBE.transpose(0, 3, 1, 2)), expected, atol=1e-4)
    assert any("folds BatchNorm and renames weights" in note for note in model.notes)


@keras.saving.register_keras_serializable(package="elsewhere")
class Doubling(layers.Layer):
    def call(self, x):
        return 2 * x


def test_custom_layers_are_named(tmp_path):
    keras.Sequential([keras.Input((8, 8, 1)), Doubling(), layers.Flatten(), layers.Dense(3)]).save(
        tmp_path / "m.keras"
    )
    registered = keras.saving.get_custom_objects()
    kept = registered.pop("elsewhere>Doubling")
    try:
        with pytest.raises(ModelfixError, match="custom layer 'Doubling'") as error:
            read(tmp_path / "m.keras", None, (1, 8, 8))
    finally:
        registered["elsewhere>Doubling"] = kept
    assert "\n" not in str(error.value)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ModelfixError, match=r"takes images of shape \[8, 8, 1\] but the data"):
        read(DATA / "keras2-sequential.h5", None, (3, 8, 8))
