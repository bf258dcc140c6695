"""The model beside an earlier version of itself: what it unlearned and what it learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from modelfix_core.dataset import Split
from modelfix_core.errors import Failure
from modelfix_core.keras import KerasModel, predict
from modelfix_core.model import Model


@dataclass(frozen=True)
class Comparison:
    """The model and an earlier version of it on the repair split.

    Attributes
    ----------
    earlier : mapping of str to ndarray
        Every initializer as it was.
    right_before : ndarray of bool, [N]
    predicted : ndarray of int64, [N]
        Classes that the model predicts now.
    y : ndarray of int64, [N]
    """

    earlier: Mapping[str, np.ndarray]
    right_before: np.ndarray
    predicted: np.ndarray
    y: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which inputs the model gets right now, [N]."""
        return self.predicted == self.y

    @property
    def degraded(self) -> np.ndarray:
        """Which inputs were right and are wrong now, [N]."""
        return self.right_before & ~self.right

    @property
    def improved(self) -> np.ndarray:
        """Which inputs were wrong and are right now, [N]."""
        return ~self.right_before & self.right


def compare(
    net: KerasModel,
    history: Sequence[Path],
    inputs: Split,
    prev: Literal["last", "best"] | int = "last",
) -> Comparison:
    """Compare the model with an earlier version of its training.

    Parameters
    ----------
    net : KerasModel
        Holds the model's weights before and after.
    history : sequence of Path
        Models of the training epochs, oldest first.
    inputs : Split
    prev : {"last", "best"} or int
        The version just before the model; the one that was right on most inputs that are wrong
        now, the latest of equals; or a position in the history, from 1.

    Raises
    ------
    Failure
        If no input degraded, as when every version has the weights of the model.
    """
    predicted = predict(net, inputs).argmax(axis=1)
    wrong = predicted != inputs.y
    paths = [history[prev - 1]] if isinstance(prev, int) else before(net.model, history)
    chosen, chosen_right = None, np.zeros(len(inputs), dtype=bool)
    for path in reversed(paths if prev == "best" else paths[-1:]):
        version = Model.load(path)
        right = _right(net, version, inputs)
        # Strictly more, from the latest to the oldest: the latest of equals stays.
        if chosen is None or right[wrong].sum() > chosen_right[wrong].sum():
            chosen, chosen_right = version, right
    if chosen is None or not chosen_right[wrong].any():
        raise Failure(
            "no degraded input: nothing in the repair split that the model gets wrong was right in "
            "the earlier version"
        )
    return Comparison(chosen.weights, chosen_right, predicted, inputs.y)


def before(model: Model, history: Sequence[Path]) -> Sequence[Path]:
    """Return the versions that came before the model.

    Where training kept the weights of its best epoch, the model equals a version of the history;
    that version and what follows it are not earlier. A history without it is earlier as a whole.
    """
    equal = [_equal(model, Model.load(path)) for path in history]
    end = len(equal) - equal[::-1].index(True) if True in equal else len(equal)
    while end and equal[end - 1]:
        end -= 1
    return history[:end]


def _equal(model: Model, version: Model) -> bool:
    return all(np.array_equal(model.weights[name], w) for name, w in version.weights.items())


def _right(net: KerasModel, version: Model, inputs: Split) -> np.ndarray:
    """Return what an earlier version gets right; it runs in the network of the model."""
    net.set_weights({name: w for name, w in version.weights.items() if name in net.tensors})
    try:
        return predict(net, inputs).argmax(axis=1) == inputs.y
    finally:
        net.reset()
