"""A PyTorch module of the user's own code, with weights read as tensors alone."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from modelfix_core.errors import ModelfixError
from modelfix_core.foreign import Original
from modelfix_core.torch.exporting import exported

NESTED = ("state_dict", "model_state_dict")  # where trainers keep the state dict of a checkpoint


def read_torch(
    factory: str, weights: Path | None, shape: Sequence[int], layout: str | None = None
) -> Original:
    """Build the module, load its weights and export it to ONNX.

    Parameters
    ----------
    factory : str
        ``module:name`` or ``file.py:name`` of a module class, a function that returns a module, or
        a module. It is the user's own code and is run.
    weights : Path or None
        Safetensors, or a ``torch.save`` file of a state dict, which is read without unpickling
        anything but tensors.
    shape : sequence of int
        Channels, height and width of the user's images.
    layout : {"nchw", "nhwc"} or None

    Raises
    ------
    ModelfixError
        If the code, the module or the weights cannot be used.
    """
    module = _built(factory)
    if weights is not None:
        _load(module, factory, weights)
    module.eval()
    x = _accepted(module, factory, shape, layout)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = torch.from_numpy(batch).split(100)
            return torch.cat([module(part) for part in parts]).numpy()

    notes = [] if weights else ["no --weights were given: the module is as its factory makes it"]
    return Original(factory, exported(module, x), run, notes=notes)


def _built(factory: str) -> nn.Module:
    place, _, name = factory.rpartition(":")
    code = _imported(place, factory)
    made = getattr(code, name, None)
    if made is None:
        known = sorted(n for n, value in vars(code).items() if _of(code, value))
        raise ModelfixError(
            f"{factory}: {place} has no {name!r}; it has {', '.join(known) or 'no classes'}."
        )
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:
            raise ModelfixError(
                f"{factory}: calling {name}() without arguments failed ({_first(error)}); give a "
                "function that returns the module."
            ) from error
    if not isinstance(made, nn.Module):
        raise ModelfixError(
            f"{factory}: gives a {type(made).__name__}; expected a torch.nn.Module."
        )
    return made


def _of(code: ModuleType, value: Any) -> bool:
    return callable(value) and getattr(value, "__module__", None) == code.__name__


def _imported(place: str, factory: str) -> ModuleType:
    path = Path(place)
    try:
        if path.suffix != ".py":
            return importlib.import_module(place)
        if not path.is_file():
            raise ModelfixError(f"{path}: does not exist; give --model file.py:factory.")
        sys.path.insert(0, str(path.parent.resolve()))  # the file may import its neighbours
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ModelfixError(f"{path}: is no Python file.")
        code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code)
        return code
    except ModelfixError:
        raise
    except ModuleNotFoundError as error:
        raise ModelfixError(
            f"{factory}: the module {error.name!r} is not found from this folder and not in the "
            "environment that converts PyTorch models; give file.py:factory, or export the model "
            "to ONNX where that module is installed."
        ) from error
    except Exception as error:  # whatever the user's code raises
        raise ModelfixError(f"{factory}: importing {place} failed ({_first(error)}).") from error


def _load(module: nn.Module, factory: str, path: Path) -> None:
    state = _state(path)
    wanted = module.state_dict()
    if state.keys() != wanted.keys():
        missing, unknown = wanted.keys() - state.keys(), state.keys() - wanted.keys()
        raise ModelfixError(
            f"{path}: does not hold the weights of {factory}: missing {_some(missing)}; unknown "
            f"{_some(unknown)}."
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ModelfixError(
                f"{path}: {name} has shape {list(state[name].shape)} where {factory} has "
                f"{list(tensor.shape)}; make the module as it was trained."
            )
    module.load_state_dict(state)


def _state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ModelfixError(f"{path}: does not exist; give a safetensors or state-dict file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelfixError(
                f"{path}: is not a readable safetensors file ({_first(error)})."
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own kinds
        raise ModelfixError(
            f"{path}: holds more than tensors, or is damaged, and is not loaded; save "
            "module.state_dict() with torch.save or safetensors."
        ) from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise ModelfixError(f"{path}: holds no state dict; save module.state_dict().")
    return dict(content)


def _accepted(
    module: nn.Module, factory: str, shape: Sequence[int], layout: str | None
) -> torch.Tensor:
    """Return two images in the shape that the module takes: as they are, else as vectors."""
    inner = (*shape[1:], shape[0]) if layout == "nhwc" else tuple(shape)
    reasons = []
    for target in (inner, (int(np.prod(shape)),)):
        x = torch.rand(2, *target, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                scores = module(x)
        except Exception as error:  # whatever the user's code raises
            reasons.append(_first(error))
            continue
        if isinstance(scores, torch.Tensor):
            return x
        reasons.append(f"its forward gives a {type(scores).__name__}, expected a tensor [N, K]")
    raise ModelfixError(
        f"{factory}: cannot be run on images of shape {list(shape)} (channels, height, width): "
        f"{reasons[0]}."
    )


def _some(names: Any) -> str:
    listed = sorted(names)
    rest = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (", ".join(listed[:3]) or "nothing") + rest


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
