"""A foreign model as ONNX: ``python -m modelfix_core.conversion MODEL --images FILE --to FILE``.

Run in the environment of the model's framework; the images, an NPZ file of ``x`` and ``y``, are
those on which the original and the new model are compared.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from modelfix_core import foreign
from modelfix_core.dataset import Dataset
from modelfix_core.errors import ModelfixError
from modelfix_core.foreign import Conventions, numbers
from modelfix_core.model import Model

USER_ERROR = 2


def convert(
    model: str | Path,
    dataset: Dataset,
    weights: Path | None = None,
    conventions: Conventions | None = None,
) -> Model:
    """Make a model of the profile of a file of any framework that this process can import.

    Parameters
    ----------
    model : str or Path
        ONNX or Keras file, or a PyTorch factory (``module:name``, ``file.py:name``).
    dataset : Dataset
        Images as the model is to take them, with labels.
    weights : Path, optional
        State dict of the PyTorch module.
    conventions : Conventions, optional
        What the model expects of its images; what is left out is found out.

    Raises
    ------
    ModelfixError
        If the model cannot be read, does not fit the images or answers otherwise once converted.
    """
    conventions = conventions or Conventions()
    shape = next(iter(dataset.splits.values())).x.shape[1:]
    original = foreign.read(model, weights, shape, conventions.layout)
    return foreign.adopt(original, dataset, conventions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the model named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modelfix_core.conversion")
    parser.add_argument("model", help="Keras file, or module:factory of PyTorch")
    parser.add_argument("--weights", type=Path, help="state dict of the PyTorch module")
    parser.add_argument("--images", type=Path, required=True, help="NPZ file of x and y")
    parser.add_argument("--to", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--scale", type=float, help="value of a white pixel: 1 or 255")
    parser.add_argument("--mean", type=numbers, help="per channel, in the units of --scale")
    parser.add_argument("--std", type=numbers, help="per channel, in the units of --scale")
    parser.add_argument("--layout", choices=["nchw", "nhwc"], help="order of the model's axes")
    try:
        options = parser.parse_args(arguments)
        conventions = Conventions(options.scale, options.mean, options.std, options.layout)
        dataset = Dataset.whole(options.images)
        converted = convert(options.model, dataset, options.weights, conventions)
        converted.save(options.to)
    except ModelfixError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    for note in converted.notes:
        print(f"note: {note}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
