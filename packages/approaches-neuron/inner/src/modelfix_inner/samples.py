"""Faulty and clean inputs: which are drawn, and which clean one stands beside which faulty one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.torch import TorchModel, predict
from torch import Tensor

CHUNK = 2000  # images that are looked through for faults at once


class Samples(NamedTuple):
    """Inputs and labels on the device of the network.

    Attributes
    ----------
    x : Tensor of float32, [n, C, H, W]
    y : Tensor of int64, [n]
    """

    x: Tensor
    y: Tensor


def take(split: Split, index: np.ndarray, device: str | torch.device) -> Samples:
    """Load the images at positions `index` of a split."""
    y = torch.from_numpy(np.asarray(split.y[index], dtype=np.int64))
    return Samples(torch.from_numpy(split.images(index)).to(device), y.to(device))


def join(parts: Sequence[Samples]) -> Samples:
    """Put samples one behind the other."""
    return Samples(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


def misclassified(
    net: TorchModel,
    split: Split,
    order: np.ndarray,
    most: int,
    report: Callable[[int], None] = lambda _looked: None,
) -> np.ndarray:
    """Find misclassified images.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    split : Split
    order : ndarray of int64, [N]
        In which the images are looked through; the rest is left unread once enough are found.
    most : int
    report : callable, optional
        Gets the number of images looked through, again and again.

    Returns
    -------
    ndarray of int64, at most [most]
        Positions in the split, in that order.
    """
    found = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), CHUNK):
        if len(found) >= most:
            break
        report(start)
        part = order[start : start + CHUNK]
        wrong = predict(net, split.select(part)).argmax(axis=1) != split.y[part]
        found = np.concatenate([found, part[wrong]])
    return found[:most]


def partners(y: np.ndarray, clean: np.ndarray, order: np.ndarray, by_label: bool) -> np.ndarray:
    """Choose a clean image for every faulty input.

    Parameters
    ----------
    y : ndarray of int64, [n]
        Labels of the faulty inputs.
    clean : ndarray of int64, [N]
        Labels of the clean images.
    order : ndarray of int64, [N]
        In which the clean images are taken.
    by_label : bool
        Whether the n-th faulty input of a class gets the n-th clean image of that class, from the
        start again when they are used up, or simply the one at its own place.

    Returns
    -------
    ndarray of int64, [n]
        Positions among the clean images; shorter where they run out (zip ends with the shorter). A
        class without any clean image is given those of all classes.
    """
    if not by_label:
        return order[: len(y)]
    chosen = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        pool = order[clean[order] == label]
        chosen[rows] = np.resize(pool if len(pool) else order, len(rows))
    return chosen
