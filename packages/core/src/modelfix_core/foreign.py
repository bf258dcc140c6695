"""Foreign models: a file of another tool becomes a model of the profile that answers as it does.

`read` opens an ONNX file here, a Keras file or a PyTorch module through the room of that framework,
as an `Original`: its graph, and the foreign model itself to be run. `adopt` puts what the original
expects of its images (range, normalisation, order of the axes, flat vectors) inside the graph,
brings it to the profile and compares the logits of both on the user's images.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from modelfix_core import profile
from modelfix_core.dataset import Dataset
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model, explained, read_file

TOLERANCE = 1e-4  # of float32 logits of the size of one
COMPARED = 1000  # images on which original and model are compared
TRIED = 500  # images on which the range of the pixels is found out
CLEAR_GAIN = 0.1  # of accuracy, by which a range of pixels must be better to be believed
FULL_RANGE = 255.0
SMALLEST = 1e-30  # probability whose logarithm is taken for that of zero
KERAS_SUFFIXES = {".keras", ".h5", ".hdf5"}
REFUSED = {
    **dict.fromkeys(
        (".pt", ".pth", ".ckpt", ".safetensors"),
        "holds weights and no model; give --model module:factory (or file.py:factory) and these "
        "--weights",
    ),
    **dict.fromkeys(
        (".pkl", ".pickle", ".joblib"),
        "is pickled, and nothing is unpickled here; export the model to ONNX (scikit-learn: "
        "skl2onnx.to_onnx)",
    ),
    **dict.fromkeys(
        (".pb", ".tflite"), "is a TensorFlow graph; save the model as .keras or convert it to ONNX"
    ),
}


@dataclass(frozen=True)
class Conventions:
    """What a foreign model expects of an image; None is found out.

    Attributes
    ----------
    scale : float or None
        Value of a white pixel, usually 1 or 255.
    mean, std : sequence of float or None
        Per channel, in the units of `scale`; None is no normalisation.
    layout : {"nchw", "nhwc"} or None
    """

    scale: float | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    layout: Literal["nchw", "nhwc"] | None = None

    def check(self, channels: int) -> None:
        """Raise `ModelfixError` for values that no image of so many channels can have."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise ModelfixError(
                    f"--{name} has {len(values)} values but the images have {channels} channels; "
                    "give one value, or one per channel."
                )
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ModelfixError(f"--std has the value {min(self.std):g}; all must be above 0.")
        if self.scale is not None and not self.scale > 0:
            raise ModelfixError(f"--scale is {self.scale:g}; it is the value of a white pixel.")


def numbers(text: str) -> list[float]:
    """Read ``0.5,0.5,0.5``, as means and deviations are given.

    Raises
    ------
    ModelfixError
        If a part is no number.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ModelfixError(f"{text!r} is not of the form 0.5,0.5,0.5.") from None


@dataclass
class Original:
    """A foreign model.

    Attributes
    ----------
    name : str
        How errors call it.
    proto : onnx.ModelProto
        Its graph, with one input of images as the original takes them and one output of scores.
    run : callable
        The original itself, in its own framework: a batch as it takes it -> scores [N, K].
    labels : list of str or None
        Class names, where it has them.
    notes : list of str
        What was done to it.
    """

    name: str
    proto: onnx.ModelProto
    run: Callable[[np.ndarray], np.ndarray]
    labels: list[str] | None = None
    notes: list[str] = field(default_factory=list)


# -- reading ---------------------------------------------------------------------------------------


def read(
    source: str | Path,
    weights: Path | None,
    shape: Sequence[int],
    layout: Literal["nchw", "nhwc"] | None = None,
) -> Original:
    """Open a foreign model.

    Parameters
    ----------
    source : str or Path
        ONNX (``.onnx``) or Keras file (``.keras``, ``.h5``), or a PyTorch factory
        ``module:name`` or ``file.py:name``.
    weights : Path or None
        State dict of the PyTorch module (safetensors, or ``torch.save`` of tensors alone).
    shape : sequence of int
        Channels, height and width of the user's images.
    layout : {"nchw", "nhwc"} or None

    Returns
    -------
    Original

    Raises
    ------
    ModelfixError
        If the file cannot be read or used.
    """
    kind = kind_of(source)
    if weights is not None and kind != "torch":
        raise ModelfixError(f"--weights belong to a PyTorch factory; {source} holds its own.")
    try:
        if kind == "keras":
            from modelfix_core.keras.foreign import read_keras

            return read_keras(Path(source), shape)
        if kind == "torch":
            from modelfix_core.torch.foreign import read_torch

            return read_torch(str(source), weights, shape, layout)
    except ImportError as error:
        extra = {"keras": "tensorflow", "torch": "subjects"}[kind]
        raise ModelfixError(
            f"{source}: is a {kind.capitalize()} model and {error.name or kind} cannot be imported "
            f"here; install modelfix-core[{extra}]."
        ) from error
    original = read_onnx(Path(source))
    _is_nhwc(original, shape, layout)  # images of another shape are refused before they are read
    return original


def kind_of(source: str | Path) -> Literal["onnx", "keras", "torch"]:
    """Say of which framework `source` is, by its form alone; refuse what is of none."""
    path = Path(source)
    suffix = path.suffix.lower()
    if ":" in path.name and not path.exists():
        return "torch"
    if suffix in KERAS_SUFFIXES:
        return "keras"
    if suffix in REFUSED:
        raise ModelfixError(f"{source}: {REFUSED[suffix]}.")
    if path.is_dir():
        raise ModelfixError(
            f"{source}: is a folder; expected an ONNX or Keras file, or module:factory of PyTorch."
        )
    return "onnx"


def read_onnx(path: Path) -> Original:
    """Open an ONNX file of any opset from any tool."""
    with explained(path):
        return _read_onnx(path)


def _read_onnx(path: Path) -> Original:
    proto = read_file(path)
    name = str(path)
    session = _session(proto, name)
    fixed = _dims(proto)[0]
    notes: list[str] = []
    output, labels = _scores(proto, name, notes)
    labels = profile.labels(proto, name) or labels
    _keep_only(proto, output)
    return Original(name, proto, _runner(session, output.name, fixed), labels, notes)


def _session(proto: onnx.ModelProto, name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no public base class
        reason = str(error).strip().splitlines()[0]
        raise ModelfixError(f"{name}: onnxruntime cannot run this model ({reason}).") from error


def _runner(
    session: onnxruntime.InferenceSession, output: str, fixed: int | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Run a session batch by batch, in the batch size it demands if it demands one."""
    size, name = fixed or 100, session.get_inputs()[0].name

    def run(x: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            missing = fixed - len(part) if fixed else 0
            padded = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            (scores,) = session.run([output], {name: np.ascontiguousarray(padded)})
            if isinstance(scores, list):  # what ZipMap makes: a dictionary for every image
                scores = np.array([list(row.values()) for row in scores], np.float32)
            parts.append(scores[: len(part)])
        return np.concatenate(parts)

    return run


def _dims(proto: onnx.ModelProto) -> list[int | None]:
    """Return the axes of the image input, with None for what is open."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    if not inputs:
        raise ModelfixError("the model has no input; expected one batch of images.")
    return profile.axes_of(inputs[0])


def _scores(
    proto: onnx.ModelProto, name: str, notes: list[str]
) -> tuple[onnx.ValueInfoProto, list[str] | None]:
    """Return the output with a value per class, and the class names where it has them."""
    made_by = {tensor: node for node in proto.graph.node for tensor in node.output}
    found: list[tuple[onnx.ValueInfoProto, list[str] | None]] = []
    for value in proto.graph.output:
        node = made_by.get(value.name)
        if node is not None and node.op_type == "ZipMap":
            found.append((value, _zipped_labels(node)))
        elif value.type.tensor_type.elem_type == TensorProto.FLOAT and len(
            profile.axes_of(value)
        ) in (0, 2):
            found.append((value, None))
    if len(found) != 1:
        names = ", ".join(value.name for value in proto.graph.output)
        raise ModelfixError(
            f"{name}: {len(found) or 'none'} of its outputs ({names}) can be the scores of the "
            "classes; expected one float32 output [N, K]."
        )
    others = [value.name for value in proto.graph.output if value.name != found[0][0].name]
    if others:
        notes.append(f"the output {', '.join(others)} was left out")
    return found[0]


def _zipped_labels(node: onnx.NodeProto) -> list[str] | None:
    """Return the class names in a ZipMap; None for the numbers from 0."""
    values = [
        item.decode() if isinstance(item, bytes) else str(item)
        for attribute in node.attribute
        for item in helper.get_attribute_value(attribute)
    ]
    return None if values == [str(number) for number in range(len(values))] else values


def _keep_only(proto: onnx.ModelProto, output: onnx.ValueInfoProto) -> None:
    """Cut the graph down to what computes `output`, in place; a ZipMap gives way to its input."""
    graph = proto.graph
    made_by = {tensor: node for node in graph.node for tensor in node.output}
    last = output.name
    # Copies and casts of float32 to itself say nothing; a softmax before them shall be the last.
    while last in made_by and made_by[last].op_type in ("ZipMap", "Identity", "Cast"):
        if made_by[last].op_type == "Cast" and not _casts_to_float(made_by[last]):
            break
        last = made_by[last].input[0]
    needed, waiting = set(), [last]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += made_by[name].input if name in made_by else []
    nodes = [node for node in graph.node if needed & set(node.output)]
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    ours = profile.MARK in profile.metadata(proto)
    shapeless = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    graph.output.append(output if ours else shapeless)  # a foreign shape may fix the batch
    first = next(value.name for value in graph.input)
    _bypass(graph, (n for n in nodes if n.op_type == "Cast" and n.input[0] == first))
    used = {node.domain for node in graph.node}
    kept = {entry.domain: entry for entry in proto.opset_import if entry.domain in used | {""}}
    del proto.opset_import[:]
    proto.opset_import.extend(kept.values())


def _casts_to_float(node: onnx.NodeProto) -> bool:
    return any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)


def _bypass(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Remove nodes that hand on their first input unchanged."""
    for node in list(nodes):
        if any(value.name == node.output[0] for value in graph.output):
            continue
        for user in graph.node:
            for position, name in enumerate(user.input):
                if name == node.output[0]:
                    user.input[position] = node.input[0]
        graph.node.remove(node)


# -- images as the original takes them -------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """The way of our images [N, C, H, W] in [0, 1] into the original: in numpy, and as nodes."""

    shape: tuple[int, ...]
    scale: float
    mean: np.ndarray | None
    std: np.ndarray | None
    turned: bool
    target: tuple[int, ...]  # shape of one image as the original takes it

    @classmethod
    def of(cls, original: Original, shape: Sequence[int], conventions: Conventions) -> "_Entry":
        turned = _is_nhwc(original, shape, conventions.layout)
        if turned and conventions.layout is None:
            original.notes.append("its images are [N, H, W, C]; a transposition was put in front")
        inner = (*shape[1:], shape[0]) if turned else tuple(shape)
        rank = len(_dims(original.proto)) - 1
        target = {1: (int(np.prod(shape)),), 2: tuple(shape[1:]), 3: inner}[rank]

        def vector(values: Sequence[float] | None) -> np.ndarray | None:
            return None if values is None else np.asarray(values, np.float32).reshape(1, -1, 1, 1)

        mean, std = vector(conventions.mean), vector(conventions.std)
        return cls(tuple(shape), conventions.scale or 1.0, mean, std, turned, target)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.scale != 1:
            x = x * np.float32(self.scale)
        x = x if self.mean is None else x - self.mean
        x = x if self.std is None else x / self.std
        x = x.transpose(0, 2, 3, 1) if self.turned else x
        return np.ascontiguousarray(x).reshape(len(x), *self.target)

    def prepend(self, graph: onnx.GraphProto) -> None:
        """Put these steps in front of `graph`, which takes our images then."""
        weights = {tensor.name for tensor in graph.initializer}
        old = next(value.name for value in graph.input if value.name not in weights)
        steps: list[onnx.NodeProto] = []
        now = "images"

        def add(op: str, constant: np.ndarray | None = None, **attributes: object) -> None:
            nonlocal now
            name = f"images.{op.lower()}"
            inputs = [now]
            if constant is not None:
                inputs.append(f"{name}.constant")
                value = numpy_helper.from_array(constant)
                steps.append(helper.make_node("Constant", [], inputs[1:], inputs[1], value=value))
            now = name
            steps.append(helper.make_node(op, inputs, [now], name, **attributes))

        if self.scale != 1:
            add("Mul", np.full((1, 1, 1, 1), self.scale, np.float32))
        if self.mean is not None:
            add("Sub", self.mean)
        if self.std is not None:
            add("Div", self.std)
        if self.turned:
            add("Transpose", perm=[0, 2, 3, 1])
        if len(self.target) == 1:
            add("Flatten", axis=1)
        elif len(self.target) == 2:
            add("Reshape", np.array([-1, *self.target], np.int64))
        start = "images" if steps else old
        for node in graph.node if steps else ():
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = now
        nodes = [*steps, *graph.node]
        kept = [value for value in graph.input if value.name != old]
        del graph.node[:], graph.input[:]
        graph.node.extend(nodes)
        entry = helper.make_tensor_value_info(start, TensorProto.FLOAT, ["N", *self.shape])
        graph.input.extend([entry, *kept])


def _is_nhwc(original: Original, shape: Sequence[int], layout: str | None) -> bool:
    """Say whether the original takes [N, H, W, C]; refuse an input that our images do not fit."""
    dims = _dims(original.proto)[1:]
    channels, height, width = shape
    orders = {
        1: {"nchw": [channels * height * width]},
        2: {"nchw": [height, width]},
        3: {"nchw": [channels, height, width], "nhwc": [height, width, channels]},
    }.get(len(dims), {})
    if len(dims) == 1 and layout == "nhwc":
        return True
    fitting = [
        order
        for order, sizes in orders.items()
        if all(d in (None, s) for d, s in zip(dims, sizes, strict=True))
        and layout in (None, order)
        and (len(dims) != 2 or channels == 1)
    ]
    if not fitting:
        wanted = ", ".join("any" if d is None else str(d) for d in dims)
        hint = f" with --layout {layout}" if layout else ""
        raise ModelfixError(
            f"{original.name}: takes images of shape [{wanted}]{hint} but the data have "
            f"{list(shape)} (channels, height, width); use the images the model was trained for."
        )
    return fitting[0] == "nhwc"


# -- adopting --------------------------------------------------------------------------------------


def adopt(original: Original, dataset: Dataset, conventions: Conventions) -> Model:
    """Make a model of the profile that answers as `original` does on the images of `dataset`.

    Parameters
    ----------
    original : Original
    dataset : Dataset
    conventions : Conventions

    Returns
    -------
    Model
        Its `notes` say what was done.

    Raises
    ------
    ModelfixError
        If the model cannot be used, or its logits differ from the original's by more than 1e-4.
    """
    shape = next(iter(dataset.splits.values())).x.shape[1:]
    conventions.check(shape[0])
    entry = _Entry.of(original, shape, conventions)
    if conventions.scale is None:
        entry = _with_range(original, entry, dataset)
    _check_type(original)
    proto = onnx.ModelProto()
    proto.CopyFrom(original.proto)
    notes = list(original.notes)
    profile.refuse_unknown_operators(proto, original.name)
    profile.raise_opset(proto, original.name, notes)
    # Whatever the file says of shapes may hold for its own batch size and layout only.
    fixed = _dims(proto)[0]
    if fixed is not None:
        notes.append(f"the fixed batch size {fixed} was made dynamic")
        profile.free_reshapes(proto, fixed)
    del proto.graph.value_info[:]
    entry.prepend(proto.graph)
    _simplify(proto.graph)
    model = Model(proto, original.name)
    notes += model.notes
    x, where = _sample(dataset, COMPARED)
    logits = model.predict(x)
    if _are_probabilities(logits):
        model = _with_logarithm(model)
        notes.append("its probabilities have no softmax to cut; their logarithm is the logits")
        logits = model.predict(x)
    _compare(original, original.run(entry(x)), logits, where)
    if original.labels is not None:
        model = model.with_metadata(labels=json.dumps(original.labels))
    model.notes[:] = notes
    return model


def _check_type(original: Original) -> None:
    weights = {tensor.name for tensor in original.proto.graph.initializer}
    inputs = [value for value in original.proto.graph.input if value.name not in weights]
    kinds = [TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in inputs]
    if kinds != ["FLOAT"]:
        raise ModelfixError(
            f"{original.name}: takes {', '.join(kinds)}; expected one float32 batch of images."
        )


def _with_range(original: Original, entry: _Entry, dataset: Dataset) -> _Entry:
    """Find out whether the original takes pixels up to 1 or up to 255, by its accuracy."""
    full = replace(entry, scale=FULL_RANGE)
    x, where = _sample(dataset, TRIED)
    y = np.array([dataset[name].y[position] for name, position in where])
    ones, full_range = (_purity(original.run(way(x)), y) for way in (entry, full))
    if full_range - ones < CLEAR_GAIN:
        return entry
    original.notes.append(
        f"pixels are multiplied by 255 inside the graph, because the model tells the classes of "
        f"{len(y)} images apart so ({full_range:.0%}; with pixels up to 1 {ones:.0%}); --scale "
        "settles it"
    )
    return full


def _purity(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the accuracy if every output is read as the class it mostly stands for.

    So the order of the labels, which may still be wrong, plays no part.
    """
    counts = np.zeros((scores.shape[1], int(y.max()) + 1), np.int64)
    np.add.at(counts, (scores.argmax(axis=1), y), 1)
    return float(counts.max(axis=1).sum() / len(y))


def _sample(dataset: Dataset, count: int) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Return about `count` images spread over all splits, and the split and position of each."""
    total = sum(len(split) for split in dataset.splits.values())
    parts, where = [], []
    for name, split in dataset.splits.items():
        size = min(len(split), -(-count * len(split) // total))
        index = np.unique(np.linspace(0, len(split) - 1, size).astype(int))
        parts.append(split.images(index))
        where += [(name, int(position)) for position in index]
    return np.concatenate(parts), where


def _simplify(graph: onnx.GraphProto) -> None:
    """Take out what the new entry made needless: transpositions there and back, double flattening.

    Approaches see a convolution first then, and dense layers right behind one Flatten.
    """
    made_by = {tensor: node for node in graph.node for tensor in node.output}
    for node in list(graph.node):
        before = made_by.get(node.input[0]) if node.input else None
        if before is None:
            continue
        if node.op_type == before.op_type == "Transpose":
            first, second = (_permutation(part) for part in (before, node))
            if first and second and [first[axis] for axis in second] == sorted(first):
                node.input[0] = before.input[0]
                _bypass(graph, [node])
        elif node.op_type == "Flatten" and before.name in ("images.flatten", "images.reshape"):
            node.input[0] = before.input[0]
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if node.name.startswith("images.") and not used & set(node.output):
            graph.node.remove(node)


def _permutation(node: onnx.NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def _are_probabilities(scores: np.ndarray) -> bool:
    inside = scores.min(initial=0) >= -1e-6 and scores.max(initial=1) <= 1 + 1e-6
    return bool(inside and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def _with_logarithm(model: Model) -> Model:
    """Return the model with the logarithm of its probabilities for logits."""
    proto = model.proto()
    end = proto.graph.output[0].name
    small = numpy_helper.from_array(np.float32(SMALLEST))
    proto.graph.node.extend(
        [
            helper.make_node("Constant", [], [f"{end}.smallest"], value=small),
            helper.make_node("Max", [end, f"{end}.smallest"], [f"{end}.positive"]),
            helper.make_node("Log", [f"{end}.positive"], [f"{end}.logarithm"]),
        ]
    )
    for node in proto.graph.node[-3:]:
        node.name = node.output[0]
    proto.graph.output[0].name = f"{end}.logarithm"
    return Model(proto, model.name)


# -- comparing -------------------------------------------------------------------------------------


def _compare(
    original: Original, scores: np.ndarray, logits: np.ndarray, where: list[tuple[str, int]]
) -> None:
    """Raise `ModelfixError` where the model does not answer as the original does."""
    if scores.shape != logits.shape:
        raise ModelfixError(
            f"{original.name}: gives scores of shape {list(scores.shape)} but the converted model "
            f"{list(logits.shape)}; expected a value per class for every image."
        )
    for title, ours in (("its logits", logits), ("the original's scores", scores)):
        broken = ~np.isfinite(ours).all(axis=1)
        if broken.any():
            split, position = where[int(np.argmax(broken))]
            raise ModelfixError(
                f"{original.name}: {title} are NaN or infinite for {broken.sum()} of {len(ours)} "
                f"images (first: {split} {position}); check the model and its normalisation."
            )
    for title, expected, found in _views(scores, logits):
        difference = np.abs(expected - found)
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if difference.max() > allowed:
            row, column = np.unravel_index(int(difference.argmax()), difference.shape)
            split, position = where[row]
            raise ModelfixError(
                f"{original.name}: the converted model and the original disagree on the {title} by "
                f"up to {difference.max():.2g} ({allowed:.1g} is allowed), most for class {column} "
                f"of image {position} of the {split} split ({found[row, column]:.6g} instead of "
                f"{expected[row, column]:.6g}); an operator behaves differently, export the model "
                "to ONNX in another way."
            )


def _views(scores: np.ndarray, logits: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return what can be compared: logits, or (log-)probabilities if that is what scores are."""
    log_softmax = logits - _log_sum_exp(logits)
    if _are_probabilities(scores):
        likely = np.where(scores > 1e-5, scores, 1.0)
        logs = np.where(scores > 1e-5, log_softmax, 0.0)
        return [
            ("probabilities", scores, np.exp(log_softmax)),
            ("log-probabilities", np.log(likely), logs),
        ]
    if np.abs(_log_sum_exp(scores)).max() < 1e-3:
        return [("log-probabilities", scores, log_softmax)]
    return [("logits", scores, logits)]


def _log_sum_exp(values: np.ndarray) -> np.ndarray:
    largest = values.max(axis=1, keepdims=True)
    return largest + np.log(np.exp(values - largest).sum(axis=1, keepdims=True))
