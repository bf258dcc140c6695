"""Two splits as one, without reading or copying their images."""

from typing import Any

import numpy as np

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.images import ImageFiles

Images = np.ndarray | ImageFiles


def join(first: Split, second: Split, rows: np.ndarray | None = None) -> Split:
    """Return the samples of one split and of another, without reading or copying their images.

    Its ``x`` is read as a memory-mapped array is: at positions, a slice or a mask. An image that
    is stored in another type than the first split's is converted when it is read.

    Parameters
    ----------
    first, second : Split
    rows : ndarray of int, optional
        Positions of the samples of `second` that are taken, in order and with repetition; default
        each once.

    Returns
    -------
    Split
        With groups where both have them.

    Raises
    ------
    ModelfixError
        If the images differ in shape.
    """
    rows = np.arange(len(second)) if rows is None else np.asarray(rows, dtype=np.int64)
    both = first.group is not None and second.group is not None
    y, ids, group = (
        np.concatenate([getattr(first, name), getattr(second, name)[rows]])
        for name in ("y", "ids", "group" if both else "y")
    )
    # The few uses of `x` beside `images` are those that _Joined has.
    x: Any = _Joined(first.x, second.x, rows)
    return Split(x, y, group if both else None, ids)


class _Joined:
    """An array of images and rows of another, read piece by piece."""

    def __init__(self, first: Images, second: Images, rows: np.ndarray) -> None:
        if first.shape[1:] != second.shape[1:]:
            raise ModelfixError(
                f"images of shape {list(first.shape[1:])} and {list(second.shape[1:])} cannot be "
                "joined; give splits of one dataset."
            )
        self.first, self.second, self.rows = first, second, rows
        self.dtype = first.dtype
        self.shape = (len(first) + len(rows), *first.shape[1:])
        self.ndim = first.ndim
        self.nbytes = int(np.prod(self.shape)) * first.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(len(self))[index]
        if wanted.ndim == 0:
            return self[wanted[None]][0]
        result = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        early = wanted < len(self.first)
        result[early] = self.first[wanted[early]]
        late = self.rows[wanted[~early] - len(self.first)]
        result[~early] = _as_type(self.second[late], self.dtype)
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
