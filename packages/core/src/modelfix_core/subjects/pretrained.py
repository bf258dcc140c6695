"""Weights that come trained; torch is needed to read them alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelfix_core.errors import ModelfixError
from modelfix_core.subjects.sources.base import roots

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Attributes
    ----------
    file : str
        Its name, which ends with the first digits of its SHA-256.
    address : str
        Where it can be fetched.
    renamed : tuple of (str, str)
        Pattern of parameter names and what replaces it, for names of another age.
    """

    file: str
    address: str
    renamed: tuple[str, str]


WEIGHTS = {
    # The study took Keras' weights, which are the same network trained by the same authors.
    "densenet121-imagenet": Weights(
        "densenet121-a639ec97.pth",
        "https://download.pytorch.org/models/densenet121-a639ec97.pth",
        # norm.1 became norm1 when names could hold no dot any more.
        (r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."),
    ),
}


def load(network: "nn.Module", name: str, data: Path | None = None) -> None:
    """Put trained weights into a network, from the data folder, the cache or a download.

    Parameters
    ----------
    network : nn.Module
        Its parameters beside a ``normalise`` get the weights.
    name : str
        Key of `WEIGHTS`.
    data : Path, optional
        Searched first, as for the images.

    Raises
    ------
    ModelfixError
        If the file is found nowhere and cannot be downloaded, is damaged or does not fit.
    """
    weights = WEIGHTS[name]
    path = find(weights, data)
    state = _read(path) if path is not None else _download(weights, data)
    own = {key: value for key, value in network.state_dict().items() if "normalise." in key}
    renamed = {re.sub(*weights.renamed, key): value for key, value in state.items()}
    try:
        network.load_state_dict({**own, **renamed})
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelfixError(
            f"{path or weights.file}: does not fit the architecture ({reason}); fetch the file "
            f"from {weights.address} again."
        ) from error


def find(weights: Weights, data: Path | None = None) -> Path | None:
    """Return the file where it lies in the data folder or the cache, there or in ``weights``."""
    for root in roots(data):
        for path in (root / "weights" / weights.file, root / weights.file):
            if path.is_file():
                return path
    return None


def _read(path: Path) -> "Mapping[str, Tensor]":
    import torch

    try:
        # Tensors alone are read: nothing in the file is run.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelfixError(
            f"{path}: is not a readable file of weights ({reason}); fetch it again."
        ) from error


def _download(weights: Weights, data: Path | None) -> "Mapping[str, Tensor]":
    import torch

    folder = roots(data)[-1] / "weights"
    try:
        return torch.hub.load_state_dict_from_url(
            weights.address, str(folder), "cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise ModelfixError(
            f"the weights {weights.file} were not found and could not be downloaded ({error}); "
            f"fetch {weights.address} and put it into {roots(data)[0] / 'weights'}."
        ) from error
