"""How an array lies in the ONNX file and in Keras, and the way from one to the other."""

from dataclasses import dataclass

import numpy as np

NHWC = (0, 2, 3, 1)  # axes of an ONNX tensor [N, C, H, W] in the order in which Keras holds them
NCHW = (0, 3, 1, 2)


@dataclass(frozen=True)
class Layout:
    """A reshape followed by a transposition; bit-exact both ways.

    Attributes
    ----------
    onnx : tuple of int
        Shape in the ONNX file.
    split : tuple of int
        Shape to which the ONNX array is reshaped before it is transposed.
    axes : tuple of int
        Permutation of `split` that gives the array as Keras holds it.
    """

    onnx: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    @classmethod
    def same(cls, shape: tuple[int, ...]) -> "Layout":
        """Return the layout of an array that Keras holds as the file does."""
        return cls(shape, shape, tuple(range(len(shape))))

    def to_keras(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of the ONNX file to the order of Keras."""
        return np.ascontiguousarray(np.reshape(array, self.split).transpose(self.axes))

    def to_onnx(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of Keras to the order of the ONNX file."""
        back = np.asarray(array).transpose(np.argsort(self.axes))
        return np.ascontiguousarray(back.reshape(self.onnx))


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the zeros that SAME (upper) padding puts before and after one axis."""
    out = -(-size // stride)
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2
