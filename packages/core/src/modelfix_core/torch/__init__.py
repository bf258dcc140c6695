"""PyTorch bridge: models as trainable modules and back, and fast tools on their layers."""

from modelfix_core.torch.access import PrefixCache, batches, gradients, predict
from modelfix_core.torch.bridge import TorchModel, load
from modelfix_core.torch.exporting import export
from modelfix_core.torch.population import Population

__all__ = [
    "Population",
    "PrefixCache",
    "TorchModel",
    "batches",
    "export",
    "gradients",
    "load",
    "predict",
]
