"""Population evaluation: many weight patches scored in batched passes, exactly.

What does not depend on the patch is computed once and kept. What does is followed through the
network as a change: an edited layer changes few channels of its output (one small product for all
candidates at once), activations, pooling and BatchNorm are applied to these channels only, and the
next linear layer takes the change of these channels. From there on the population is folded into
the batch and runs through the unpatched layers. The classes that a patch of the last layer does
not touch enter the loss through their kept maximum and log-sum-exp.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.keras.edits import Edit, edits_of
from modelfix_core.keras.importer import Step
from modelfix_core.keras.layers import Arithmetic, Divide
from modelfix_core.keras.net import KerasModel
from modelfix_core.population import DEFAULT_MEMORY, Patch, Scores

CANDIDATES = 32  # of one pass; fixed, so that a candidate's scores do not depend on its company
CHUNK = 64 * 1024**2  # bytes of one pass on a CPU: larger ones only leave its caches
CHUNK_GPU = 1024**3
FEW = 32  # rows of a product: with no more, spreading its matrix is cheaper than its result
ELEMENTWISE = {
    keras.layers.Add: tf.add,
    keras.layers.Subtract: tf.subtract,
    keras.layers.Multiply: tf.multiply,
    Divide: tf.divide,
}


class Population:
    """Scores candidates that differ in some weights, on the same images.

    The other weights are those that `net` has now; make a new population after changing them.

    Parameters
    ----------
    net : KerasModel
    patches : sequence of Patch
        Which weights a candidate's values replace, in this order.
    x : Split, or ndarray of float32 in [0, 1], [n, C, H, W]
    y : ndarray of int, [n], optional
        Labels; those of the split by default.
    memory : int
        Bytes for kept tensors and passes. Tensors that do not fit are computed anew in each
        evaluation.
    chunk : int, optional
        At most so many images in one pass; by default what the memory allows.

    Attributes
    ----------
    dimensions : int
        Number D of patched weights.
    chunk : int
        Images of one pass; parts that begin and end at its multiples cost no padding.

    Raises
    ------
    ModelfixError
        If a patch does not fit the model or the logits do not depend on the patched weights.
    """

    def __init__(
        self,
        net: KerasModel,
        patches: Sequence[Patch],
        x: Split | np.ndarray,
        y: np.ndarray | None = None,
        memory: int = DEFAULT_MEMORY,
        chunk: int | None = None,
    ) -> None:
        self.net = net
        self.dimensions = sum(np.size(patch.index) for patch in patches)
        self._x = x
        self._labels = np.asarray(x.y if y is None and isinstance(x, Split) else y)
        if self._labels.shape != (len(x),):
            raise ModelfixError(
                f"there are {len(x)} images and labels of shape {list(self._labels.shape)}; give "
                "one label per image."
            )
        self._edits = edits_of(net, patches)
        base, width = self._rehearse()
        self._recipes = base.recipes
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        self._plan(width, min(memory // 2, CHUNK_GPU if on_gpu else CHUNK), chunk or len(x))
        self._base = tf.function(self._compute_base)
        self._score = tf.function(self._compute_scores)
        self._logits = tf.function(self._compute_logits)
        fits = base.bytes * len(x) <= memory // 2
        count = -(-len(x) // self.chunk)
        self._kept = [self._base_chunk(index) for index in range(count)] if fits else None

    def evaluate(self, values: np.ndarray, part: slice = slice(None)) -> Scores:
        """Score candidates.

        Parameters
        ----------
        values : ndarray, [P, D]
            New values of the patched weights; D is the total of all patches in their order.
        part : slice
            Of the images, without a step.

        Returns
        -------
        Scores
            `right` and `loss`, [P, n] for the n images of `part`.
        """
        right, loss = self._run(self._score, values, part)
        return Scores(right, loss)

    def logits(self, values: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """Compute the logits of candidates, [P, D] to [P, n, K] of float32, as `evaluate`."""
        return self._run(self._logits, values, part)[0]

    # -- passes --------------------------------------------------------------------------------

    def _rehearse(self) -> tuple["_Recorder", int]:
        """Run one candidate on one image; return what is needed of the base, and bytes per pass."""
        x = self._x.images([0]) if isinstance(self._x, Split) else self._x[:1]
        base = _Recorder(self.net, np.asarray(x, np.float32))
        run = _Pass(self.net, self._edits, tf.zeros((1, self.dimensions)), base)
        run.scores(tf.zeros(1, tf.int32))
        run.logits()
        return base, run.bytes

    def _plan(self, width: int, budget: int, most: int) -> None:
        """Choose how many candidates and images one pass takes."""
        count = len(self._labels)
        self._candidates = int(np.clip(budget // width, 1, CANDIDATES))
        images = int(np.clip(budget // (width * self._candidates), 1, min(count, most)))
        self.chunk = -(-count // -(-count // images))  # chunks of nearly equal size

    def _base_chunk(self, index: int) -> list[tf.Tensor]:
        """Return the kept tensors of a chunk of images; the last chunk is padded."""
        part = slice(index * self.chunk, (index + 1) * self.chunk)
        if isinstance(self._x, Split):
            x = self._x.images(part)
        else:
            x = np.asarray(self._x[part], np.float32)
        return self._base(tf.constant(_padded(x, self.chunk)))

    def _run(self, compute: Callable, values: np.ndarray, part: slice) -> list[np.ndarray]:
        values = np.asarray(values, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != self.dimensions:
            raise ModelfixError(
                f"a population of shape {list(values.shape)} was given; expected "
                f"[candidates, {self.dimensions}]."
            )
        start, stop, _ = part.indices(len(self._labels))
        if len(values) == 0 or start >= stop:
            raise ModelfixError("a population evaluation needs a candidate and an image.")
        count, step = len(values), self._candidates
        chunks = [
            tf.constant(_padded(values[first : first + step], step))
            for first in range(0, count, step)
        ]
        first = start // self.chunk
        columns = []
        for index in range(first, -(-stop // self.chunk)):
            kept = self._kept[index] if self._kept else self._base_chunk(index)
            images = slice(index * self.chunk, (index + 1) * self.chunk)
            labels = tf.constant(_padded(self._labels[images], self.chunk), tf.int32)
            results = [compute(chunk, labels, kept) for chunk in chunks]
            columns.append([np.concatenate(rows) for rows in zip(*results, strict=True)])
        joined = [np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True)]
        wanted = slice(start - first * self.chunk, stop - first * self.chunk)
        return [array[:count, wanted] for array in joined]

    def _compute_base(self, x: tf.Tensor) -> list[tf.Tensor]:
        names = list(dict.fromkeys(name for name, _ in self._recipes))
        found = dict(zip(names, self.net.inner(tuple(names))(x), strict=True))
        return [recipe(found[name]) for (name, _), recipe in self._recipes.items()]

    def _compute_scores(self, values: tf.Tensor, labels: tf.Tensor, kept: list[tf.Tensor]):
        return self._pass(values, kept).scores(labels)

    def _compute_logits(self, values: tf.Tensor, labels: tf.Tensor, kept: list[tf.Tensor]):
        return (self._pass(values, kept).logits(),)

    def _pass(self, values: tf.Tensor, kept: list[tf.Tensor]) -> "_Pass":
        base = _Kept(dict(zip(self._recipes, kept, strict=True)))
        return _Pass(self.net, self._edits, values, base)


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(array)
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


# -- the unpatched model ---------------------------------------------------------------------


def _identity(tensor: tf.Tensor) -> tf.Tensor:
    return tensor


class _Base(ABC):
    """Tensors of the unpatched model and what is derived from them, each under a key."""

    @abstractmethod
    def get(self, tensor: str, key: Any = None, recipe: Callable = _identity) -> Any: ...

    def channels(self, tensor: str, channels: np.ndarray | None) -> tf.Tensor:
        """Return a tensor's channels, [n, ..., C']; all of them for None."""
        if channels is None:
            return self.get(tensor)
        key = ("channels", tuple(channels))
        return self.get(tensor, key, lambda whole: tf.gather(whole, channels, axis=-1))


class _Kept(_Base):
    """Looks up what was kept of a chunk of images."""

    def __init__(self, kept: dict[tuple, Any]) -> None:
        self.kept = kept

    def get(self, tensor: str, key: Any = None, recipe: Callable = _identity) -> Any:
        return self.kept[tensor, key]


class _Recorder(_Base):
    """Computes what is asked for on one image and notes the recipes."""

    def __init__(self, net: KerasModel, x: np.ndarray) -> None:
        self.net, self.x = net, tf.constant(x)
        self.recipes: dict[tuple, Callable] = {}
        self.bytes = 0

    def get(self, tensor: str, key: Any = None, recipe: Callable = _identity) -> Any:
        result = recipe(self.net.inner((tensor,))(self.x)[0])
        if (tensor, key) not in self.recipes:
            self.recipes[tensor, key] = recipe
            self.bytes += sum(_bytes(part) for part in tf.nest.flatten(result))
        return result


def _bytes(tensor: tf.Tensor) -> int:
    return tensor.dtype.size * int(np.prod(tensor.shape))


# -- the patched models ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Touched:
    """A tensor that depends on the candidate: [P, n, ..., C'].

    `channels` are the channels (ascending) that do and that are held; None for all.
    """

    values: tf.Tensor
    channels: np.ndarray | None


class _Pass:
    """One pass of P candidates over n images, through the steps that depend on the candidate."""

    def __init__(
        self, net: KerasModel, edits: Mapping[int, Edit], values: tf.Tensor, base: _Base
    ) -> None:
        self.net, self.edits, self.base, self.population = net, edits, base, values
        self.count = values.shape[0]
        self.touched: dict[str, _Touched] = {}
        self.bytes = 1  # of the largest step, with its temporary tensors
        rules = {
            "linear": self._linear,
            "channelwise": self._channelwise,
            "elementwise": self._elementwise,
            "concat": self._concat,
            "flatten": self._flatten,
            "other": self._other,
        }
        for step in net.steps:
            edited = bool(step.layers) and id(step.layers[0]) in edits
            if edited or any(name in self.touched for name in step.inputs):
                result = rules[step.kind](step)
                self.touched[step.output] = result
                self._measure(result.values)
        if net.model.output_name not in self.touched:
            raise ModelfixError(
                f"{net.model.name}: its logits do not depend on the patched weights."
            )

    def _measure(self, *tensors: tf.Tensor) -> None:
        self.bytes = max(self.bytes, 4 * sum(_bytes(tensor) for tensor in tensors))

    # -- results -------------------------------------------------------------------------------

    def logits(self) -> tf.Tensor:
        """Return the logits, [P, n, K]."""
        name = self.net.model.output_name
        return self._widened(name, None).values

    def scores(self, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return whether each label has the largest logit, and the cross-entropy, [P, n]."""
        name = self.net.model.output_name
        logits = self.touched[name]
        if logits.channels is None:
            return _scores(logits.values, labels)
        return self._partial_scores(name, logits.values, logits.channels, labels)

    def _partial_scores(
        self, name: str, values: tf.Tensor, channels: np.ndarray, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Score where only the logits of the classes `channels` differ from the base's."""
        rest = np.setdiff1d(np.arange(self._width(name)), channels)
        key, recipe = ("rest", tuple(rest)), lambda whole: _summary(whole, rest)
        rest_sum, rest_max, rest_class = self.base.get(name, key, recipe)
        classes = tf.constant(channels, tf.int32)
        top = tf.reduce_max(values, axis=-1)
        top_class = tf.gather(classes, tf.argmax(values, axis=-1))
        lowest = tf.minimum(top_class, rest_class)  # of two equal logits the lower class wins
        winner = tf.where(top > rest_max, top_class, tf.where(top == rest_max, lowest, rest_class))
        places = np.full(self._width(name), len(rest) + len(channels))
        places[channels] = np.arange(len(channels))
        place = tf.gather(tf.constant(places, tf.int32), labels)  # of the label among the touched
        touched = tf.one_hot(place, len(channels), dtype=tf.bool, on_value=True, off_value=False)
        fixed = tf.gather(self.base.channels(name, None), labels, axis=1, batch_dims=1)
        own = tf.reduce_sum(tf.where(touched, values, 0.0), axis=-1)
        own = tf.where(tf.reduce_any(touched, axis=-1), own, fixed)
        shape = tf.shape(values[..., :1])
        every = tf.concat([values, tf.broadcast_to(rest_sum[:, None], shape)], axis=-1)
        return winner == labels, tf.reduce_logsumexp(every, axis=-1) - own

    # -- steps ---------------------------------------------------------------------------------

    def _linear(self, step: Step) -> _Touched:
        (name,), layer = step.inputs, step.layers[0]
        edit = self.edits.get(id(layer))
        if edit is None:
            return _Touched(self._mixed(step), None)
        if name not in self.touched:
            values = self.base.channels(step.output, edit.units) + self._change_of_base(edit, name)
            return self._touch(step.output, values, edit.units)
        if isinstance(layer, keras.layers.Dense):
            return _Touched(self._mixed(step) + self._change(edit, name), None)
        x = self._widened(name, None).values
        return _Touched(edit.convolved(x, self.population), None)

    def _change_of_base(self, edit: Edit, name: str) -> tf.Tensor:
        """Return the change of the edited units where all candidates have one input."""
        columns = self.base.get(name, ("columns", id(edit)), edit.columns)
        *places, rows = columns.shape
        # One product for each candidate is several times faster than one wide product for all,
        # whose result would have to be transposed.
        product = tf.matmul(tf.reshape(columns, (1, -1, rows)), edit.change(self.population))
        return tf.reshape(product, (self.count, *places, product.shape[-1]))

    def _change(self, edit: Edit, name: str) -> tf.Tensor:
        """Return the change of all units of a dense layer whose input differs by candidate."""
        columns = self._picked(name, edit.channels)
        change = edit.change(self.population)
        if len(edit.channels) <= FEW:
            return tf.matmul(columns, self._spread(change, edit.units, edit.layer.units))
        return self._spread(tf.matmul(columns, change), edit.units, edit.layer.units)

    def _picked(self, name: str, channels: np.ndarray) -> tf.Tensor:
        """Return some channels (ascending) of a touched tensor; untouched ones from the base."""
        x = self.touched[name]
        if x.channels is None:
            return tf.gather(x.values, channels, axis=-1)
        touched = np.isin(channels, x.channels)
        own = tf.gather(x.values, np.searchsorted(x.channels, channels[touched]), axis=-1)
        if touched.all():
            return own
        rest = self.base.channels(name, channels[~touched])
        rest = tf.broadcast_to(rest, (self.count, *rest.shape))
        order = np.argsort(np.concatenate([channels[touched], channels[~touched]]))
        return tf.gather(tf.concat([own, rest], axis=-1), order, axis=-1)

    def _spread(self, change: tf.Tensor, units: np.ndarray, width: int) -> tf.Tensor:
        """Give `change`, which has some units, all units; the others do not change."""
        place = np.full(width, len(units))
        place[units] = np.arange(len(units))
        padded = tf.pad(change, [[0, 0]] * (len(change.shape) - 1) + [[0, 1]])
        return tf.gather(padded, place, axis=-1)

    def _mixed(self, step: Step) -> tf.Tensor:
        """Apply the unpatched linear layer, to the change alone where few channels are touched."""
        (name,), layer = step.inputs, step.layers[0]
        x = self.touched[name]
        few = x.channels is not None and 2 * len(x.channels) <= self._width(name)
        if not few or isinstance(layer, keras.layers.DepthwiseConv2D) or _groups(layer) > 1:
            return self._unfolded(step(self._folded(self._widened(name, None).values)))
        change = self._folded(x.values - self.base.channels(name, x.channels))
        kernel = tf.gather(layer.kernel, x.channels, axis=-2)
        if isinstance(layer, keras.layers.Dense):
            product = tf.matmul(change, kernel)
        else:
            product = tf.nn.convolution(
                change, kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate
            )
        return self.base.channels(step.output, None) + self._unfolded(product)

    def _channelwise(self, step: Step) -> _Touched:
        x = self.touched[step.inputs[0]]
        values = self._folded(x.values)
        for layer in step.layers:
            values = _on_channels(layer, values, x.channels)
        return _Touched(self._unfolded(values), x.channels)

    def _elementwise(self, step: Step) -> _Touched:
        widths = {self._width(name) for name in step.inputs}
        touched = [self.touched[name] for name in step.inputs if name in self.touched]
        channels = None
        if len(widths) == 1 and all(x.channels is not None for x in touched):
            channels = np.unique(np.concatenate([x.channels for x in touched]))
        operands = [
            self._widened(name, channels).values
            if name in self.touched
            else self.base.channels(name, channels)
            for name in step.inputs
        ]
        values = ELEMENTWISE[type(step.layers[0])](*operands)
        return (
            _Touched(values, None)
            if channels is None
            else self._touch(step.output, values, channels)
        )

    def _concat(self, step: Step) -> _Touched:
        values, channels, offset = [], [], 0
        for name in step.inputs:
            width = self._width(name)
            if name in self.touched:
                x = self.touched[name]
                own = np.arange(width) if x.channels is None else x.channels
                values.append(x.values)
                channels.append(own + offset)
            offset += width
        return self._touch(step.output, tf.concat(values, axis=-1), np.concatenate(channels))

    def _flatten(self, step: Step) -> _Touched:
        x, (_, *shape) = self.touched[step.inputs[0]], self.net.values[step.inputs[0]].shape
        values, channels = x.values, x.channels
        if len(shape) < 3:
            return x
        height, width, depth = shape
        area = np.arange(height * width)
        if step.channels_first:
            values = tf.transpose(values, (0, 1, 4, 2, 3))
            features = None if channels is None else channels[:, None] * len(area) + area
        else:
            features = None if channels is None else area[:, None] * depth + channels
        count = int(np.prod(values.shape[2:]))
        flat = tf.reshape(values, (*values.shape[:2], count))
        return _Touched(flat, None if features is None else features.ravel())

    def _other(self, step: Step) -> _Touched:
        x = self._widened(step.inputs[0], None)
        return _Touched(self._unfolded(step(self._folded(x.values))), None)

    # -- shapes --------------------------------------------------------------------------------

    def _touch(self, name: str, values: tf.Tensor, channels: np.ndarray) -> _Touched:
        return _Touched(values, None if len(channels) == self._width(name) else channels)

    def _width(self, name: str) -> int:
        return self.net.values[name].shape[-1]

    def _folded(self, values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(values, (values.shape[0] * values.shape[1], *values.shape[2:]))

    def _unfolded(self, values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(values, (self.count, -1, *values.shape[1:]))

    def _widened(self, name: str, channels: np.ndarray | None) -> _Touched:
        """Return a touched tensor with further channels, taken from the base; None for all."""
        x = self.touched[name]
        wanted = np.arange(self._width(name)) if channels is None else channels
        if x.channels is None or len(x.channels) == len(wanted):
            return _Touched(x.values, channels)
        missing = np.setdiff1d(wanted, x.channels)
        rest = self.base.channels(name, missing)
        rest = tf.broadcast_to(rest, (self.count, *rest.shape))
        order = np.argsort(np.concatenate([x.channels, missing]))
        values = tf.gather(tf.concat([x.values, rest], axis=-1), order, axis=-1)
        self._measure(values)
        return _Touched(values, channels)


def _groups(layer: keras.layers.Layer) -> int:
    return getattr(layer, "groups", 1)


def _on_channels(
    layer: keras.layers.Layer, values: tf.Tensor, channels: np.ndarray | None
) -> tf.Tensor:
    """Apply a channelwise layer to some channels of its input."""
    if isinstance(layer, keras.layers.BatchNormalization):
        if channels is None:
            return layer(values, training=False)
        parameters = (layer.moving_mean, layer.moving_variance, layer.beta, layer.gamma)
        own = [tf.gather(parameter, channels) for parameter in parameters]
        return tf.nn.batch_normalization(values, *own, layer.epsilon)
    if isinstance(layer, Arithmetic) and channels is not None and layer.constant.shape[-1] > 1:
        return layer.apply(values, tf.gather(layer.constant, channels, axis=-1))
    if isinstance(layer, keras.layers.Dropout):
        return values
    return layer(values)


def _scores(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    own = tf.one_hot(labels, logits.shape[-1], dtype=tf.bool, on_value=True, off_value=False)
    label = tf.reduce_sum(tf.where(own, logits, 0.0), axis=-1)
    right = tf.argmax(logits, axis=-1, output_type=tf.int32) == labels
    return right, tf.reduce_logsumexp(logits, axis=-1) - label


def _summary(logits: tf.Tensor, classes: np.ndarray) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return log-sum-exp, maximum and its class over some classes, [n] each."""
    values = tf.gather(logits, classes, axis=-1)
    best = tf.gather(tf.constant(classes, tf.int32), tf.argmax(values, axis=-1))
    return tf.reduce_logsumexp(values, axis=-1), tf.reduce_max(values, axis=-1), best
