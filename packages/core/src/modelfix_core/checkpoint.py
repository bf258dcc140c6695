"""Checkpoints: arrays and a JSON header in one NPZ file, which belongs to one run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelfix_core.files import atomic_path


def write_checkpoint(
    path: Path, identity: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : Path
        Ending in ``.npz``.
    identity : str
        Everything that decides the run; `read_checkpoint` takes no other run's file.
    header : mapping
        Values that JSON can hold.
    arrays : mapping of str to ndarray
    """
    text = json.dumps({"identity": identity, "names": list(arrays), "header": dict(header)})
    # Numbered, because NumPy's own keyword `allow_pickle` must not meet a name of the caller's.
    named: dict[str, Any] = {f"array_{n}": array for n, array in enumerate(arrays.values())}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=np.array(text), **named)


def read_checkpoint(
    path: Path, identity: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return header and arrays, or None where there is no checkpoint of that run."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        found = json.loads(str(file["header"]))
        if found["identity"] != identity:
            return None
        arrays = {name: file[f"array_{n}"] for n, name in enumerate(found["names"])}
    return found["header"], arrays
