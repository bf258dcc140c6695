"""The original and the fixed model with a rule of post-processing as one ONNX graph."""

import numpy as np
import onnx
from modelfix_core import profile
from modelfix_core.errors import Unadaptable
from modelfix_core.model import Model
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper

from modelfix_metrics.combining import Mixture, MoreConfident

PREFIX = "modelfix.fixed/"  # of the fixed model's tensors that the original has not
OWN = "modelfix.combined/"


def fuse(
    original: Model,
    fixed: Model,
    rule: Mixture | MoreConfident,
    probabilities: tuple[bool, bool] = (False, False),
) -> Model:
    """Return one model that answers with log r of `rule`.

    What both models compute alike, such as the layers before the first that was changed, is
    computed once.

    Parameters
    ----------
    original, fixed : Model
    rule : Mixture or MoreConfident
    probabilities : tuple of bool
        Whether the outputs of the original and of the fixed model are probabilities.

    Returns
    -------
    Model
        With the original's metadata.

    Raises
    ------
    Unadaptable
        If the models cannot stand in one graph: other operator sets, inputs or control flow.
    """
    proto, other = original.proto(), fixed.proto()
    _check(proto, other, original, fixed)
    after = _merge(proto.graph, other.graph)
    before = original.output_name
    combiner = _Combiner(proto.graph, profile.opset_of(proto))
    log_p = combiner.log_probabilities(before, probabilities[0], _temperature(rule, "original"))
    log_q = combiner.log_probabilities(after, probabilities[1], _temperature(rule, "fixed"))
    output = combiner.apply(rule, log_p, log_q)
    value = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", fixed.num_classes])
    proto.graph.output[0].CopyFrom(value)
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto)
    return Model(proto, f"{fixed.name} combined with its original")


def _temperature(rule: Mixture | MoreConfident, model: str) -> float:
    return getattr(rule, model) if isinstance(rule, Mixture) else 1.0


def _check(proto: onnx.ModelProto, other: onnx.ModelProto, original: Model, fixed: Model) -> None:
    versions = profile.opset_of(proto), profile.opset_of(other)
    if versions[0] != versions[1]:
        raise Unadaptable(
            f"the original model has opset {versions[0]} and the fixed one {versions[1]}: they "
            "cannot stand in one graph."
        )
    shapes = original.input_shape, fixed.input_shape
    if shapes[0] != shapes[1] or original.num_classes != fixed.num_classes:
        raise Unadaptable("the original and the fixed model differ in input shape or classes.")
    graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    for node in (*proto.graph.node, *other.graph.node):
        if any(attribute.type in graphs for attribute in node.attribute):
            raise Unadaptable(f"node {node.name!r} ({node.op_type}) has a graph of its own.")


def _merge(graph: GraphProto, other: GraphProto) -> str:
    """Add to `graph` what `other` computes and `graph` does not; return its output's name."""
    known = {_content(tensor): tensor.name for tensor in graph.initializer}
    names = {"": "", other.input[0].name: graph.input[0].name}
    for tensor in other.initializer:
        content = _content(tensor)
        if content not in known:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = known[content] = PREFIX + tensor.name
        names[tensor.name] = known[content]
    computed = {_operation(node, list(node.input)): list(node.output) for node in graph.node}
    for node in other.node:
        inputs = [names[name] for name in node.input]
        operation = _operation(node, inputs)
        if operation not in computed:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = PREFIX + node.name
            outputs = [PREFIX + name if name else "" for name in node.output]
            del copy.input[:], copy.output[:]
            copy.input.extend(inputs)
            copy.output.extend(outputs)
            computed[operation] = outputs
        names.update(zip(node.output, computed[operation], strict=True))
    return names[other.output[0].name]


def _content(tensor: onnx.TensorProto) -> tuple:
    """Identify an initializer by name and value: equal values of other layers stay their own."""
    array = numpy_helper.to_array(tensor)
    return tensor.name, array.dtype.str, array.shape, array.tobytes()


def _operation(node: NodeProto, inputs: list[str]) -> tuple:
    attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
    return node.op_type, node.domain, tuple(inputs), attributes, len(node.output)


class _Combiner:
    """Appends the nodes of a rule to a graph."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self.count = 0

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        """Append a node and return its output."""
        self.count += 1
        name = f"{OWN}{operator}_{self.count}"
        self.graph.node.append(
            helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        )
        return name

    def constant(self, value: float | list[int]) -> str:
        """Append an initializer, float32 or int64, and return its name."""
        self.count += 1
        name = f"{OWN}constant_{self.count}"
        array = np.array(value, dtype=np.int64 if isinstance(value, list) else np.float32)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def log_probabilities(self, outputs: str, probabilities: bool, temperature: float) -> str:
        """Append ``log softmax(outputs / temperature)``."""
        if probabilities:
            tiny = self.constant(float(np.finfo(np.float32).tiny))
            outputs = self.node("Log", self.node("Max", outputs, tiny))
        if temperature != 1:
            outputs = self.node("Div", outputs, self.constant(temperature))
        return self.node("LogSoftmax", outputs, axis=1)

    def apply(self, rule: Mixture | MoreConfident, log_p: str, log_q: str) -> str:
        """Append the rule and return its output."""
        if isinstance(rule, MoreConfident):
            old = self.node("Greater", self.largest(log_p), self.largest(log_q))
            return self.node("Where", old, log_p, log_q)
        if rule.weight in (0, 1):
            return self.node("Identity", log_p if rule.weight else log_q)
        old = self.node("Add", log_p, self.constant(float(np.log(rule.weight))))
        new = self.node("Add", log_q, self.constant(float(np.log1p(-rule.weight))))
        # log(exp a + exp b) = b + softplus(a - b) never overflows, nor does its gradient.
        return self.node("Add", new, self.node("Softplus", self.node("Sub", old, new)))

    def largest(self, log_probabilities: str) -> str:
        """Append the largest value of each row, [N, 1]."""
        if self.opset < 18:
            return self.node("ReduceMax", log_probabilities, axes=[1], keepdims=1)
        return self.node("ReduceMax", log_probabilities, self.constant([1]), keepdims=1)
