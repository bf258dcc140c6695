"""The constant normalisation at the head of a graph, which separates pixels from network inputs."""

from dataclasses import dataclass

import numpy as np
import onnx
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from onnx import numpy_helper


@dataclass(frozen=True)
class Normalisation:
    """``network input = scale * pixels + shift``.

    Attributes
    ----------
    scale, shift : ndarray of float64, [C, 1, 1]
    """

    scale: np.ndarray
    shift: np.ndarray

    @property
    def identity(self) -> bool:
        """Whether the network takes the pixels as they are."""
        return bool((self.scale == 1).all() and (self.shift == 0).all())


def normalisation_of(model: Model) -> Normalisation:
    """Return the normalisation at the head of `model`'s graph.

    It is the longest chain of Sub, Div, Mul and Add with constants (one number, or one per
    channel) from the input, each the only user of the value before; without such nodes it is the
    identity.

    Parameters
    ----------
    model : Model

    Returns
    -------
    Normalisation

    Raises
    ------
    ModelfixError
        If it multiplies a channel by 0 and so cannot be inverted.
    """
    graph = model.proto().graph
    constants = _constants(graph)
    channels = model.input_shape[0]
    scale, shift = np.ones((channels, 1, 1)), np.zeros((channels, 1, 1))
    value = model.input_name
    while step := _step(graph, value, constants, channels):
        node, constant, leads = step
        if node.op_type == "Add":
            shift = shift + constant
        elif node.op_type == "Mul":
            scale, shift = scale * constant, shift * constant
        elif node.op_type == "Div":
            scale, shift = scale / constant, shift / constant
        elif leads:  # constant - value
            scale, shift = -scale, constant - shift
        else:
            shift = shift - constant
        value = node.output[0]
    if not (np.isfinite(scale).all() and scale.all()):
        raise ModelfixError(
            f"{model.name}: its normalisation multiplies a channel by 0 or infinity, so the attack "
            "cannot run in its input space; evaluate without asr_study."
        )
    return Normalisation(scale, shift)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return constants


def _step(graph, value, constants, channels) -> tuple[onnx.NodeProto, np.ndarray, bool] | None:
    """Return the next node of the chain, its constant [C, 1, 1] and whether that comes first."""
    users = [node for node in graph.node if value in node.input]
    if len(users) != 1 or users[0].op_type not in ("Sub", "Div", "Mul", "Add"):
        return None
    node = users[0]
    leads = node.input[1] == value
    other = node.input[0] if leads else node.input[1]
    if other not in constants or (leads and node.op_type == "Div"):
        return None
    constant = constants[other]
    if constant.size == 1:
        return node, np.full((channels, 1, 1), constant.item(), dtype=np.float64), leads
    per_channel = constant.ndim in (3, 4) and constant.shape[-3:] == (channels, 1, 1)
    if not per_channel or constant.size != channels:
        return None
    return node, constant.reshape(channels, 1, 1).astype(np.float64), leads
