"""From an ``nn.Module`` to a model after our profile, with BatchNorm and names kept."""

import copy
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from torch import nn

from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.torch.bridge import TOLERANCE

OPSET = 17


def export(
    module: nn.Module,
    input_shape: Sequence[int],
    classes: Sequence[str] | None = None,
    **metadata: object,
) -> Model:
    """Export a classifier to ONNX.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode; takes images [N, C, H, W] in [0, 1] and gives logits [N, K].
    input_shape : sequence of int
        Channels, height and width.
    classes : sequence of str, optional
        Class names, kept as ``modelfix.labels``.
    **metadata
        Provenance, kept as text under ``modelfix.<key>``.

    Returns
    -------
    Model
        Its initializers have the names of ``module.state_dict()``.

    Raises
    ------
    ModelfixError
        If the module is in training mode, cannot be exported, or onnxruntime's logits differ.
    """
    if any(part.training for part in module.modules()):
        raise ModelfixError("the module is in training mode; call module.eval() before the export.")
    module = copy.deepcopy(module).cpu()
    x = torch.from_numpy(np.random.default_rng(0).random((2, *input_shape), dtype=np.float32))
    model = Model(exported(module, x), type(module).__name__)
    values = {key: str(value) for key, value in metadata.items()}
    if classes is not None:
        values["labels"] = json.dumps([str(name) for name in classes])
    if values:
        model = model.with_metadata(**values)
    with torch.no_grad():
        expected = module(x).numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    if not np.allclose(model.predict(x.numpy()), expected, rtol=0, atol=TOLERANCE * scale):
        raise ModelfixError(
            "the exported ONNX model and the PyTorch module disagree on the logits; the module "
            "probably uses an operation that behaves differently when traced."
        )
    return model


def exported(module: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    """Trace `module` on `x` and return its graph, not yet brought to the profile."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), _dropout_kept():
            # The exporter that keeps BatchNorm and names is the older one, which announces its end.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (x,),
                buffer,
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
            )
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelfixError(f"the module cannot be exported to ONNX ({reason}).") from error
    return onnx.load_from_string(buffer.getvalue())


@contextmanager
def _dropout_kept() -> Iterator[None]:
    """Let the exporter write Dropout nodes, which it leaves out in evaluation mode."""

    @torch.onnx.symbolic_helper.parse_args("v", "f", "b")
    def dropout(graph, value, ratio, _training):
        return graph.op("Dropout", value, graph.op("Constant", value_t=torch.tensor(ratio)))

    torch.onnx.register_custom_op_symbolic("aten::dropout", dropout, OPSET)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::dropout", OPSET)
