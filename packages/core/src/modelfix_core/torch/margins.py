"""By how much labels win, on tensors."""

import torch
from torch import Tensor


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Compute by how much the label of each input wins; negative where another class does.

    Parameters
    ----------
    logits : Tensor, [N, K]
    y : Tensor of int64, [N]

    Returns
    -------
    Tensor, [N]
        As `modelfix_core.margins.margins`, in the type of the logits and on their device.
    """
    label = y[:, None]
    return logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).amax(dim=1)
