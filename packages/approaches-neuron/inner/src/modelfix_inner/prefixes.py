"""What the repaired layers read of some inputs, computed once for as long as it stays the same."""

from collections.abc import Mapping, Sequence

import torch
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.torch import TorchModel
from torch import Tensor


class Prefixes:
    """Values before layers of a network that is trained one layer at a time.

    A pass trains the layer of one block and changes what all deeper blocks read, but nothing that
    it or shallower ones read. So the values are kept as a stack, from the images up: each level is
    computed from the one below it, and the passes drop what lies above them.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    x : Tensor, [n, C, H, W]
    batch_size : int
        Inputs that run at once.
    memory : int
        Bytes of the values that may be kept; what does not fit is computed when it is asked for.
    """

    def __init__(
        self, net: TorchModel, x: Tensor, batch_size: int, memory: int = DEFAULT_MEMORY
    ) -> None:
        self.net, self.batch_size, self.memory = net, batch_size, memory
        self._levels: list[tuple[int, Mapping[str, Tensor]]] = [(-1, {net.model.input_name: x})]
        self._count = len(x)

    def drop_above(self, depth: int) -> None:
        """Forget what the layer at `depth` changes."""
        while self._levels[-1][0] > depth:
            self._levels.pop()

    def keep(self, depth: int, names: Sequence[str]) -> None:
        """Keep the tensors that the layer at `depth` reads, where they fit.

        Parameters
        ----------
        depth : int
            0 or more; nothing deeper may be kept now.
        names : sequence of str
        """
        if self._levels[-1][0] == depth:
            return
        first = self.rows(names, slice(0, 1))
        kept = [tensor for _, level in self._levels[1:] for tensor in level.values()]
        wanted = self._count * sum(t.nbytes for t in first.values())
        if wanted + sum(tensor.nbytes for tensor in kept) > self.memory:
            return
        starts = range(0, self._count, self.batch_size)
        parts = [self.rows(names, slice(start, start + self.batch_size)) for start in starts]
        level = {name: torch.cat([part[name] for part in parts]) for name in names}
        self._levels.append((depth, level))

    def rows(self, names: Sequence[str], rows: slice) -> dict[str, Tensor]:
        """Return tensors of some inputs, computed from the highest level where it lacks them."""
        known = {name: tensor[rows] for name, tensor in self._levels[-1][1].items()}
        with torch.no_grad():
            return self.net.run(known, list(names))
