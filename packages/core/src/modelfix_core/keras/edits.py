"""Edited weights of a linear layer as few columns of its input and few units of its output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from modelfix_core.errors import ModelfixError
from modelfix_core.keras.layout import Layout
from modelfix_core.keras.net import KerasModel
from modelfix_core.population import Patch


@dataclass(frozen=True)
class Edit:
    """What a population changes in one layer.

    The change of the output is ``columns(input) @ change(values)``: a product with R rows and U
    columns, where R counts the distinct input positions that the edited weights read, and U the
    distinct output channels that they write.

    Attributes
    ----------
    layer : keras.layers.Layer
        Dense, Conv2D or DepthwiseConv2D.
    channels : ndarray of int, [C']
        Input channels or features that are read.
    positions : ndarray of int, [R]
        Where the rows lie in the unfolded windows of these channels.
    units : ndarray of int, [U]
        Output channels or units that are written, ascending.
    slots : ndarray of int, [R * U]
        Position in the values of each entry of the product's matrix; the number of values for
        the entries that stay.
    original : ndarray of float32, [D]
        The layer's own values of the edited weights.
    place : ndarray of int, [D, axes]
        Where the edited weights lie in the kernel as Keras holds it.
    own : ndarray of int, [D]
        Position of the edited weights among the values of all patches.
    """

    layer: keras.layers.Layer
    channels: np.ndarray
    positions: np.ndarray
    units: np.ndarray
    slots: np.ndarray
    original: np.ndarray
    place: np.ndarray
    own: np.ndarray

    def columns(self, x: tf.Tensor) -> tf.Tensor:
        """Return what the edited weights read: [N, features] or [N, H, W, C] to [N, ..., R]."""
        x = tf.gather(x, self.channels, axis=-1)
        if isinstance(self.layer, keras.layers.Dense):
            return x
        windows = tf.image.extract_patches(
            x,
            sizes=[1, *self.layer.kernel_size, 1],
            strides=[1, *self.layer.strides, 1],
            rates=[1, *self.layer.dilation_rate, 1],
            padding=self.layer.padding.upper(),
        )
        return tf.gather(windows, self.positions, axis=-1)

    def change(self, values: tf.Tensor) -> tf.Tensor:
        """Return the matrices of the changes: values [P, D of all patches] to [P, R, U]."""
        change = tf.gather(values, self.own, axis=1) - self.original
        padded = tf.pad(change, [[0, 0], [0, 1]])
        shape = (-1, len(self.positions), len(self.units))
        return tf.reshape(tf.gather(padded, self.slots, axis=1), shape)

    def convolved(self, x: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """Return the patched convolutions of inputs [P, n, H, W, C] that differ by candidate."""
        layer = self.layer
        options = {"padding": layer.padding.upper()}
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            convolution = tf.nn.depthwise_conv2d
            options["strides"] = [1, *layer.strides, 1]
        else:
            convolution = tf.nn.conv2d
            options["strides"] = layer.strides

        def one(candidate: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            images, own = candidate
            kernel = tf.tensor_scatter_nd_update(layer.kernel.value, self.place, own)
            return convolution(images, kernel, dilations=layer.dilation_rate, **options)

        own = tf.gather(values, self.own, axis=1)
        output = tf.map_fn(one, (x, own), fn_output_signature=tf.float32)
        return output + layer.bias if layer.use_bias else output


def edits_of(net: KerasModel, patches: Sequence[Patch]) -> Mapping[int, Edit]:
    """Return the edit of each patched layer, by the identity of its Keras layer.

    Raises
    ------
    ModelfixError
        If a layer is unknown or neither dense nor convolutional, an index lies outside of its
        weight, or two patches edit the same weight.
    """
    indices: dict[str, list[np.ndarray]] = {}
    owns: dict[str, list[np.ndarray]] = {}
    done = 0
    for patch in patches:
        index = np.asarray(patch.index, dtype=np.int64).ravel()
        indices.setdefault(patch.layer, []).append(index)
        owns.setdefault(patch.layer, []).append(np.arange(done, done + len(index)))
        done += len(index)
    edits = {}
    for name, parts in indices.items():
        edit = _edit(net, name, np.concatenate(parts), np.concatenate(owns[name]))
        edits[id(edit.layer)] = edit
    return edits


def _edit(net: KerasModel, name: str, index: np.ndarray, own: np.ndarray) -> Edit:
    weight = net.model.layer(name).weight
    variable, layout = net.tensors[weight], net.layouts[weight]
    _check(net, name, index, int(np.prod(layout.onnx)))
    layer = next(
        layer
        for step in net.steps
        for layer in step.layers
        if step.kind == "linear" and layer.kernel is variable
    )
    place = _places(layout, variable.shape, index)
    read, write = _reads_and_writes(layer, variable.shape, place)
    rows, row = np.unique(read, axis=0, return_inverse=True)
    units, unit = np.unique(write, return_inverse=True)
    channels, channel = np.unique(rows[:, 0], return_inverse=True)
    columns = getattr(layer, "kernel_size", (1, 1))[1]
    slots = np.full((len(rows), len(units)), len(index))
    slots[row.ravel(), unit.ravel()] = np.arange(len(index))
    kernel = keras.ops.convert_to_numpy(variable)
    return Edit(
        layer,
        channels,
        (rows[:, 1] * columns + rows[:, 2]) * len(channels) + channel.ravel(),
        units,
        slots.ravel(),
        kernel[tuple(place.T)],
        place,
        own,
    )


def _check(net: KerasModel, name: str, index: np.ndarray, size: int) -> None:
    if net.model.layer(name).kind == "batchnorm":
        raise ModelfixError(
            f"{net.model.name}: layer {name!r} is a BatchNormalization; only weights of dense and "
            "convolutional layers can be patched."
        )
    if len(index) == 0 or index.min() < 0 or index.max() >= size:
        raise ModelfixError(
            f"{net.model.name}: a patch of layer {name!r} needs positions in 0 to {size - 1}."
        )
    if len(np.unique(index)) < len(index):
        raise ModelfixError(f"{net.model.name}: a weight of layer {name!r} is patched twice.")


def _places(layout: Layout, shape: tuple[int, ...], index: np.ndarray) -> np.ndarray:
    """Return the coordinates in Keras' kernel of positions in the file's flattened weight."""
    file_order = np.arange(np.prod(shape)).reshape(layout.onnx)
    keras_order = np.argsort(layout.to_keras(file_order).ravel())[index]
    return np.stack(np.unravel_index(keras_order, shape), axis=1)


def _reads_and_writes(
    layer: keras.layers.Layer, shape: tuple[int, ...], place: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (channel, row, column) read and unit written by each weight."""
    if isinstance(layer, keras.layers.Dense):
        return np.pad(place[:, :1], [(0, 0), (0, 2)]), place[:, 1]
    row, column, inner, outer = place.T
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        channel, unit = inner, inner * shape[3] + outer
    else:
        group = outer // (shape[3] // layer.groups)
        channel, unit = group * shape[2] + inner, outer
    return np.stack([channel, row, column], axis=1), unit
