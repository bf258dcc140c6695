"""Two splits as one, without reading or copying their images."""

from typing import Any

import numpy as np

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError


def join(first: Split, second: Split) -> Split:
    """Return the samples of both splits, in order, without reading or copying their images.

    Its ``x`` is read as a memory-mapped array is: at positions, a slice or a mask. An image that
    is stored in another type than the first split's is converted when it is read.
    """
    both = first.group is not None and second.group is not None
    group = np.concatenate([first.group, second.group]) if both else None
    y, ids = (np.concatenate([getattr(s, name) for s in (first, second)]) for name in ("y", "ids"))
    # The few uses of `x` beside `images` are those that _Joined has.
    return Split(_Joined(first.x, second.x), y, group, ids)  # type: ignore[arg-type]


class _Joined:
    """Two arrays of images, one after the other, read piece by piece."""

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        if first.shape[1:] != second.shape[1:]:
            raise ModelfixError(
                f"images of shape {list(first.shape[1:])} and {list(second.shape[1:])} cannot be "
                "joined; give splits of one dataset."
            )
        self.parts = (first, second)
        self.dtype = first.dtype
        self.shape = (len(first) + len(second), *first.shape[1:])
        self.ndim = first.ndim
        self.nbytes = int(np.prod(self.shape)) * first.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self[rows[None]][0]
        first, second = self.parts
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        early = rows < len(first)
        result[early] = first[rows[early]]
        result[~early] = _as_type(second[rows[~early] - len(first)], self.dtype)
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)


def _as_type(images: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert between bytes from 0 to 255 and numbers from 0 to 1."""
    if images.dtype == dtype:
        return images
    if images.dtype == np.uint8:
        return images.astype(dtype) / 255
    return np.round(images * 255).astype(dtype) if dtype == np.uint8 else images.astype(dtype)
