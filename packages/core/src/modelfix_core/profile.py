"""The ONNX profile: what every model here looks like, and how a foreign one is brought to it.

One float32 input ``[N, C, H, W]`` in [0, 1] and one output of logits ``[N, K]``, dynamic batch,
opset 17 or later, every dense layer one ``Gemm`` with weight ``[out, in]``, no trailing softmax.
"""

import json
from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelfix_core.errors import ModelfixError

MIN_OPSET = 17
MARK = "modelfix.profile"
LABELS = "modelfix.labels"
VERSION = "1"


def to_profile(proto: onnx.ModelProto, name: str) -> list[str]:
    """Bring `proto` to the profile in place.

    Parameters
    ----------
    proto : onnx.ModelProto
        A checked model; changed in place.
    name : str
        How errors call the model.

    Returns
    -------
    list of str
        What was changed, for the user; empty for a model that already follows the profile.

    Raises
    ------
    ModelfixError
        If an operator is not part of standard ONNX or the input or output cannot be used.
    """
    refuse_unknown_operators(proto, name)
    if metadata(proto).get(MARK) == VERSION:
        return []
    notes: list[str] = []
    raise_opset(proto, name, notes)
    _inputs_without_initializers(proto)
    _check_input(proto, name)
    _cut_softmax(proto, notes)
    _own_values(proto, notes)
    _dense_as_gemm(proto, notes)
    _dynamic_batch(proto, notes)
    _check_output(proto, name)
    _name_nodes(proto)
    set_metadata(proto, {MARK: VERSION})
    return notes


def labels(proto: onnx.ModelProto, name: str) -> list[str] | None:
    """Return the class names that a model carries, None if it carries none.

    Raises
    ------
    ModelfixError
        If they are no list of different names.
    """
    text = metadata(proto).get(LABELS)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
        found = []
    if not found or len(set(found)) != len(found):
        raise ModelfixError(f"{name}: its metadata {LABELS} are no list of different class names.")
    return found


def metadata(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata properties of a model."""
    return {prop.key: prop.value for prop in proto.metadata_props}


def set_metadata(proto: onnx.ModelProto, values: dict[str, str]) -> None:
    """Add or replace metadata properties in place."""
    merged = metadata(proto) | values
    del proto.metadata_props[:]
    helper.set_model_props(proto, merged)


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operator set that the model uses."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def refuse_unknown_operators(proto: onnx.ModelProto, name: str) -> None:
    """Raise `ModelfixError` for the first operator that standard ONNX does not have."""
    version = opset_of(proto)
    for node in proto.graph.node:
        known = node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, version or 1)
        if not known:
            domain = f" of domain {node.domain!r}" if node.domain else ""
            raise ModelfixError(
                f"{name}: operator {node.op_type!r}{domain} is not part of standard ONNX; export "
                "the model with standard operators only."
            )


def raise_opset(proto: onnx.ModelProto, name: str, notes: list[str]) -> None:
    """Convert an older model to the smallest opset of the profile, in place."""
    version = opset_of(proto)
    if version >= MIN_OPSET:
        return
    try:
        raised = onnx.version_converter.convert_version(proto, MIN_OPSET)
    except Exception as error:  # the converter raises bare RuntimeErrors of many kinds
        raise ModelfixError(
            f"{name}: opset {version} could not be raised to {MIN_OPSET}; export the model with "
            f"opset {MIN_OPSET} or later."
        ) from error
    proto.CopyFrom(raised)
    notes.append(f"opset {version} raised to {MIN_OPSET}")


def _inputs_without_initializers(proto: onnx.ModelProto) -> None:
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def axes_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """Return the sizes of the axes of an input or output, None for those that are open."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]


def _check_input(proto: onnx.ModelProto, name: str) -> None:
    inputs = proto.graph.input
    if len(inputs) != 1:
        raise ModelfixError(f"{name}: has {len(inputs)} inputs; expected one batch of images.")
    tensor, dims = inputs[0].type.tensor_type, axes_of(inputs[0])
    if tensor.elem_type != TensorProto.FLOAT or len(dims) != 4 or None in dims[1:]:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ModelfixError(
            f"{name}: its input is {kind} {dims}; expected float32 [N, C, H, W] with fixed "
            "channels, height and width."
        )


def _check_output(proto: onnx.ModelProto, name: str) -> None:
    outputs = proto.graph.output
    inferred = onnx.shape_inference.infer_shapes(proto).graph.output[0]
    dims = axes_of(inferred)
    if len(outputs) != 1 or len(dims) != 2 or not dims[1] or dims[1] < 2:
        raise ModelfixError(
            f"{name}: its output is {dims}; expected one tensor of logits [N, K] with K >= 2."
        )
    outputs[0].CopyFrom(
        helper.make_tensor_value_info(outputs[0].name, TensorProto.FLOAT, ["N", dims[1]])
    )


def _cut_softmax(proto: onnx.ModelProto, notes: list[str]) -> None:
    output = proto.graph.output[0]
    last = next((n for n in proto.graph.node if output.name in n.output), None)
    if last is None or last.op_type not in ("Softmax", "LogSoftmax"):
        return
    proto.graph.node.remove(last)
    output.name = last.input[0]
    notes.append(f"the trailing {last.op_type} was cut, so that the output is logits")


def _own_values(proto: onnx.ModelProto, notes: list[str]) -> None:
    """Give every weight its own initializer.

    Exporters store equal weights (all fresh BatchNorms) once and reach the others by Identity;
    editing one would then edit all.
    """
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    copies = 0
    for node in list(graph.node):
        if node.op_type == "Identity" and node.input[0] in weights:
            copy = graph.initializer.add()
            copy.CopyFrom(weights[node.input[0]])
            copy.name = node.output[0]
            weights[copy.name] = copy
            graph.node.remove(node)
            copies += 1
    if copies:
        notes.append(f"{copies} weights that shared the values of others became their own")


def _dense_as_gemm(proto: onnx.ModelProto, notes: list[str]) -> None:
    """Write MatMul (+ Add) and Gemm of any form with a constant weight as Gemm with [out, in]."""
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    shapes = [*inferred.input, *inferred.value_info]
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in shapes}
    transposed: set[str] = set()
    rewritten = 0
    for node in list(graph.node):
        if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "MatMul" and ranks.get(node.input[0], 2) == 2:
            _absorb_transpose(graph, node, weights, uses, attributes)
        weight = weights.get(node.input[1])
        if weight is None or len(weight.dims) != 2 or attributes.get("transA", 0):
            continue
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            continue
        if node.op_type == "MatMul" and ranks.get(node.input[0], 2) != 2:
            continue
        if not attributes.get("transB", 0) and weight.name not in transposed:
            if uses[weight.name] > 1:
                continue
            matrix = np.ascontiguousarray(numpy_helper.to_array(weight).T)
            weight.CopyFrom(numpy_helper.from_array(matrix, weight.name))
            transposed.add(weight.name)
        if node.op_type == "MatMul":
            _absorb_bias(graph, node, weights, uses, attributes)
            node.op_type = "Gemm"
            rewritten += 1
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("transB", 1))
    if rewritten or transposed:
        notes.append(
            f"{max(rewritten, len(transposed))} dense layers were written as Gemm [out, in]"
        )


def _absorb_transpose(graph, node, weights, uses, attributes) -> None:
    """Take the weight of `node` from before a Transpose, as exporters write layers without bias."""
    before = next((n for n in graph.node if node.input[1] in n.output), None)
    if before is None or before.op_type != "Transpose" or before.input[0] not in weights:
        return
    if len(weights[before.input[0]].dims) != 2:
        return
    if uses[before.output[0]] == 1:
        graph.node.remove(before)
    node.input[1] = before.input[0]
    attributes["transB"] = 1


def _absorb_bias(graph, node, weights, uses, attributes) -> None:
    """Turn a following Add of a constant vector into the bias of `node`."""
    followers = [n for n in graph.node if node.output[0] in n.input]
    if len(followers) != 1 or followers[0].op_type != "Add":
        return
    add = followers[0]
    other = add.input[1] if add.input[0] == node.output[0] else add.input[0]
    bias = weights.get(other)
    width = weights[node.input[1]].dims[0]
    if bias is None or int(np.prod(bias.dims)) != width or uses[other] > 1:
        return
    vector = numpy_helper.to_array(bias).reshape(width)
    bias.CopyFrom(numpy_helper.from_array(vector, bias.name))
    node.input.append(other)
    node.output[0] = add.output[0]
    graph.node.remove(add)


def _dynamic_batch(proto: onnx.ModelProto, notes: list[str]) -> None:
    value = proto.graph.input[0]
    dims = axes_of(value)
    if dims[0] is not None:
        notes.append(f"the fixed batch size {dims[0]} was made dynamic")
        free_reshapes(proto, dims[0])
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["N", *dims[1:]]))
    # Inferred shapes in the file may carry the old batch size.
    del proto.graph.value_info[:]
    output = proto.graph.output[0]
    output.type.tensor_type.ClearField("shape")


def free_reshapes(proto: onnx.ModelProto, batch: int) -> None:
    """Let the targets of Reshape leave the batch size open, be they initializers or constants."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    for node in proto.graph.node:
        known = node.op_type == "Reshape" and node.input[1] in tensors
        if not known or node.input[0] in tensors:
            continue
        target = numpy_helper.to_array(tensors[node.input[1]]).copy()
        if len(target) < 2 or target[0] != batch:
            continue
        target[0] = 0 if -1 in target else -1  # 0 takes over the size of the input
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(target, node.input[1]))


def _name_nodes(proto: onnx.ModelProto) -> None:
    taken: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
