"""Keras models (Sequential or Functional) to models of the profile.

The layers that can be exported: Conv2D, DepthwiseConv2D, Dense, BatchNormalization, Dropout, ReLU,
LeakyReLU, ELU, Activation, Softmax, MaxPooling2D, AveragePooling2D, GlobalAveragePooling2D,
ZeroPadding2D, Flatten, Reshape, Permute, Add, Subtract, Multiply, Concatenate, Rescaling, Identity,
nested models, and the layers of `modelfix_core.keras.layers`; activations relu, relu6, leaky_relu,
elu, sigmoid, tanh, softmax. BatchNorm and Dropout are kept. A layer ``conv1`` gives the
initializers ``conv1.weight`` and ``conv1.bias``, a BatchNorm also ``.running_mean`` and
``.running_var``; their bits are those of Keras.
"""

import json
import logging
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from modelfix_core import profile
from modelfix_core.errors import ModelfixError
from modelfix_core.keras.checks import Checkpoint, check_conversion
from modelfix_core.keras.layers import Arithmetic, Clip, Divide, Padding
from modelfix_core.keras.layout import NCHW, NHWC, Layout, same_padding
from modelfix_core.model import Model

logger = logging.getLogger(__name__)

OPSET = 17
IR_VERSION = 8  # of opset 17


class UnknownLayer(ModelfixError):
    """A Keras layer that our exporter cannot write."""


def export(
    keras_model: keras.Model, classes: Sequence[str] | None = None, **metadata: str
) -> Model:
    """Write a Keras model as a model of the profile and compare it with onnxruntime.

    Parameters
    ----------
    keras_model : keras.Model
        Takes images [N, H, W, C], or [N, C, H, W] if it begins with ``Permute((2, 3, 1))``; ends
        in logits or their softmax, which is cut.
    classes : sequence of str, optional
        Class names.
    **metadata : str
        Further metadata properties.

    Returns
    -------
    Model

    Raises
    ------
    ModelfixError
        If a layer or the way it is used cannot be written (names the layer), or Keras and
        onnxruntime disagree (names the first differing layer).
    """
    return _Exporter(keras_model).run(classes, metadata)


def import_file(path: str | Path) -> Model:
    """Read a ``.keras`` or ``.h5`` file as a model of the profile.

    Our own exporter is used where it knows every layer; tf2onnx otherwise, which folds BatchNorm
    into the layers before it and renames the weights: `Model.notes` and the log say so.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Model

    Raises
    ------
    ModelfixError
        If the file cannot be read, is refused as unsafe (Lambda layers), or cannot be converted.
    """
    return convert(load_file(Path(path)), str(path))


def load_file(path: Path) -> keras.Model:
    """Load a Keras file without its training state, refusing code that it may carry.

    Raises
    ------
    ModelfixError
        If it is missing, unreadable, unsafe or has custom layers.
    """
    if not path.is_file():
        raise ModelfixError(f"{path}: does not exist; give the path of a .keras or .h5 file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arguments that Keras 2 called otherwise
            return keras.saving.load_model(
                path,
                custom_objects={"DepthwiseConv2D": _Depthwise} if path.suffix != ".keras" else None,
                compile=False,
                safe_mode=True,
            )
    except Exception as error:  # Keras raises many kinds
        raise ModelfixError(f"{path}: {_why_unreadable(error)}") from error


class _Depthwise(keras.layers.DepthwiseConv2D):
    """Reads what Keras 2 wrote: an argument ``groups``, always 1, that Keras 3 refuses."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.layers.DepthwiseConv2D:
        config = {key: value for key, value in config.items() if key != "groups"}
        return keras.layers.DepthwiseConv2D.from_config(config)


def _why_unreadable(error: Exception) -> str:
    text = str(error).strip()
    custom = re.search(r"(?:Could not locate class|Unknown layer:) '(\w+)'", text)
    if custom:
        return (
            f"has the custom layer {custom[1]!r}, whose code is not in the file; convert the model "
            "to ONNX where that code is."
        )
    if "Lambda" in text:
        return (
            "has a Lambda layer, which is code and is never loaded; convert the model to ONNX "
            "where it was made."
        )
    return (
        f"Keras cannot read this file ({text.splitlines()[0] if text else type(error).__name__})."
    )


def convert(keras_model: keras.Model, name: str) -> Model:
    """Write a Keras model as ONNX, with our exporter where it knows every layer, else tf2onnx."""
    try:
        model = export(keras_model)
    except UnknownLayer as reason:
        note = (
            f"converted with tf2onnx, which folds BatchNorm and renames weights, because {reason}"
        )
        logger.warning("%s: %s", name, note)
        model = _with_tf2onnx(keras_model, name)
        model.notes.append(note)
    model.name = name
    return model


@dataclass(frozen=True)
class _Call:
    """One use of a Keras layer."""

    layer: Any
    inputs: tuple[Any, ...]
    output: Any


@dataclass(frozen=True)
class _Value:
    """The ONNX tensor of a Keras tensor; `channels_last` where its axes are transposed."""

    name: str
    channels_last: bool


def _calls(keras_model: keras.Model) -> tuple[Any, list[_Call], Any]:
    """Return input, uses of layers in order (nested models unfolded) and output."""
    calls: list[_Call] = []

    def record(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Model):
            return walk(layer, tf.nest.flatten(args[0]))
        output = layer(*args, **kwargs)
        calls.append(_Call(layer, tuple(tf.nest.flatten(args)), output))
        return output

    def walk(model: keras.Model, inputs: list[Any]) -> Any:
        functional = keras.Model(model.inputs, model.outputs)
        given = tf.nest.pack_sequence_as(functional.input, inputs)
        # What `clone_model` does, without a new model: that would cut nested ones from the outer.
        outputs = functional._run_through_graph(
            given, operation_fn=lambda layer: layer, call_fn=record
        )
        flat = tf.nest.flatten(outputs)
        return flat[0] if len(flat) == 1 else flat

    if len(keras_model.inputs) != 1 or len(keras_model.outputs) != 1:
        raise ModelfixError(
            f"Keras model {keras_model.name!r}: has {len(keras_model.inputs)} inputs and "
            f"{len(keras_model.outputs)} outputs; expected one batch of images and its logits."
        )
    output = walk(keras_model, keras_model.inputs)
    return keras_model.inputs[0], calls, output


def _unique(name: str, taken: Collection[str]) -> str:
    result, number = name, 1
    while result in taken:
        result, number = f"{name}_{number}", number + 1
    return result


_LAYERS: dict[type, Callable[["_Exporter", _Call], _Value]] = {}


def _layer(*types: type):
    def register(function):
        _LAYERS.update(dict.fromkeys(types, function))
        return function

    return register


class _Exporter:
    def __init__(self, keras_model: keras.Model) -> None:
        self.title = f"Keras model {keras_model.name!r}"
        if not keras_model.built:
            raise ModelfixError(f"{self.title}: is not built; call it once on images first.")
        self.input, self.calls, self.output = _calls(keras_model)
        if len(self.input.shape) != 4 or None in self.input.shape[1:]:
            raise ModelfixError(
                f"{self.title}: its input is {list(self.input.shape)}; expected images "
                "[N, H, W, C] of one size."
            )
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.values: dict[int, _Value] = {}
        self.names: set[str] = set()  # of nodes
        self.titles: dict[int, str] = {}  # of layers
        self.points: dict[Checkpoint, Any] = {}  # with the Keras tensor that must agree

    def run(self, classes: Sequence[str] | None, metadata: dict[str, str]) -> Model:
        self.values[id(self.input)] = _Value("input", not self.takes_channels_first())
        for call in self.calls:
            convert = _LAYERS.get(type(call.layer))
            if convert is None:
                raise UnknownLayer(
                    f"{self.title}: layer {call.layer.name!r} of type {type(call.layer).__name__} "
                    "cannot be written as ONNX by modelfix."
                )
            value = convert(self, call)
            activation = getattr(call.layer, "activation", None)
            if activation is not None and not isinstance(call.layer, keras.layers.Activation):
                value = self.activate(activation, value, call.layer)
            self.values[id(call.output)] = value
            self.points[Checkpoint(call.layer.name, value.name)] = call.output
        model = Model(self.proto(classes, metadata), self.title)
        self.check(model)
        return model

    def takes_channels_first(self) -> bool:
        users = [c.layer for c in self.calls if any(v is self.input for v in c.inputs)]
        return bool(users) and all(
            isinstance(user, keras.layers.Permute) and tuple(user.dims) == (2, 3, 1)
            for user in users
        )

    def proto(self, classes: Sequence[str] | None, metadata: dict[str, str]) -> onnx.ModelProto:
        start, end = self.values[id(self.input)], self.values[id(self.output)]
        shape = [self.input.shape[axis] for axis in (NCHW if start.channels_last else range(4))]
        graph = helper.make_graph(
            self.nodes,
            "model",
            [helper.make_tensor_value_info(start.name, TensorProto.FLOAT, ["N", *shape[1:]])],
            [
                helper.make_tensor_value_info(
                    end.name, TensorProto.FLOAT, ["N", *self.output.shape[1:]]
                )
            ],
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        proto = helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="modelfix"
        )
        values = {f"modelfix.{key}": str(value) for key, value in metadata.items()}
        if classes is not None:
            values["modelfix.labels"] = json.dumps(list(classes))
        profile.set_metadata(proto, values)
        return proto

    def check(self, model: Model) -> None:
        """Compare with onnxruntime, the logits before a softmax that was cut."""
        logits = self.logits()
        kept = {tensor for node in model.proto().graph.node for tensor in node.output}
        points = {p: tensor for p, tensor in self.points.items() if p.tensor in kept}
        points[Checkpoint("logits", model.output_name)] = logits
        turned = self.values[id(self.input)].channels_last
        last = {self.values[key].name: self.values[key].channels_last for key in self.values}

        def compute(x: np.ndarray, wanted: Sequence[Checkpoint]) -> list[np.ndarray]:
            part = keras.Model(self.input, [points[point] for point in wanted])
            images = x.transpose(NHWC) if turned else x
            found = [value.numpy() for value in tf.nest.flatten(part(images, training=False))]
            return [
                array.transpose(NCHW) if array.ndim == 4 and last.get(point.tensor) else array
                for array, point in zip(found, wanted, strict=True)
            ]

        check_conversion(model, list(points), compute)

    def logits(self) -> Any:
        """Return the Keras tensor of the logits, in front of a last softmax."""
        last = self.calls[-1]
        if getattr(last.layer, "activation", None) is keras.activations.softmax:
            if isinstance(last.layer, keras.layers.Dense):
                product = keras.ops.matmul(last.inputs[0], last.layer.kernel)
                return product + last.layer.bias if last.layer.use_bias else product
            return last.inputs[0]
        return last.inputs[0] if isinstance(last.layer, keras.layers.Softmax) else self.output

    # -- what the layers use -------------------------------------------------------------------

    def refuse(self, layer: Any, why: str) -> UnknownLayer:
        return UnknownLayer(f"{self.title}: layer {layer.name!r} cannot be written as ONNX: {why}.")

    def layer_name(self, layer: Any) -> str:
        """Return the layer's name; layers of nested models may share one, here they cannot."""
        if id(layer) not in self.titles:
            self.titles[id(layer)] = _unique(layer.name, self.titles.values())
        return self.titles[id(layer)]

    def of(self, call: _Call, position: int = 0) -> _Value:
        return self.values[id(call.inputs[position])]

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Append a node; return its output."""
        name = _unique(name, self.names)
        self.names.add(name)
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.output"], name, **attributes))
        return f"{name}.output"

    def apply(self, call: _Call, op: str, *inputs: str, **attributes: Any) -> _Value:
        """Append a node on the first input that keeps the order of the axes."""
        value = self.of(call)
        names = [value.name, *inputs]
        return _Value(
            self.node(op, names, self.layer_name(call.layer), **attributes), value.channels_last
        )

    def weight(self, layer: Any, ending: str, array: Any, layout: Layout | None = None) -> str:
        name = f"{self.layer_name(layer)}.{ending}"
        values = keras.ops.convert_to_numpy(array)
        self.initializers[name] = values if layout is None else layout.to_onnx(values)
        return name

    def literal(self, value: np.ndarray | np.generic, name: str) -> str:
        """Append a constant that is no weight."""
        return self.node("Constant", [], name, value=numpy_helper.from_array(np.asarray(value)))

    def turned(self, value: _Value, axes: tuple[int, ...], channels_last: bool) -> _Value:
        name = self.node("Transpose", [value.name], f"{value.name}.transposed", perm=axes)
        return _Value(name, channels_last)

    def image(self, call: _Call, position: int = 0) -> _Value:
        """Return an input whose ONNX tensor is [N, C, H, W] where Keras has [N, H, W, C]."""
        value = self.of(call, position)
        if value.channels_last or len(call.inputs[position].shape) != 4:
            return value
        return self.turned(value, NCHW, channels_last=True)

    def activate(self, function: Any, value: _Value, layer: Any) -> _Value:
        name, last = f"{self.layer_name(layer)}.activation", value.channels_last
        if function is keras.activations.linear:
            return value
        if function is keras.activations.relu6:
            limits = [self.literal(np.float32(v), f"{name}.limit") for v in (0, 6)]
            return _Value(self.node("Clip", [value.name, *limits], name), last)
        known: dict[Any, tuple[str, dict[str, Any]]] = {
            keras.activations.relu: ("Relu", {}),
            keras.activations.sigmoid: ("Sigmoid", {}),
            keras.activations.tanh: ("Tanh", {}),
            keras.activations.elu: ("Elu", {"alpha": 1.0}),
            keras.activations.leaky_relu: ("LeakyRelu", {"alpha": 0.2}),
            keras.activations.softmax: ("Softmax", {"axis": 1 if last else -1}),
        }
        if function not in known:
            title = getattr(function, "__name__", str(function))
            raise self.refuse(layer, f"its activation {title} is unknown")
        op, attributes = known[function]
        return _Value(self.node(op, [value.name], name, **attributes), last)

    def pads(self, call: _Call, kernel, strides, dilations=(1, 1)) -> list[int]:
        if call.layer.data_format != "channels_last":
            raise self.refuse(call.layer, "it computes channels first")
        if call.layer.padding == "valid":
            return [0, 0, 0, 0]
        sizes = call.inputs[0].shape[1:3]
        axes = zip(sizes, kernel, strides, dilations, strict=True)
        (top, bottom), (left, right) = (same_padding(*axis) for axis in axes)
        return [top, left, bottom, right]


# -- linear layers -----------------------------------------------------------------------------


@_layer(keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
def _conv(to: _Exporter, call: _Call) -> _Value:
    layer, value = call.layer, to.image(call)
    rows, columns, inner, outer = layer.kernel.shape
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        shape, groups = (inner * outer, 1, rows, columns), inner
        layout = Layout(shape, (inner, outer, rows, columns), (2, 3, 0, 1))
    else:
        shape, groups = (outer, inner, rows, columns), layer.groups
        layout = Layout(shape, shape, (2, 3, 1, 0))
    inputs = [value.name, to.weight(layer, "weight", layer.kernel, layout)]
    if layer.use_bias:
        inputs.append(to.weight(layer, "bias", layer.bias))
    output = to.node(
        "Conv",
        inputs,
        to.layer_name(layer),
        kernel_shape=[rows, columns],
        strides=list(layer.strides),
        dilations=list(layer.dilation_rate),
        group=groups,
        pads=to.pads(call, (rows, columns), layer.strides, layer.dilation_rate),
    )
    return _Value(output, channels_last=True)


@_layer(keras.layers.Dense)
def _dense(to: _Exporter, call: _Call) -> _Value:
    layer = call.layer
    if len(call.inputs[0].shape) != 2:
        raise to.refuse(layer, f"its input is {list(call.inputs[0].shape)}; expected [N, features]")
    shape = layer.kernel.shape[::-1]
    inputs = [to.weight(layer, "weight", layer.kernel, Layout(shape, shape, (1, 0)))]
    if layer.use_bias:
        inputs.append(to.weight(layer, "bias", layer.bias))
    return to.apply(call, "Gemm", *inputs, transB=1)


@_layer(keras.layers.BatchNormalization)
def _batchnorm(to: _Exporter, call: _Call) -> _Value:
    layer, value = call.layer, to.image(call)
    rank = len(call.inputs[0].shape)
    if layer.axis not in (-1, rank - 1):
        raise to.refuse(layer, "it does not normalise the last axis")
    channels = call.inputs[0].shape[-1]
    scale = layer.gamma if layer.scale else np.ones(channels, np.float32)
    shift = layer.beta if layer.center else np.zeros(channels, np.float32)
    inputs = [
        value.name,
        to.weight(layer, "weight", scale),
        to.weight(layer, "bias", shift),
        to.weight(layer, "running_mean", layer.moving_mean),
        to.weight(layer, "running_var", layer.moving_variance),
    ]
    options = {"epsilon": layer.epsilon, "momentum": layer.momentum}
    return _Value(
        to.node("BatchNormalization", inputs, to.layer_name(layer), **options), value.channels_last
    )


# -- pooling and padding -----------------------------------------------------------------------


@_layer(keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
def _pool(to: _Exporter, call: _Call) -> _Value:
    layer, value = call.layer, to.image(call)
    op = "MaxPool" if isinstance(layer, keras.layers.MaxPooling2D) else "AveragePool"
    output = to.node(
        op,
        [value.name],
        to.layer_name(layer),
        kernel_shape=list(layer.pool_size),
        strides=list(layer.strides),
        pads=to.pads(call, layer.pool_size, layer.strides),
    )
    return _Value(output, channels_last=True)


@_layer(keras.layers.GlobalAveragePooling2D)
def _global_average(to: _Exporter, call: _Call) -> _Value:
    value, name = to.image(call), to.layer_name(call.layer)
    output = to.node("GlobalAveragePool", [value.name], name)
    if call.layer.keepdims:
        return _Value(output, channels_last=True)
    return _Value(to.node("Flatten", [output], f"{name}.flatten"), channels_last=False)


@_layer(keras.layers.ZeroPadding2D)
def _zero_padding(to: _Exporter, call: _Call) -> _Value:
    (top, bottom), (left, right) = call.layer.padding
    return _padding(to, call, [0, 0, top, left, 0, 0, bottom, right], 0.0)


@_layer(Padding)
def _any_padding(to: _Exporter, call: _Call) -> _Value:
    pairs = np.array([(0, 0), *call.layer.pads])
    ordered = pairs[list(NCHW)] if len(pairs) == 4 else pairs
    return _padding(to, call, ordered.T.ravel().tolist(), call.layer.value)


def _padding(to: _Exporter, call: _Call, pads: Sequence[int], value: float) -> _Value:
    name, source = to.layer_name(call.layer), to.image(call)
    inputs = [
        source.name,
        to.literal(np.array(pads, np.int64), f"{name}.pads"),
        to.literal(np.float32(value), f"{name}.value"),
    ]
    return _Value(to.node("Pad", inputs, name), source.channels_last)


# -- element by element ------------------------------------------------------------------------


@_layer(keras.layers.Activation)
def _activation(to: _Exporter, call: _Call) -> _Value:
    return to.activate(call.layer.activation, to.of(call), call.layer)


@_layer(keras.layers.ReLU)
def _relu(to: _Exporter, call: _Call) -> _Value:
    layer = call.layer
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        raise to.refuse(layer, "it has a threshold, or both a slope and a maximum")
    if layer.negative_slope:
        return to.apply(call, "LeakyRelu", alpha=float(layer.negative_slope))
    if layer.max_value is None:
        return to.apply(call, "Relu")
    return _limited(to, call, 0.0, layer.max_value)


@_layer(Clip)
def _clip(to: _Exporter, call: _Call) -> _Value:
    return _limited(to, call, call.layer.low, call.layer.high)


def _limited(to: _Exporter, call: _Call, low: float, high: float) -> _Value:
    name = to.layer_name(call.layer)
    limits = [to.literal(np.float32(value), f"{name}.limit") for value in (low, high)]
    return to.apply(call, "Clip", *limits)


@_layer(keras.layers.LeakyReLU)
def _leaky_relu(to: _Exporter, call: _Call) -> _Value:
    return to.apply(call, "LeakyRelu", alpha=float(call.layer.negative_slope))


@_layer(keras.layers.ELU)
def _elu(to: _Exporter, call: _Call) -> _Value:
    return to.apply(call, "Elu", alpha=float(call.layer.alpha))


@_layer(keras.layers.Softmax)
def _softmax(to: _Exporter, call: _Call) -> _Value:
    if call.layer.axis not in (-1, len(call.inputs[0].shape) - 1):
        raise to.refuse(call.layer, "it does not run over the last axis")
    return to.apply(call, "Softmax", axis=1 if to.of(call).channels_last else -1)


@_layer(keras.layers.Dropout)
def _dropout(to: _Exporter, call: _Call) -> _Value:
    ratio = to.literal(np.float32(call.layer.rate), f"{to.layer_name(call.layer)}.ratio")
    return to.apply(call, "Dropout", ratio)


@_layer(keras.layers.Identity)
def _identity(to: _Exporter, call: _Call) -> _Value:
    return to.apply(call, "Identity")


@_layer(keras.layers.Rescaling)
def _rescaling(to: _Exporter, call: _Call) -> _Value:
    name, value = to.layer_name(call.layer), to.image(call)
    for op, number in (("Mul", call.layer.scale), ("Add", call.layer.offset)):
        constant = np.asarray(number, np.float32)
        if constant.ndim and value.channels_last:
            constant = constant.reshape(1, -1, 1, 1)
        literal = to.literal(constant, f"{name}.{op.lower()}.constant")
        output = to.node(op, [value.name, literal], f"{name}.{op.lower()}")
        value = _Value(output, value.channels_last)
    return value


@_layer(Arithmetic)
def _arithmetic(to: _Exporter, call: _Call) -> _Value:
    layer, value = call.layer, to.of(call)
    shape = tuple(layer.shape)
    layout = Layout.same(shape)
    if value.channels_last and len(shape) == 4:
        split = tuple(shape[axis] for axis in NCHW)
        layout = Layout(split, split, NHWC)
    constant = to.weight(layer, "constant", layer.constant, layout)
    inputs = [constant, value.name] if layer.reverse else [value.name, constant]
    return _Value(to.node(layer.operation, inputs, to.layer_name(layer)), value.channels_last)


@_layer(keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply, Divide)
def _merge(to: _Exporter, call: _Call) -> _Value:
    ops = {
        keras.layers.Add: "Add",
        keras.layers.Subtract: "Sub",
        keras.layers.Multiply: "Mul",
        Divide: "Div",
    }
    if len({len(tensor.shape) for tensor in call.inputs}) > 1:
        raise to.refuse(call.layer, "its inputs differ in their number of axes")
    first, *others = (to.image(call, position) for position in range(len(call.inputs)))
    name = first.name
    for other in others:
        inputs = [name, other.name]
        name = to.node(ops[type(call.layer)], inputs, to.layer_name(call.layer))
    return _Value(name, first.channels_last)


# -- shape -------------------------------------------------------------------------------------


@_layer(keras.layers.Concatenate)
def _concatenate(to: _Exporter, call: _Call) -> _Value:
    rank = len(call.inputs[0].shape)
    if call.layer.axis not in (-1, rank - 1):
        raise to.refuse(call.layer, "it does not join along the last axis")
    values = [to.image(call, position) for position in range(len(call.inputs))]
    names = [value.name for value in values]
    output = to.node("Concat", names, to.layer_name(call.layer), axis=1)
    return _Value(output, values[0].channels_last)


@_layer(keras.layers.Flatten)
def _flatten(to: _Exporter, call: _Call) -> _Value:
    value, (_, *shape) = to.of(call), call.inputs[0].shape
    one_order = len(shape) < 3 or shape[2] == 1 or shape[0] * shape[1] == 1
    if value.channels_last and not one_order:
        value = to.turned(value, NHWC, channels_last=False)
    output = to.node("Flatten", [value.name], to.layer_name(call.layer), axis=1)
    return _Value(output, channels_last=False)


@_layer(keras.layers.Reshape)
def _reshape(to: _Exporter, call: _Call) -> _Value:
    value, (_, *shape) = to.of(call), call.output.shape
    if None in shape:
        raise to.refuse(call.layer, "its shape depends on the images")
    if value.channels_last and call.inputs[0].shape[3] != 1:
        value = to.turned(value, NHWC, channels_last=False)
    name = to.layer_name(call.layer)
    target = to.literal(np.array([-1, *shape], np.int64), f"{name}.shape")
    return _Value(to.node("Reshape", [value.name, target], name), channels_last=False)


@_layer(keras.layers.Permute)
def _permute(to: _Exporter, call: _Call) -> _Value:
    value, axes = to.of(call), (0, *call.layer.dims)
    if value.channels_last and axes == NCHW:
        return _Value(value.name, channels_last=False)
    if not value.channels_last and axes == NHWC:
        return _Value(value.name, channels_last=True)
    if value.channels_last:
        value = to.turned(value, NHWC, channels_last=False)
    return to.turned(value, axes, channels_last=False)


# -- foreign layers ----------------------------------------------------------------------------


def _with_tf2onnx(keras_model: keras.Model, name: str) -> Model:
    import tf2onnx

    if len(keras_model.input_shape) != 4:
        raise ModelfixError(
            f"{name}: its input is {list(keras_model.input_shape)}; expected images [N, H, W, C]."
        )
    spec = tf.TensorSpec((None, *keras_model.input_shape[1:]), tf.float32, name="input")
    forward = tf.function(lambda x: keras_model(x, training=False), input_signature=[spec])
    try:
        proto, _ = tf2onnx.convert.from_function(
            forward, input_signature=[spec], opset=OPSET, inputs_as_nchw=[spec.name]
        )
    except Exception as error:  # tf2onnx raises many kinds
        reason = str(error).strip().splitlines()[0]
        raise ModelfixError(f"{name}: tf2onnx cannot convert this model ({reason}).") from error
    model = Model(proto, name)
    softmax = any("Softmax was cut" in note for note in model.notes)

    def compute(x: np.ndarray, _: Sequence[Checkpoint]) -> list[np.ndarray]:
        found = keras_model(x.transpose(NHWC), training=False).numpy()
        if softmax:  # probabilities say the logits up to one number for each image
            found = np.log(found)
            found += (model.predict(x) - found).mean(axis=1, keepdims=True)
        return [found]

    check_conversion(model, [Checkpoint("logits", model.output_name)], compute)
    return model
