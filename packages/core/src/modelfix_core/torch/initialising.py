"""Fresh weights for a model that is known as a graph only."""

import math

import torch

from modelfix_core.torch.bridge import TorchModel


def reinitialise(net: TorchModel, seed: int) -> None:
    """Give every trainable weight a fresh value as torch's ``reset_parameters`` does.

    Convolutions and dense layers are uniform within 1 / sqrt(inputs of a unit), BatchNorm is the
    identity with fresh statistics, the slope of PReLU is 0.25. Constants of the graph stay.

    Parameters
    ----------
    net : TorchModel
        Changed in place.
    seed : int
    """
    rng = torch.Generator().manual_seed(seed)
    tensors, values = net.tensors, {}

    def uniform(name: str, inputs: int) -> None:
        bound = 1 / math.sqrt(inputs)
        values[name] = torch.empty(tensors[name].shape).uniform_(-bound, bound, generator=rng)

    for step in net.steps:
        names = [name for name in (*step.weights, *step.inputs[1:]) if name in tensors]
        if step.kind in ("Conv", "Gemm"):
            inputs = tensors[names[0]][0].numel()
            for name in names:
                uniform(name, inputs)
        elif step.kind == "BatchNormalization":
            for name, value in zip(names, (1.0, 0.0, 0.0, 1.0), strict=True):
                values[name] = torch.full(tensors[name].shape, value)
        elif step.kind == "MatMul":
            for name in names:
                uniform(name, tensors[name].shape[0])
        elif step.kind == "PRelu":
            for name in names:
                values[name] = torch.full(tensors[name].shape, 0.25)
    net.set_weights(values)
