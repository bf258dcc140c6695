"""A classifier stored as ONNX after our profile: load, save, predict, read and replace weights."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from modelfix_core import profile
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_bytes

MAX_BYTES = 2 * 1024**3 - 1  # a protobuf message cannot be larger
# Images of a batch: so many values of input at most, which bounds what the activations take.
MIN_BATCH, MAX_BATCH, BATCH_VALUES = 16, 500, 2**21
ACTIVATIONS = {"Relu", "LeakyRelu", "Elu", "Selu", "PRelu", "Sigmoid", "Tanh", "HardSwish", "Gelu"}
KINDS = {"Conv": "conv", "Gemm": "dense", "BatchNormalization": "batchnorm"}


@dataclass(frozen=True)
class Layer:
    """A trainable node of the graph.

    Attributes
    ----------
    name : str
        The weight's name without its ``.weight`` ending; unique in the model.
    kind : str
        ``conv``, ``dense`` or ``batchnorm``.
    node : str
        Name of the ONNX node.
    weight, bias : str, str or None
        Initializer names. Dense weights are [out, in], convolution kernels
        [out, in/groups, kh, kw], a BatchNorm's weight is its scale.
    statistics : tuple of str
        BatchNorm's running mean and variance; empty for the others.
    input, output : str
        Tensor names.
    activation : str or None
        Operator that alone consumes `output`, if it is an activation function.
    activated : str
        Output tensor of that activation; `output` where there is none.
    input_shape, output_shape : tuple of int
        Without the batch dimension.
    """

    name: str
    kind: str
    node: str
    weight: str
    bias: str | None
    statistics: tuple[str, ...]
    input: str
    output: str
    activation: str | None
    activated: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trainable initializers: the weight and, where there is one, the bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


class Model:
    """A classifier as an ONNX graph; immutable, so that a fix is always a new model.

    Parameters
    ----------
    proto : onnx.ModelProto
        Taken over, checked and brought to the profile.
    name : str
        How errors call the model, usually its file.
    """

    def __init__(self, proto: onnx.ModelProto, name: str = "model") -> None:
        self.name = name
        self._proto = proto
        self.notes = profile.to_profile(proto, name)

    def __deepcopy__(self, memo: dict) -> "Model":
        return self  # immutable, and its session cannot be copied

    # -- files ---------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> "Model":
        """Read an ONNX file, check it and bring it to the profile; `notes` says what was changed.

        Raises
        ------
        ModelfixError
            If the file is missing, too large, not ONNX, broken, uses operators outside standard
            ONNX, refers to data outside its folder or has unusable inputs or outputs.
        """
        path = Path(path)
        with explained(path):
            model = cls(read_file(path), str(path))
            model._session()  # a graph that onnxruntime cannot build is refused now, not later
        return model

    def save(self, path: str | Path) -> None:
        """Write the model atomically."""
        write_bytes(Path(path), self.serialized)

    @cached_property
    def serialized(self) -> bytes:
        """The model as bytes; equal models give equal bytes."""
        return self._proto.SerializeToString(deterministic=True)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the serialized model, hexadecimal."""
        return hashlib.sha256(self.serialized).hexdigest()

    def proto(self) -> onnx.ModelProto:
        """Return a copy of the graph, for approaches that extend it."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._proto)
        return copy

    # -- signature -----------------------------------------------------------------------------

    @cached_property
    def input_name(self) -> str:
        """Name of the image input."""
        return self._proto.graph.input[0].name

    @cached_property
    def output_name(self) -> str:
        """Name of the logits."""
        return self._proto.graph.output[0].name

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input image."""
        dims = self._proto.graph.input[0].type.tensor_type.shape.dim
        # The profile has these three axes after the batch; the checker cannot see the length.
        return tuple(d.dim_value for d in dims[1:])  # type: ignore[return-value]

    @cached_property
    def num_classes(self) -> int:
        """Number of logits K."""
        return int(self._proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata properties: labels, provenance."""
        return profile.metadata(self._proto)

    @property
    def labels(self) -> list[str] | None:
        """Class names, where the model carries them."""
        return profile.labels(self._proto, self.name)

    def with_metadata(self, **values: str) -> "Model":
        """Return a copy with these metadata properties (keys get the prefix ``modelfix.``)."""
        proto = self.proto()
        profile.set_metadata(proto, {f"modelfix.{key}": value for key, value in values.items()})
        return Model(proto, self.name)

    # -- prediction ----------------------------------------------------------------------------

    def predict(self, x: np.ndarray | Split, batch_size: int | None = None) -> np.ndarray:
        """Compute the logits.

        Parameters
        ----------
        x : ndarray of float32 in [0, 1], [N, C, H, W], or Split
        batch_size : int, optional
            Default 500, less for large images.

        Returns
        -------
        ndarray of float32, [N, K]
        """
        (logits,) = self._run(x, batch_size, self._session(), [self.output_name])
        return logits

    def accuracy(self, split: Split) -> float:
        """Return the share of `split` whose largest logit (lowest index on ties) is the label."""
        return float(np.mean(self.predict(split).argmax(axis=1) == split.y))

    def activations(
        self, x: np.ndarray | Split, tensors: Sequence[str], batch_size: int | None = None
    ) -> dict[str, np.ndarray]:
        """Compute inner tensors (names as in `layers`), [N, ...] each."""
        proto = self.proto()
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
        session = _session(proto.SerializeToString(), self.name)
        return dict(zip(tensors, self._run(x, batch_size, session, list(tensors)), strict=True))

    def _run(self, x, batch_size, session, outputs) -> list[np.ndarray]:
        shape = x.x.shape if isinstance(x, Split) else np.shape(x)
        if tuple(shape[1:]) != self.input_shape:
            raise ModelfixError(
                f"{self.name}: takes images of shape {list(self.input_shape)} (channels, height, "
                f"width) but the data have {list(shape[1:])}."
            )
        size = batch_size or max(MIN_BATCH, min(MAX_BATCH, BATCH_VALUES // math.prod(shape[1:])))
        parts = [session.run(outputs, {self.input_name: b}) for b in _batches(x, size)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _session(self) -> onnxruntime.InferenceSession:
        if "_cached_session" not in self.__dict__:
            self.__dict__["_cached_session"] = _session(self.serialized, self.name)
        return self.__dict__["_cached_session"]

    # -- weights -------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Every float32 initializer by name (read-only arrays)."""
        arrays = {}
        for tensor in self._proto.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                array = numpy_helper.to_array(tensor)
                array.flags.writeable = False
                arrays[tensor.name] = array
        return arrays

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> "Model":
        """Return a copy of the graph in which the named initializers have new values.

        Parameters
        ----------
        changed : mapping of str to ndarray
            Same shapes as the present values; cast to float32. All others stay bit-equal.

        Raises
        ------
        ModelfixError
            If a name is unknown, a shape differs or a value is not finite.
        """
        for name, array in changed.items():
            if name not in self.weights:
                raise ModelfixError(f"{self.name}: has no weight named {name!r}.")
            if np.shape(array) != self.weights[name].shape:
                raise ModelfixError(
                    f"{self.name}: weight {name!r} has shape {list(self.weights[name].shape)}, not "
                    f"{list(np.shape(array))}."
                )
            if not np.isfinite(array).all():
                raise ModelfixError(f"{self.name}: the new weight {name!r} holds NaN or infinity.")
        proto = self.proto()
        for tensor in proto.graph.initializer:
            if tensor.name in changed:
                array = np.ascontiguousarray(changed[tensor.name], dtype=np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return Model(proto, self.name)

    @cached_property
    def _layers(self) -> list[Layer]:
        inferred = onnx.shape_inference.infer_shapes(self._proto).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:]) for v in values
        }
        nodes = self._proto.graph.node
        return [
            self._layer(node, shapes)
            for node in nodes
            if node.op_type in KINDS and node.input[1] in self.weights
        ]

    def layers(self, kind: str | None = None) -> list[Layer]:
        """Return the trainable layers in graph order, all or of one kind."""
        return [layer for layer in self._layers if kind is None or layer.kind == kind]

    def layer(self, name: str) -> Layer:
        """Return the layer of that name; an error lists the names there are."""
        for layer in self._layers:
            if layer.name == name:
                return layer
        known = ", ".join(layer.name for layer in self._layers)
        raise ModelfixError(f"{self.name}: has no layer {name!r}; its layers are {known}.")

    def _layer(self, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
        users = [n for n in self._proto.graph.node if node.output[0] in n.input]
        follows = users[0] if len(users) == 1 and users[0].op_type in ACTIVATIONS else None
        weight = node.input[1]
        return Layer(
            name=weight.removesuffix(".weight"),
            kind=KINDS[node.op_type],
            node=node.name,
            weight=weight,
            bias=node.input[2] if len(node.input) > 2 and node.input[2] else None,
            statistics=tuple(node.input[3:5]) if node.op_type == "BatchNormalization" else (),
            input=node.input[0],
            output=node.output[0],
            activation=None if follows is None else follows.op_type,
            activated=node.output[0] if follows is None else follows.output[0],
            input_shape=shapes.get(node.input[0], ()),
            output_shape=shapes.get(node.output[0], ()),
        )


def _batches(x: np.ndarray | Split, size: int) -> Iterator[np.ndarray]:
    if isinstance(x, Split):
        yield from (x.images(batch) for batch in x.batches(size))
        return
    for start in range(0, len(x), size):
        yield np.ascontiguousarray(x[start : start + size], dtype=np.float32)


def _session(serialized: bytes, name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As other libraries do, so that processes beside each other can share the cores.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
    try:
        return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        reason = str(error).strip().splitlines()[0]
        raise ModelfixError(f"{name}: onnxruntime cannot run this model ({reason}).") from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what libraries raise over a damaged model into one sentence."""
    try:
        yield
    except ModelfixError:
        raise
    except Exception as error:  # a stranger's file may confuse them in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelfixError(
            f"{path}: is damaged or no usable model ({reason}); export it as ONNX again."
        ) from error


def read_file(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, as it is.

    Raises
    ------
    ModelfixError
        If the file is missing, too large, not ONNX, broken or refers to data outside its folder.
    """
    proto = _read(path)
    _load_external_data(proto, path)
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        if not isinstance(error, UnicodeDecodeError):
            profile.refuse_unknown_operators(proto, str(path))
        reason = str(error).strip().splitlines()[0]
        raise ModelfixError(f"{path}: is not a valid ONNX model ({reason}).") from error
    return proto


def _read(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ModelfixError(f"{path}: is a folder; expected an ONNX file.")
        if size > MAX_BYTES:
            raise ModelfixError(
                f"{path}: has {size:,} bytes; ONNX files hold at most {MAX_BYTES:,}."
            )
        proto = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise ModelfixError(f"{path}: does not exist; give the path of an ONNX file.") from None
    except PermissionError:
        raise ModelfixError(f"{path}: cannot be read; check its permissions.") from None
    except Exception as error:
        if isinstance(error, ModelfixError):
            raise
        raise ModelfixError(
            f"{path}: is not an ONNX file or is damaged; export the model as ONNX again."
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelfixError(f"{path}: is not an ONNX file or holds an empty graph.")
    return proto


def _load_external_data(proto: onnx.ModelProto, path: Path) -> None:
    folder = path.resolve().parent
    # Initializers, and constants in the attributes of nodes.
    tensors = onnx.external_data_helper._get_all_tensors(proto)
    external = [t for t in tensors if t.data_location == TensorProto.EXTERNAL]
    for tensor in external:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder):
            raise ModelfixError(
                f"{path}: weight {tensor.name!r} refers to data outside the model's folder "
                f"({location!r}); this is refused, put the data file beside the model."
            )
        if not target.is_file():
            raise ModelfixError(f"{path}: its data file {location!r} is missing beside it.")
    if external:
        try:
            onnx.load_external_data_for_model(proto, str(folder))
        except Exception as error:
            raise ModelfixError(f"{path}: its external data cannot be read ({error}).") from error
