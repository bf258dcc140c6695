"""PyTorch bridge: models as trainable modules and back, and fast tools on their layers."""

from modelfix_core.torch.access import PrefixCache, batches, gradients, predict
from modelfix_core.torch.bridge import TorchModel, load
from modelfix_core.torch.exporting import export

__all__ = [
    "PrefixCache",
    "TorchModel",
    "batches",
    "export",
    "gradients",
    "load",
    "predict",
]
