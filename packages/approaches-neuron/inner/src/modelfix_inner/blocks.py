"""The blocks of a model: at each depth a feature that a probe reads and the layer repaired for it.

The authors name the blocks of their two networks by hand. Here they are found in the graph: it is
cut at every spatial down-sampling and behind every hidden dense layer, and only at tensors of its
*trunk*, through which everything passes on its way from the image to the logits.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from modelfix_core.errors import Unadaptable
from modelfix_core.model import ACTIVATIONS, Layer, Model
from onnx import NodeProto, helper

MOST = 7  # blocks; of a model with more, the deepest
POOLS = {"MaxPool", "AveragePool", "LpPool"}
GLOBAL_POOLS = {"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "ReduceMean", "ReduceMax"}
# What follows a cut and maps its values one by one belongs to the tap: a probe reads activated,
# and where a dense layer is next, flattened values.
FOLLOWING = {*ACTIVATIONS, "BatchNormalization", "Flatten", "Reshape"}


@dataclass(frozen=True)
class Block:
    """What is probed and repaired at one depth.

    Attributes
    ----------
    layer : Layer
        The deepest hidden layer before the tap; its weight and bias are repaired.
    tap : str
        Tensor that the probe reads.
    """

    layer: Layer
    tap: str


@dataclass(frozen=True)
class _Segment:
    """The nodes between two neighbouring tensors of the trunk."""

    source: str
    nodes: Sequence[NodeProto]
    target: str

    @property
    def operator(self) -> str | None:
        """Its only node's operator; None where there are several."""
        return self.nodes[0].op_type if len(self.nodes) == 1 else None

    @property
    def reduces(self) -> bool:
        """Whether height and width are divided.

        A global pool beside other nodes weighs channels (squeeze and excitation); it divides none.
        """
        strides = (max(_attribute(node, "strides", [1])) for node in self.nodes)
        return self.operator in GLOBAL_POOLS or max(strides) > 1

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a 1 x 1 convolution and nothing else."""
        kernel = _attribute(self.nodes[0], "kernel_shape", [])
        return self.operator == "Conv" and max(kernel, default=0) == 1


def find_blocks(model: Model) -> list[Block]:
    """Find the blocks of a model, the shallowest first.

    Parameters
    ----------
    model : Model
        Only its graph is read.

    Returns
    -------
    list of Block
        At most `MOST`, no two with the same layer, none with the classifier.

    Raises
    ------
    Unadaptable
        If there is no hidden convolution or dense layer on the way to the classifier.
    """
    layers = [layer for layer in model.layers() if layer.kind != "batchnorm"]
    segments = _before_classifier(model, layers)
    hidden = _hidden(model, layers)
    deepest = _deepest(segments, hidden)
    following = {s.source: s.target for s in segments if s.operator in FOLLOWING}
    blocks: dict[str, Block] = {}
    for tap in _cuts(segments, hidden):
        layer = deepest[tap]
        while tap in following:
            tap = following[tap]
        if layer is not None and layer.name not in blocks:
            blocks[layer.name] = Block(layer, tap)
    if not blocks:
        raise Unadaptable(
            "the model has no hidden convolution or dense layer on the way to its classifier, so "
            "that there is no depth to probe and repair"
        )
    return list(blocks.values())[-MOST:]


def _cuts(segments: Sequence[_Segment], hidden: Mapping[str, Layer]) -> Iterator[str]:
    """Yield the tensors at which the trunk is cut; the first cut behind a layer counts."""
    for before, segment in pairwise([None, *segments]):
        assert segment is not None, "only the first one has no predecessor"
        if segment.reduces and segment.operator in POOLS:
            # A pointwise convolution that feeds a pool only narrows what the block before made.
            narrowed = before is not None and before.is_pointwise
            yield before.source if before is not None and narrowed else segment.target
        elif segment.reduces:
            yield segment.source
        elif segment.operator == "Flatten" or any(
            node.op_type == "Gemm" and node.name in hidden for node in segment.nodes
        ):
            yield segment.target
    if segments:
        yield segments[-1].target


def _before_classifier(model: Model, layers: Sequence[Layer]) -> list[_Segment]:
    """Return the segments of the trunk in order, up to the last layer's input."""
    segments: list[_Segment] = []
    for segment in _segments(model):
        if layers and any(node.name == layers[-1].node for node in segment.nodes):
            break
        segments.append(segment)
    return segments


def _segments(model: Model) -> Iterator[_Segment]:
    """Cut the graph where a single tensor is alive that depends on the image."""
    nodes = model.proto().graph.node
    last = {name: i for i, node in enumerate(nodes) for name in node.input}
    last[model.output_name] = len(nodes)
    alive, source = {model.input_name}, model.input_name
    between: list[NodeProto] = []
    for position, node in enumerate(nodes):
        if not alive.intersection(node.input):
            continue  # it makes a constant
        between.append(node)
        alive.update(name for name in node.output if name in last)
        alive = {name for name in alive if last[name] > position}
        if len(alive) == 1:
            (target,) = alive
            yield _Segment(source, between, target)
            source, between = target, []


def _hidden(model: Model, layers: Sequence[Layer]) -> dict[str, Layer]:
    """Return the layers that may be repaired, by node."""
    uses = Counter(name for node in model.proto().graph.node for name in node.input)
    # A weight that several nodes share belongs to no single depth.
    return {layer.node: layer for layer in layers[:-1] if uses[layer.weight] == 1}


def _deepest(segments: Sequence[_Segment], hidden: Mapping[str, Layer]) -> dict[str, Layer | None]:
    """Return for each tensor of the trunk the layer with the most layers before it.

    By depth rather than position: a shortcut's convolution may come last in the graph, but what a
    residual block adds to it is made by deeper layers.
    """
    depth: Counter[str] = Counter()
    found: Layer | None = None
    greatest = 0
    deepest: dict[str, Layer | None] = {segment.source: None for segment in segments[:1]}
    for segment in segments:
        for node in segment.nodes:
            own = max((depth[name] for name in node.input), default=0) + (node.name in hidden)
            depth.update(dict.fromkeys(node.output, own))
            if node.name in hidden and own >= greatest:
                found, greatest = hidden[node.name], own
        deepest[segment.target] = found
    return deepest


def _attribute(node: NodeProto, name: str, default: list[int]) -> list[int]:
    values = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return list(values[0]) if values else default
