"""The user's own model and data on the command line: their options, in one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

PANEL = "Your own model and data"


class Layout(StrEnum):
    """Order of the axes of a model's images."""

    NCHW = "nchw"
    NHWC = "nhwc"


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=PANEL, **settings)


Name = Annotated[str | None, _option("--name", help="How to call the subject.")]
ModelSource = Annotated[
    str | None,
    _option(
        "--model", "-m",
        help="An ONNX or Keras file, or a PyTorch factory (module:name or file.py:name).",
    ),
]  # fmt: skip
Weights = Annotated[
    Path | None, _option("--weights", help="State dict of the PyTorch module (safetensors, .pt).")
]
Data = Annotated[
    Path | None,
    _option("--data", "-d", help="Class folders, images with --labels, NPZ, NPY, or Parquet."),
]
Labels = Annotated[
    Path | None, _option("--labels", help="Labels that lie apart: a CSV (file,label) or y.npy.")
]
Classes = Annotated[
    str | None,
    _option("--classes", help="Class names in the order of the model's outputs: cat,dog,owl."),
]
GroupColumn = Annotated[
    str | None, _option("--group-column", help="Column of the sensitive attribute.")
]
Risk = Annotated[
    list[str] | None,
    _option("--risk", help="A YAML file (class: weight) or CLASS=WEIGHT; repeatable."),
]
Scale = Annotated[
    float | None, _option("--scale", help="What a white pixel is for the model: 1 or 255.")
]
Mean = Annotated[
    str | None, _option("--mean", help="Subtracted per channel, in the units of --scale.")
]
Std = Annotated[str | None, _option("--std", help="Divides per channel, after --mean.")]
LayoutOption = Annotated[
    Layout | None, _option("--layout", help="Order of the axes of the model's images.")
]
History = Annotated[
    Path | None, _option("--history", help="Folder of ONNX models of the training epochs.")
]


@dataclass(frozen=True)
class Own:
    """What the user said of their model and data; None was left out."""

    name: str | None = None
    model: str | None = None
    weights: Path | None = None
    data: Path | None = None
    labels: Path | None = None
    classes: str | None = None
    group_column: str | None = None
    risk: Sequence[str] | None = None
    scale: float | None = None
    mean: str | None = None
    std: str | None = None
    layout: Layout | None = None
    history: Path | None = None

    @property
    def given(self) -> bool:
        """Whether anything was said: then all that is needed must be."""
        return any(value for value in vars(self).values())

    def check(self) -> tuple[str, str]:
        """Return the subject's name and the model, or raise `ModelfixError` for what is missing."""
        from modelfix_core.errors import ModelfixError

        if self.model is None or self.data is None:
            raise ModelfixError(
                "give a named subject, or your own with both --model (ONNX, Keras, or module:name "
                "of PyTorch) and --data (a folder, NPZ, NPY or Parquet)."
            )
        place, _, factory = self.model.rpartition(":")
        return self.name or (factory if place else Path(self.model).stem), self.model

    def arguments(self) -> list[str]:
        """Return the arguments of ``python -m modelfix_core.subjects own``."""
        name, _ = self.check()
        plain = {key: value for key, value in vars(self).items() if key not in ("risk", "name")}
        pairs = {f"--{key.replace('_', '-')}": value for key, value in plain.items()}
        risks = [f"--risk={name}={weight!r}" for name, weight in read_risks(self.risk or ())]
        given = [f"{key}={value}" for key, value in pairs.items() if value is not None]
        return [f"--name={name}", *given, *risks]


def read_risks(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Read YAML files and ``CLASS=WEIGHT`` texts as pairs of class and weight."""
    return [pair for text in texts for pair in (_file(text) if _is_file(text) else [_pair(text)])]


def _is_file(text: str) -> bool:
    return Path(text).suffix.lower() in (".yaml", ".yml") or Path(text).is_file()


def _pair(text: str) -> tuple[str, float]:
    from modelfix_core.errors import ModelfixError

    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise ModelfixError(
            f"--risk {text!r}: expected CLASS=WEIGHT, such as --risk cat=2, or a YAML file."
        ) from None


def _file(text: str) -> list[tuple[str, float]]:
    import yaml
    from modelfix_core.errors import ModelfixError

    try:
        content = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelfixError(f"{text}: is no readable YAML file ({reason}).") from error
    if not isinstance(content, dict) or not content:
        raise ModelfixError(f"{text}: expected lines `class: weight`, such as `cat: 2`.")
    for name, weight in content.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ModelfixError(f"{text}: the weight of {name!r} is {weight!r}; expected a number.")
    return [(str(name), float(weight)) for name, weight in content.items()]
