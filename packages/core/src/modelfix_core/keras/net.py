"""A model as trainable Keras layers: its tensors by name, layer access and the prefix cache."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.keras.checks import Checkpoint, check_conversion
from modelfix_core.keras.importer import import_model
from modelfix_core.keras.layout import NCHW, Layout
from modelfix_core.model import Model


def load(model: Model) -> "KerasModel":
    """Convert `model` to trainable Keras layers and compare it with onnxruntime.

    Parameters
    ----------
    model : Model

    Returns
    -------
    KerasModel

    Raises
    ------
    ModelfixError
        If an operator cannot be converted (names operator and node), or Keras and onnxruntime
        disagree (names the first differing layer).
    """
    net = KerasModel(model)
    points = [Checkpoint(layer.name, layer.output) for layer in model.layers()]
    points.append(Checkpoint("logits", model.output_name))

    def compute(x: np.ndarray, wanted: Sequence[Checkpoint]) -> list[np.ndarray]:
        found = net.activations(x, [point.tensor for point in wanted])
        return [found[point.tensor].numpy() for point in wanted]

    check_conversion(model, points, compute)
    return net


def predict(net: "KerasModel", x: Split | np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Compute the logits with Keras, dropout off and BatchNorm on its statistics.

    Parameters
    ----------
    net : KerasModel
    x : Split, or ndarray of float32 in [0, 1], [N, C, H, W]
    batch_size : int

    Returns
    -------
    ndarray of float32, [N, K]
    """
    return np.concatenate([net.forward(batch).numpy() for batch in batches(x, batch_size)])


def batches(x: Split | np.ndarray, size: int):
    """Yield the images of a split or array in float32 batches of at most `size`."""
    if isinstance(x, Split):
        yield from (x.images(index) for index in x.batches(size))
    else:
        for start in range(0, len(x), size):
            yield np.ascontiguousarray(x[start : start + size], dtype=np.float32)


class KerasModel:
    """A model as trainable Keras layers; made by `load`.

    Images enter as [N, C, H, W]; inside, image tensors are held [N, H, W, C]. Arrays that come out
    of `weights`, `activations` and `gradients` have the axes of the ONNX file.

    Attributes
    ----------
    model : Model
        The model it was made from.
    keras : keras.Model
        The trainable model, from images [N, C, H, W] to logits [N, K]. Layers are named after
        their weights, so ``keras.get_layer("conv1")`` holds ``conv1.weight``.
    tensors : dict of str to keras.Variable
        The live variable of each initializer, BatchNorm statistics included. Keras holds kernels
        [kh, kw, in, out] and dense weights [in, out]: see `layouts`.
    layouts : dict of str to Layout
        The way between the axes of the file and those of Keras, for each of `tensors`.
    steps : tuple of Step
        What is computed, in order.
    """

    def __init__(self, model: Model) -> None:
        imported = import_model(model)
        self.model = model
        self.keras = imported.keras
        self.tensors = imported.tensors
        self.layouts: Mapping[str, Layout] = imported.layouts
        self.steps = imported.steps
        self.values: Mapping[str, Any] = imported.values
        self.channels_last: Mapping[str, bool] = imported.channels_last
        self._gradient_of = lru_cache(maxsize=None)(self._make_gradient)
        self._weight_gradient_of = lru_cache(maxsize=None)(self._make_weight_gradient)
        self.inner = lru_cache(maxsize=None)(self._make_inner)

    @cached_property
    def forward(self) -> Callable[[Any], tf.Tensor]:
        """The compiled inference: images [N, C, H, W] to logits [N, K], one trace for every N."""
        signature = tf.TensorSpec((None, *self.model.input_shape), tf.float32)
        return tf.function(lambda x: self.keras(x, training=False), input_signature=[signature])

    # -- weights -------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Return the initializers that differ (in any bit) from the model's, for a `Candidate`.

        Returns
        -------
        dict of str to ndarray of float32
            With the shapes of the file.
        """
        changed = {}
        for name, variable in self.tensors.items():
            array = self.layouts[name].to_onnx(keras.ops.convert_to_numpy(variable))
            if array.tobytes() != self.model.weights[name].tobytes():
                changed[name] = array
        return changed

    def set_weights(self, values: Mapping[str, np.ndarray]) -> None:
        """Set initializers in place; the others stay.

        Parameters
        ----------
        values : mapping of str to ndarray
            With the shapes of the file.

        Raises
        ------
        ModelfixError
            If a name is unknown or a shape differs.
        """
        for name, array in values.items():
            if name not in self.tensors:
                raise ModelfixError(f"{self.model.name}: has no weight named {name!r}.")
            layout = self.layouts[name]
            if np.shape(array) != layout.onnx:
                raise ModelfixError(
                    f"{self.model.name}: weight {name!r} has shape {list(layout.onnx)}, not "
                    f"{list(np.shape(array))}."
                )
            self.tensors[name].assign(layout.to_keras(np.asarray(array, dtype=np.float32)))

    def reset(self) -> None:
        """Give every initializer the model's value again."""
        self.set_weights({name: self.model.weights[name] for name in self.tensors})

    # -- layer access --------------------------------------------------------------------------

    def tensor_name(self, name: str) -> str:
        """Return `name` if it is a tensor, else the output tensor of the layer of that name."""
        return name if name in self.values else self.model.layer(name).output

    def activations(self, x: Any, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Compute inner tensors; differentiable under a gradient tape.

        Parameters
        ----------
        x : ndarray or tensor of float32, [N, C, H, W]
        names : sequence of str
            Tensor names, or layer names for their outputs before the activation function.

        Returns
        -------
        dict of str to tensor
            [N, ...] with the axes of the file, in the order of `names`.
        """
        tensors = tuple(self.tensor_name(name) for name in names)
        found = self.inner(tensors)(tf.convert_to_tensor(x, tf.float32))
        return {
            name: self._as_onnx(tensor, value)
            for name, tensor, value in zip(names, tensors, found, strict=True)
        }

    def gradients(
        self,
        x: Split | np.ndarray,
        names: Sequence[str],
        objective: Callable[[tf.Tensor], tf.Tensor] = tf.reduce_sum,
        batch_size: int = 500,
    ) -> dict[str, np.ndarray]:
        """Compute, for each image, the gradient of an objective at inner tensors.

        Parameters
        ----------
        x : Split or ndarray, [N, C, H, W]
        names : sequence of str
            Tensor or layer names, as in `activations`.
        objective : callable
            From logits [N, K] to a sum over the images of what is differentiated; the default
            sums all logits. In inference no image affects another, so the gradient of the sum
            holds each image's own gradient. Compiled once for each function: pass the same
            function again, not a new lambda.
        batch_size : int

        Returns
        -------
        dict of str to ndarray of float32
            [N, ...] with the axes of the file.
        """
        tensors = tuple(self.tensor_name(name) for name in names)
        compute = self._gradient_of(tensors, objective)
        parts = [compute(batch) for batch in batches(x, batch_size)]
        return {
            name: np.concatenate([self._as_onnx(tensor, part[i]).numpy() for part in parts])
            for i, (name, tensor) in enumerate(zip(names, tensors, strict=True))
        }

    def weight_gradients(
        self,
        x: Split | np.ndarray,
        y: np.ndarray,
        names: Sequence[str],
        batch_size: int = 500,
    ) -> dict[str, np.ndarray]:
        """Compute the gradient of the cross-entropy, summed over the images, at weights.

        Parameters
        ----------
        x : Split or ndarray, [N, C, H, W]
        y : ndarray of int, [N]
        names : sequence of str
            Initializer names.
        batch_size : int

        Returns
        -------
        dict of str to ndarray of float32
            With the shapes of the file.
        """
        compute = self._weight_gradient_of(tuple(names))
        totals = [np.zeros(tuple(self.tensors[name].shape), np.float32) for name in names]
        done = 0
        for batch in batches(x, batch_size):
            labels = tf.constant(y[done : done + len(batch)], tf.int32)
            for total, part in zip(totals, compute(batch, labels), strict=True):
                total += part.numpy()
            done += len(batch)
        return {
            name: self.layouts[name].to_onnx(total)
            for name, total in zip(names, totals, strict=True)
        }

    # -- prefix cache --------------------------------------------------------------------------

    def prefix(self, name: str, x: Split | np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Compute once what `suffix` takes: the tensor as Keras holds it, for every image.

        Parameters
        ----------
        name : str
            Tensor name, or layer name for its output.
        x : Split or ndarray, [N, C, H, W]
        batch_size : int

        Returns
        -------
        ndarray of float32, [N, H, W, C] or [N, features]
        """
        compute = tf.function(self.inner((self.tensor_name(name),)), reduce_retracing=True)
        parts = [compute(tf.constant(batch))[0].numpy() for batch in batches(x, batch_size)]
        return np.concatenate(parts)

    def suffix(self, name: str) -> keras.Model:
        """Return the trainable model from a tensor (as `prefix` gives it) to the logits.

        It shares its layers with `keras`: training one trains the other.

        Raises
        ------
        ModelfixError
            If the logits depend on the images by a way around the tensor.
        """
        tensor = self.tensor_name(name)
        try:
            return keras.Model(self.values[tensor], self.keras.outputs[0])
        except ValueError as error:
            raise ModelfixError(
                f"{self.model.name}: the logits do not depend on {name!r} alone; choose a layer "
                "outside of a residual or dense block."
            ) from error

    # -- inner ---------------------------------------------------------------------------------

    def _make_inner(self, tensors: tuple[str, ...]) -> Callable[[Any], list[tf.Tensor]]:
        wanted = [self.values[name] for name in tensors]
        part = keras.Model(self.keras.inputs[0], wanted)
        # Keras unwraps a list of one output.
        return lambda images: tf.nest.flatten(part(images, training=False))

    def _make_gradient(self, tensors: tuple[str, ...], objective: Callable) -> Callable:
        inner = self.inner((*tensors, self.model.output_name))
        signature = tf.TensorSpec((None, *self.model.input_shape), tf.float32)

        @tf.function(input_signature=[signature])
        def compute(images: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(images)
                *values, logits = inner(images)
                total = objective(logits)
            return tape.gradient(total, values, unconnected_gradients="zero")

        return compute

    def _make_weight_gradient(self, names: tuple[str, ...]) -> Callable:
        variables = [self.tensors[name].value for name in names]
        images = tf.TensorSpec((None, *self.model.input_shape), tf.float32)

        @tf.function(input_signature=[images, tf.TensorSpec((None,), tf.int32)])
        def compute(x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                logits = self.keras(x, training=False)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
                loss = tf.reduce_sum(losses)
            return tape.gradient(loss, variables, unconnected_gradients="zero")

        return compute

    def _as_onnx(self, tensor: str, value: tf.Tensor) -> tf.Tensor:
        held_last = self.channels_last[tensor] and len(value.shape) == 4
        return tf.transpose(value, NCHW) if held_last else value
