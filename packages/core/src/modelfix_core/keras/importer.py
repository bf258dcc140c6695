"""ONNX to trainable Keras layers.

The operators that can be converted:

========================= =========================================================================
Conv                      2-D; strides, pads, dilations, groups, auto_pad
Gemm, MatMul              with a constant matrix (alpha and beta 1)
BatchNormalization        over the channels, statistics kept
Relu, LeakyRelu, Elu, Sigmoid, Tanh, Clip, Softmax, Identity, Dropout
MaxPool, AveragePool      2-D; GlobalAveragePool; ReduceMean over height and width
Flatten, Reshape          to [N, features]
Add, Sub, Mul, Div        of two tensors, or of a tensor and a constant (kept, not trained)
Concat                    along the channels or features
Pad                       with a constant value
Transpose                 that leaves the batch axis first
========================= =========================================================================

Images enter as [N, C, H, W] and are transposed once; everything up to the flattening is held
[N, H, W, C], because TensorFlow computes that on every device. Before the flattening the tensor is
transposed back once, so that the dense weights stay those of the file, transposed and bit-equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from modelfix_core.errors import ModelfixError
from modelfix_core.keras.layers import Arithmetic, Clip, Divide, Padding
from modelfix_core.keras.layout import NCHW, NHWC, Layout, same_padding
from modelfix_core.model import Model

# Inputs that carry data; the rest of these operators' inputs are settings (shapes, limits, axes).
ONE_DATA_INPUT = {"Reshape", "Clip", "Pad", "Dropout", "ReduceMean"}


@dataclass(frozen=True)
class Step:
    """Some Keras layers that together do one thing to a tensor.

    Attributes
    ----------
    kind : str
        What the step does to channels: ``linear`` mixes them by weights, ``channelwise`` treats
        each apart, ``elementwise`` joins two tensors, ``concat`` stacks channels, ``flatten``
        makes features of them; ``other`` promises nothing.
    layers : tuple of keras.layers.Layer
        Applied in order.
    inputs : tuple of str
    output : str
    channels_first : bool
        Of a ``flatten``: whether features are ordered [C, H, W].
    """

    kind: str
    layers: tuple[keras.layers.Layer, ...]
    inputs: tuple[str, ...]
    output: str
    channels_first: bool = False

    def __call__(self, *values: Any) -> Any:
        """Apply the step as in inference."""
        result: Any = values[0] if len(values) == 1 else list(values)
        for layer in self.layers:
            result = layer(result, training=False) if _has_modes(layer) else layer(result)
        return result


def _has_modes(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization | keras.layers.Dropout)


@dataclass(frozen=True)
class Imported:
    """What the importer makes of a model.

    Attributes
    ----------
    keras : keras.Model
        From images [N, C, H, W] to logits [N, K].
    tensors : dict of str to keras.Variable
        By initializer name.
    layouts : dict of str to Layout
        Of each of `tensors`.
    values : dict of str to KerasTensor
        By tensor name.
    channels_last : dict of str to bool
        Whether a tensor is held transposed, [N, H, W, C].
    steps : tuple of Step
        In an order in which they can be computed.
    """

    keras: keras.Model
    tensors: dict[str, keras.Variable]
    layouts: dict[str, Layout]
    values: dict[str, Any]
    channels_last: dict[str, bool]
    steps: tuple[Step, ...]


def import_model(model: Model) -> Imported:
    """Build the Keras layers of `model`, with its weights.

    Raises
    ------
    ModelfixError
        If an operator, or the way it is used, cannot be converted; names the node.
    """
    return _Importer(model).run()


class _Node:
    """An ONNX node with its attributes at hand."""

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.op, self.name = proto.op_type, proto.name
        self.inputs, self.output = list(proto.input), proto.output[0]
        self.attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    def __getitem__(self, key: str) -> Any:
        return self.attributes[key]

    def get(self, key: str, default: Any) -> Any:
        return self.attributes.get(key, default)

    @property
    def data(self) -> list[str]:
        names = self.inputs[:1] if self.op in ONE_DATA_INPUT else self.inputs
        return [name for name in names if name]


_OPERATORS: dict[str, Callable[["_Importer", _Node], None]] = {}


def _operator(*names: str):
    def register(function):
        _OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


class _Importer:
    def __init__(self, model: Model) -> None:
        self.model = model
        graph = model.proto().graph
        self.nodes = [_Node(node) for node in graph.node]
        self.constants = _constants(graph)
        self.values: dict[str, Any] = {}
        self.channels_last: dict[str, bool] = {}
        self.steps: list[Step] = []
        self.tensors: dict[str, keras.Variable] = {}
        self.layouts: dict[str, Layout] = {}
        self.shared: dict[tuple, keras.layers.Layer] = {}
        self.names: set[str] = set()

    def run(self) -> Imported:
        name = self.model.input_name
        images = keras.Input(self.model.input_shape, name=self.unique(name))
        turn = keras.layers.Permute((2, 3, 1), name=self.unique(f"{name}.channels_last"))
        self.values[name], self.channels_last[name] = turn(images), True
        for node in self.needed():
            convert = _OPERATORS.get(node.op)
            if convert is None:
                known = ", ".join(sorted(_OPERATORS))
                raise ModelfixError(
                    f"{self.model.name}: operator {node.op} (node {node.name!r}) cannot be "
                    f"converted to Keras; the operators that can are {known}."
                )
            try:
                convert(self, node)
            except ValueError as error:  # how Keras refuses an argument
                raise self.refuse(node, str(error).strip().splitlines()[0]) from error
        logits = self.values[self.model.output_name]
        return Imported(
            keras.Model(images, logits, name="model"),
            self.tensors,
            self.layouts,
            self.values,
            self.channels_last,
            tuple(self.steps),
        )

    def needed(self) -> list[_Node]:
        """Return the nodes through which data reach the logits; shape arithmetic drops out."""
        wanted, kept = {self.model.output_name}, []
        for node in reversed(self.nodes):
            if node.output in wanted and node.output not in self.constants:
                kept.append(node)
                wanted.update(node.data)
        return kept[::-1]

    # -- what the operators use ----------------------------------------------------------------

    def refuse(self, node: _Node, why: str) -> ModelfixError:
        return ModelfixError(
            f"{self.model.name}: operator {node.op} (node {node.name!r}) cannot be converted to "
            f"Keras: {why}."
        )

    def constant(self, node: _Node, position: int) -> np.ndarray:
        """Return the constant at an input position."""
        value = self.optional(node, position)
        if value is None:
            raise self.refuse(node, f"its input {position} is left out; expected a constant")
        return value

    def optional(self, node: _Node, position: int) -> np.ndarray | None:
        """Return the constant at an input position; None where the input is left out."""
        if position >= len(node.inputs) or not node.inputs[position]:
            return None
        name = node.inputs[position]
        if name not in self.constants:
            raise self.refuse(node, f"its input {name!r} is computed; expected a constant")
        return self.constants[name]

    def unique(self, name: str) -> str:
        """Return a name for a layer; Keras allows no slash and no name twice."""
        base = name.strip("/").replace("/", ".").replace(":", ".") or "layer"
        result, number = base, 1
        while result in self.names:
            result, number = f"{base}_{number}", number + 1
        self.names.add(result)
        return result

    def layer_name(self, node: _Node) -> str:
        return node.inputs[1].removesuffix(".weight")

    def add(
        self,
        kind: str,
        layers: Sequence[keras.layers.Layer],
        inputs: Sequence[str],
        output: str,
        *,
        channels_last: bool,
        channels_first: bool = False,
    ) -> str:
        """Record a step and compute its output symbolically."""
        step = Step(kind, tuple(layers), tuple(inputs), output, channels_first)
        values = [self.values[name] for name in inputs]
        result: Any = values[0] if len(values) == 1 else values
        for layer in layers:
            result = layer(result)
        self.values[output], self.channels_last[output] = result, channels_last
        self.steps.append(step)
        return output

    def layer(self, kind: str, layer: keras.layers.Layer, node: _Node, inputs: Sequence[str]):
        """Record a step of one layer that leaves the order of the axes as it is."""
        last = self.channels_last[inputs[0]]
        self.add(kind, [layer], inputs, node.output, channels_last=last)

    def is_image(self, name: str) -> bool:
        return len(self.values[name].shape) == 4

    def image(self, name: str) -> str:
        """Return the tensor held [N, H, W, C], transposed if it is not yet."""
        if not self.is_image(name) or self.channels_last[name]:
            return name
        return self.transposed(name, (2, 3, 1), f"{name}/channels_last", channels_last=True)

    def plain(self, name: str) -> str:
        """Return the tensor with the axes of the file, transposed if it is not yet."""
        if not self.channels_last[name]:
            return name
        return self.transposed(name, (3, 1, 2), f"{name}/channels_first", channels_last=False)

    def transposed(self, name: str, axes, output: str, *, channels_last: bool) -> str:
        if output not in self.values:
            layer = keras.layers.Permute(axes, name=self.unique(output))
            self.add("other", [layer], [name], output, channels_last=channels_last)
        return output

    def bind(self, name: str, variable: keras.Variable, layout: Layout) -> None:
        """Give `variable` the value of the initializer `name`."""
        if name not in self.model.weights:
            raise ModelfixError(
                f"{self.model.name}: the weight {name!r} is computed in the graph; export the "
                "model with its weights as initializers."
            )
        variable.assign(layout.to_keras(self.constants[name]))
        if self.tensors.setdefault(name, variable) is not variable:
            raise ModelfixError(
                f"{self.model.name}: initializer {name!r} is used in two different ways; export "
                "the model with a weight of its own for each layer."
            )
        self.layouts[name] = layout

    def share(self, node: _Node, make: Callable[[], keras.layers.Layer]) -> keras.layers.Layer:
        """Return one layer for all nodes with the same operator, weights and attributes."""
        attributes = tuple(sorted((key, str(value)) for key, value in node.attributes.items()))
        key = (node.op, *node.inputs[1:], attributes)
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return the initializers and what the graph computes from constants alone."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if all(name in constants for name in node.input if name):
            inputs = {name: constants[name] for name in node.input if name}
            results = ReferenceEvaluator(node).run(None, inputs)
            constants.update(zip(node.output, results, strict=False))
    return constants


# -- linear layers -----------------------------------------------------------------------------

# Kernels start as zeros: a random start would be drawn from Python's global generator, in vain.


@_operator("Conv")
def _conv(to: _Importer, node: _Node) -> None:
    kernel, bias = to.constant(node, 1), to.optional(node, 2)
    if kernel.ndim != 4:
        raise to.refuse(node, f"its kernel has {kernel.ndim} axes; expected a 2-D convolution")
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    groups, (out, _, *size) = node.get("group", 1), kernel.shape
    source, padding = _padded(to, node, size, strides, dilations, value=0.0)
    channels = to.values[source].shape[-1]
    depthwise = groups == channels > 1 and strides[0] == strides[1]
    common = {
        "strides": tuple(strides),
        "padding": padding,
        "dilation_rate": tuple(dilations),
        "use_bias": bias is not None,
    }

    def make() -> keras.layers.Layer:
        name = to.unique(to.layer_name(node))
        if depthwise:
            return keras.layers.DepthwiseConv2D(
                size,
                depth_multiplier=out // channels,
                depthwise_initializer="zeros",
                name=name,
                **common,
            )
        return keras.layers.Conv2D(
            out, size, groups=groups, kernel_initializer="zeros", name=name, **common
        )

    layer = to.share(node, make)
    to.add("linear", [layer], [source], node.output, channels_last=True)
    if depthwise:
        layout = Layout(kernel.shape, (channels, out // channels, *size), (2, 3, 0, 1))
    else:
        layout = Layout(kernel.shape, kernel.shape, (2, 3, 1, 0))
    to.bind(node.inputs[1], layer.kernel, layout)
    if bias is not None:
        to.bind(node.inputs[2], layer.bias, Layout.same(bias.shape))


@_operator("Gemm", "MatMul")
def _dense(to: _Importer, node: _Node) -> None:
    weight, bias = to.constant(node, 1), to.optional(node, 2)
    scaled = node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0
    if scaled or node.get("transA", 0) or weight.ndim != 2:
        raise to.refuse(node, "expected x @ W + b with a constant matrix W")
    if to.is_image(node.inputs[0]):
        raise to.refuse(node, "its input has 4 axes; expected [N, features]")
    transposed = bool(node.get("transB", 0))
    units = weight.shape[0 if transposed else 1]

    def make() -> keras.layers.Layer:
        name = to.unique(to.layer_name(node))
        return keras.layers.Dense(
            units, use_bias=bias is not None, kernel_initializer="zeros", name=name
        )

    layer = to.share(node, make)
    to.layer("linear", layer, node, node.inputs[:1])
    axes = (1, 0) if transposed else (0, 1)
    to.bind(node.inputs[1], layer.kernel, Layout(weight.shape, weight.shape, axes))
    if bias is not None:
        to.bind(node.inputs[2], layer.bias, Layout(bias.shape, (units,), (0,)))


@_operator("BatchNormalization")
def _batchnorm(to: _Importer, node: _Node) -> None:
    if node.get("training_mode", 0):
        raise to.refuse(node, "it is in training mode; export the model in evaluation mode")

    def make() -> keras.layers.Layer:
        return keras.layers.BatchNormalization(
            momentum=node.get("momentum", 0.9),
            epsilon=node.get("epsilon", 1e-5),
            name=to.unique(to.layer_name(node)),
        )

    layer, source = to.share(node, make), to.image(node.inputs[0])
    to.layer("channelwise", layer, node, [source])
    variables = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    for position, variable in enumerate(variables, start=1):
        shape = to.constant(node, position).shape
        to.bind(node.inputs[position], variable, Layout.same(shape))


# -- pooling and padding -----------------------------------------------------------------------


def _padded(
    to: _Importer,
    node: _Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    value: float,
) -> tuple[str, str]:
    """Return the tensor to slide over and Keras' ``padding`` argument for it."""
    source = to.image(node.inputs[0])
    if not to.is_image(source):
        raise to.refuse(node, "its input is not an image; expected [N, C, H, W]")
    sizes = to.values[source].shape[1:3]
    axes = list(zip(sizes, kernel, strides, dilations, strict=True))
    same = [same_padding(*axis) for axis in axes]
    mode = node.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        flat = node.get("pads", [0, 0, 0, 0])
        pads = [(flat[0], flat[2]), (flat[1], flat[3])]
        if node.get("ceil_mode", 0):
            pads = [_ceiled(axis, pair) for axis, pair in zip(axes, pads, strict=True)]
    elif mode == "VALID":
        pads = [(0, 0), (0, 0)]
    else:
        pads = same if mode == "SAME_UPPER" else [pair[::-1] for pair in same]
    if pads == [(0, 0), (0, 0)]:
        return source, "valid"
    if pads == same:
        return source, "same"
    return _pad(to, source, pads, value, f"{node.output}/padded"), "valid"


def _ceiled(axis: Sequence[int], pads: tuple[int, int]) -> tuple[int, int]:
    """Return the pads with which rounding down gives the size that ceil_mode gives."""
    size, kernel, stride, dilation = axis
    reach = (kernel - 1) * dilation + 1
    extent = size + sum(pads)
    out = -(-(extent - reach) // stride) + 1
    if (out - 1) * stride >= size + pads[0]:
        out -= 1  # a window must start inside the image or its leading padding
    return pads[0], pads[1] + max((out - 1) * stride + reach - extent, 0)


def _pad(to: _Importer, source: str, pads, value: float, output: str) -> str:
    name = to.unique(output)
    if value == 0.0:
        layer: keras.layers.Layer = keras.layers.ZeroPadding2D(tuple(pads), name=name)
    else:
        layer = Padding((*pads, (0, 0)), value, name=name)
    return to.add("channelwise", [layer], [source], output, channels_last=True)


@_operator("MaxPool")
def _max_pool(to: _Importer, node: _Node) -> None:
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    if any(d != 1 for d in dilations):
        raise to.refuse(node, "it is dilated")
    kernel = node["kernel_shape"]
    lowest = float(np.finfo(np.float32).min)
    source, padding = _padded(to, node, kernel, strides, dilations, value=lowest)
    layer = keras.layers.MaxPooling2D(kernel, strides, padding, name=to.unique(node.name))
    to.layer("channelwise", layer, node, [source])


@_operator("AveragePool")
def _average_pool(to: _Importer, node: _Node) -> None:
    kernel, strides = node["kernel_shape"], node.get("strides", [1, 1])
    source, padding = _padded(to, node, kernel, strides, [1, 1], value=0.0)
    # Keras leaves padded zeros out of the mean under "same" and has no other padding.
    fits = {"valid": source == to.image(node.inputs[0]), "same": True}[padding]
    counts = bool(node.get("count_include_pad", 0))
    if padding == "same" and counts:
        sizes = to.values[source].shape[1:3]
        pads = [same_padding(*a, 1) for a in zip(sizes, kernel, strides, strict=True)]
        source = _pad(to, source, pads, 0.0, f"{node.output}/padded")
        padding = "valid"
    if not (fits or counts) or (counts and node.get("ceil_mode", 0)):
        raise to.refuse(node, "this padding of an average pooling does not exist in Keras")
    layer = keras.layers.AveragePooling2D(kernel, strides, padding, name=to.unique(node.name))
    to.layer("channelwise", layer, node, [source])


@_operator("GlobalAveragePool")
def _global_average_pool(to: _Importer, node: _Node) -> None:
    _spatial_mean(to, node, keepdims=True)


@_operator("ReduceMean")
def _reduce_mean(to: _Importer, node: _Node) -> None:
    axes = node.get("axes", None)
    axes = to.optional(node, 1) if axes is None else axes
    rank = len(to.values[node.inputs[0]].shape)
    if axes is None or rank != 4 or {int(a) % 4 for a in axes} != {2, 3}:
        raise to.refuse(node, "expected the mean over height and width")
    _spatial_mean(to, node, keepdims=bool(node.get("keepdims", 1)))


def _spatial_mean(to: _Importer, node: _Node, keepdims: bool) -> None:
    layer = keras.layers.GlobalAveragePooling2D(keepdims=keepdims, name=to.unique(node.name))
    source = to.image(node.inputs[0])
    to.add("channelwise", [layer], [source], node.output, channels_last=keepdims)


@_operator("Pad")
def _pad_operator(to: _Importer, node: _Node) -> None:
    if node.get("mode", b"constant") != b"constant":
        raise to.refuse(node, "expected the mode constant")
    flat, value, axes = to.constant(node, 1), to.optional(node, 2), to.optional(node, 3)
    source = to.image(node.inputs[0])
    rank = len(to.values[source].shape)
    pairs = np.zeros((rank, 2), dtype=int)
    pairs[slice(None) if axes is None else axes] = np.reshape(flat, (2, -1)).T
    if pairs[0].any() or pairs.min() < 0:
        raise to.refuse(node, "expected pads that are not negative and leave the batch axis alone")
    fill = 0.0 if value is None else float(value)
    if rank == 4 and not pairs[1].any():
        _pad(to, source, [tuple(map(int, pair)) for pair in pairs[2:]], fill, node.output)
        return
    order = NHWC if rank == 4 else range(rank)
    pads = [tuple(map(int, pairs[axis])) for axis in order][1:]
    to.layer("other", Padding(pads, fill, name=to.unique(node.name)), node, [source])


# -- element by element ------------------------------------------------------------------------


@_operator("Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Identity", "Dropout", "Clip")
def _channelwise(to: _Importer, node: _Node) -> None:
    name = to.unique(node.name)
    make = {
        "Relu": lambda: keras.layers.ReLU(name=name),
        "LeakyRelu": lambda: keras.layers.LeakyReLU(node.get("alpha", 0.01), name=name),
        "Elu": lambda: keras.layers.ELU(node.get("alpha", 1.0), name=name),
        "Sigmoid": lambda: keras.layers.Activation("sigmoid", name=name),
        "Tanh": lambda: keras.layers.Activation("tanh", name=name),
        "Identity": lambda: keras.layers.Identity(name=name),
        "Dropout": lambda: _dropout(to, node, name),
        "Clip": lambda: _clip(to, node, name),
    }
    to.layer("channelwise", make[node.op](), node, node.inputs[:1])


def _dropout(to: _Importer, node: _Node, name: str) -> keras.layers.Layer:
    ratio = to.optional(node, 1)
    # Seeded by its place in the graph: two runs of one training draw the same masks.
    return keras.layers.Dropout(
        0.5 if ratio is None else float(ratio), seed=len(to.steps), name=name
    )


def _clip(to: _Importer, node: _Node, name: str) -> keras.layers.Layer:
    lower, upper = to.optional(node, 1), to.optional(node, 2)
    low = -np.inf if lower is None else float(lower)
    high = np.inf if upper is None else float(upper)
    if low == 0.0 and np.isfinite(high):
        return keras.layers.ReLU(max_value=high, name=name)
    return Clip(low, high, name=name)


@_operator("Softmax")
def _softmax(to: _Importer, node: _Node) -> None:
    source = to.image(node.inputs[0])
    rank = len(to.values[source].shape)
    if node.get("axis", -1) % rank != 1:
        raise to.refuse(node, "expected a softmax over the channels or features")
    to.layer("other", keras.layers.Softmax(name=to.unique(node.name)), node, [source])


@_operator("Add", "Sub", "Mul", "Div")
def _arithmetic(to: _Importer, node: _Node) -> None:
    fixed = [name in to.constants for name in node.inputs]
    if any(fixed):
        _with_constant(to, node, position=fixed.index(True))
        return
    inputs = [to.image(name) for name in node.inputs]
    if len({len(to.values[name].shape) for name in inputs}) > 1:
        raise to.refuse(node, "its two inputs differ in their number of axes")
    layers = {
        "Add": keras.layers.Add,
        "Sub": keras.layers.Subtract,
        "Mul": keras.layers.Multiply,
        "Div": Divide,
    }
    to.layer("elementwise", layers[node.op](name=to.unique(node.name)), node, inputs)


def _with_constant(to: _Importer, node: _Node, position: int) -> None:
    constant, source = to.constant(node, position), to.image(node.inputs[1 - position])
    rank, last = len(to.values[source].shape), to.channels_last[source]
    if constant.ndim > rank:
        raise to.refuse(node, "its constant has more axes than the tensor")
    full = (1,) * (rank - constant.ndim) + constant.shape
    layout = Layout(constant.shape, full, NHWC if rank == 4 and last else tuple(range(rank)))
    shape = tuple(full[axis] for axis in layout.axes)
    if shape[0] != 1:
        raise to.refuse(node, "its constant differs from image to image")
    layer = Arithmetic(node.op, shape, reverse=position == 0, name=to.unique(node.name))
    to.layer("channelwise", layer, node, [source])
    name = node.inputs[position]
    if name in to.model.weights and name not in to.tensors:
        to.bind(name, layer.constant, layout)
    else:  # a literal in the graph, or one number used in several places
        layer.constant.assign(layout.to_keras(constant))


# -- shape -------------------------------------------------------------------------------------


@_operator("Concat")
def _concat(to: _Importer, node: _Node) -> None:
    inputs = [to.image(name) for name in node.inputs]
    rank = len(to.values[inputs[0]].shape)
    if node["axis"] % rank != 1:
        raise to.refuse(node, "expected a concatenation of channels or features")
    if len(inputs) == 1:
        to.add("channelwise", [], inputs, node.output, channels_last=to.channels_last[inputs[0]])
        return
    layer = keras.layers.Concatenate(axis=-1, name=to.unique(node.name))
    to.layer("concat", layer, node, inputs)


@_operator("Flatten", "Reshape")
def _flatten(to: _Importer, node: _Node) -> None:
    source = node.inputs[0]
    if node.op == "Reshape":
        _check_reshape(to, node)
    elif node.get("axis", 1) != 1:
        raise to.refuse(node, "expected axis 1")
    layers: list[keras.layers.Layer] = [keras.layers.Flatten(name=to.unique(node.name))]
    turned = to.is_image(source) and to.channels_last[source]
    if turned:
        name = to.unique(f"{node.name}.channels_first")
        layers.insert(0, keras.layers.Permute((3, 1, 2), name=name))
    # A tensor that is not turned either has no channels or is [N, H, W, C] in the file as well.
    to.add("flatten", layers, [source], node.output, channels_last=False, channels_first=turned)


def _check_reshape(to: _Importer, node: _Node) -> None:
    """Raise an error unless the reshape gives [N, features]."""
    target = to.constants.get(node.inputs[1])
    width = int(np.prod(to.values[node.inputs[0]].shape[1:]))
    if target is None:  # computed from the input's shape: the graph's shape inference knows
        inferred = onnx.shape_inference.infer_shapes(to.model.proto(), data_prop=True).graph
        value = next((v for v in inferred.value_info if v.name == node.output), None)
        flat = value is not None and len(value.type.tensor_type.shape.dim) == 2
    else:
        flat = len(target) == 2 and target[1] in (-1, width)
    if not flat:
        raise to.refuse(node, f"expected a reshape to [N, {width}]")


@_operator("Transpose")
def _transpose(to: _Importer, node: _Node) -> None:
    source, axes = node.inputs[0], tuple(node["perm"])
    if axes[0] != 0:
        raise to.refuse(node, "it moves the batch axis")
    last = to.channels_last[source]
    if (last and axes == NHWC) or (not last and axes == NCHW):
        # Only the reading of the axes changes: what is held is already in that order.
        kind = "channelwise" if last else "other"
        to.add(kind, [], [source], node.output, channels_last=not last)
        return
    layer = keras.layers.Permute(axes[1:], name=to.unique(node.name))
    to.add("other", [layer], [to.plain(source)], node.output, channels_last=False)
