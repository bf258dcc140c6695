"""The stylised copies of the training images: made once, before the fine-tuning."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from modelfix_core.dataset import Split
from modelfix_core.files import atomic_path
from modelfix_core.joining import join
from torch import Tensor

BATCH = 512
BATCH_VALUES = 512 * 3 * 32 * 32  # so that large images come in smaller batches

# From images [N, C, H, W] in [0, 1] and the positions of their styles [N] to stylised images.
Styliser = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[str], None]


def stylised(
    split: Split,
    rows: np.ndarray,
    index: np.ndarray,
    styliser: Callable[[], Styliser],
    *,
    device: str = "cpu",
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    progress: Progress = lambda note: None,
) -> np.ndarray:
    """Stylise images of a split.

    Parameters
    ----------
    split : Split
    rows : ndarray of int, [M]
        Which of its images.
    index : ndarray of int, [M]
        Position of the style of each.
    styliser : callable
        Makes the styliser; not called where the copies are there already.
    device : str
    folder : Path, optional
        Keeps the copies for the next run; without one they are held in memory.
    identity : dict, optional
        Everything that decides the copies, as JSON can hold it.
    progress : callable

    Returns
    -------
    ndarray of uint8, [M, C, H, W]
    """
    shape = (len(rows), *split.x.shape[1:])
    if folder is None:
        result = np.empty(shape, np.uint8)
        _fill(result, split, rows, index, styliser(), device, progress)
        return result
    name = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f"stylised-{name}.npy"
    if not path.exists():
        made = styliser()
        with atomic_path(path) as temporary:
            result = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            _fill(result, split, rows, index, made, device, progress)
            result.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _fill(result, split, rows, index, styliser: Styliser, device, progress: Progress) -> None:
    size = int(np.clip(BATCH_VALUES // np.prod(split.x.shape[1:]), 1, BATCH))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        images = torch.from_numpy(split.images(rows[part])).to(device)
        changed = styliser(images, torch.from_numpy(index[part]).to(device))
        result[part] = changed.mul(255).round_().to(torch.uint8).cpu().numpy()
        progress(f"stylised {min(start + size, len(rows))} of {len(rows)} images")


def copies_of(split: Split, rows: np.ndarray, images: np.ndarray) -> Split:
    """Return one copy of each image of a split: the stylised one, or where none is, itself.

    Parameters
    ----------
    split : Split
    rows : ndarray of int, [M]
    images : ndarray of uint8, [M, C, H, W]
        The stylised copies of these rows.
    """
    if len(rows) == len(split):
        return Split(images, split.y)
    place = np.arange(len(split))
    place[rows] = len(split) + np.arange(len(rows))
    x: Any = _Rows(join(split, Split(images, split.y[rows])).x, place)
    return Split(x, split.y)


class _Rows:
    """Rows of an array of images, read when they are asked for."""

    def __init__(self, images: Any, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.dtype, self.ndim = images.dtype, images.ndim
        self.shape = (len(rows), *images.shape[1:])
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.images[self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)
