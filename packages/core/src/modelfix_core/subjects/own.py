"""A subject from one's own model and data."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from modelfix_core.dataset import Dataset
from modelfix_core.errors import ModelfixError
from modelfix_core.fixing import check_fits
from modelfix_core.model import Model
from modelfix_core.subject import HISTORY_FOLDER, file_hash
from modelfix_core.subjects.catalogue import CATALOGUE, REVISION
from modelfix_core.subjects.prepare import Prepared, build_once, finish

EPSILON = 8 / 255  # customary for natural images
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def prepare_own(
    name: str,
    model_path: str | Path,
    data_path: str | Path,
    root: str | Path,
    seed: int = 0,
    *,
    attack_epsilon: float = EPSILON,
    sensitive_attribute: str = "group",
    risks: Mapping[str, float] | None = None,
    history: str | Path | None = None,
) -> Prepared:
    """Prepare ``<root>/<name>`` from an ONNX model and labelled images.

    Parameters
    ----------
    name : str
        Letters, digits, ``.``, ``_`` and ``-``; not one of the catalogue.
    model_path : str or Path
        ONNX file.
    data_path : str or Path
        Folder with a sub-folder of images per class, or an NPZ file with ``x`` and ``y`` and
        perhaps ``group`` and ``classes``. It is split 60/10/15/15 %, stratified by class.
    root : str or Path
    seed : int
        Of the splits.
    attack_epsilon : float
        Radius of the attack, in pixel space.
    sensitive_attribute : str
        What ``group`` of the NPZ file means.
    risks : mapping of str to float, optional
        Weight of a mistake by class name.
    history : str or Path, optional
        Folder of ONNX models of the training epochs, in the order of their names.

    Raises
    ------
    ModelfixError
        If the model cannot be read or the data do not fit it.
    """
    model_path, data_path = Path(model_path), Path(data_path)
    if name in CATALOGUE or not NAME.fullmatch(name):
        raise ModelfixError(
            f"{name!r} cannot be the name of your subject; use letters, digits, '.', '_' and '-', "
            f"and none of {', '.join(CATALOGUE)}."
        )
    if not 0 <= attack_epsilon <= 1:
        raise ModelfixError(f"the attack epsilon is {attack_epsilon:g}; it must lie in 0 to 1.")
    model = Model.load(model_path)
    epochs = _epochs(history, model)
    identity = _identity(
        data_path,
        [model.hash, *(epoch.hash for epoch in epochs)],
        [name, seed, attack_epsilon, sensitive_attribute, risks],
    )

    def build(folder: Path) -> None:
        started = perf_counter()
        dataset = _dataset(model, data_path, seed)
        dataset = replace(
            dataset,
            risks=_by_label(risks, dataset.classes),
            group_name=None if dataset["repair"].group is None else sensitive_attribute,
        )
        check_fits(model, dataset)
        dataset.save(folder)
        for number, epoch in enumerate(epochs, 1):
            epoch.save(folder / HISTORY_FOLDER / f"epoch-{number:02d}.onnx")
        finish(
            folder,
            model.with_metadata(labels=json.dumps(list(dataset.classes))),
            dataset,
            device="cpu",
            seconds={"data": perf_counter() - started},
            source={"model": model_path.name, "origin": data_path.name},
            name=name,
            summary=f"Own model {model_path.name} with own images {data_path.name}.",
            dataset=data_path.name,
            architecture=model_path.stem,
            attack_epsilon=attack_epsilon,
            seed=seed,
            identity=identity,
        )

    return build_once(Path(root) / name, identity, build)


def _identity(data: Path, hashes: list[str], settings: list) -> str:
    """Return a content hash of the models, the settings and every file of the data."""
    files = sorted(p for p in data.rglob("*") if p.is_file()) if data.is_dir() else [data]
    try:
        content = [[path.parent.name, path.name, file_hash(path)] for path in files]
    except OSError as error:
        raise ModelfixError(
            f"{error.filename}: cannot be read ({error.strerror}); give a folder with a sub-folder "
            "of images per class, or an NPZ file."
        ) from error
    text = json.dumps([REVISION, settings, hashes, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _epochs(history: str | Path | None, model: Model) -> list[Model]:
    """Read the models of the history, which must have the weights of `model`."""
    if history is None:
        return []
    epochs = [Model.load(path) for path in sorted(Path(history).glob("*.onnx"))]
    if not epochs:
        raise ModelfixError(f"{history}: holds no ONNX files; expected the models of the epochs.")
    shapes = {name: array.shape for name, array in model.weights.items()}
    for epoch in epochs:
        if {name: array.shape for name, array in epoch.weights.items()} != shapes:
            raise ModelfixError(
                f"{epoch.name}: its weights differ in name or shape from those of {model.name}; "
                "give models of the same training."
            )
    return epochs


def _dataset(model: Model, data: Path, seed: int) -> Dataset:
    dataset = Dataset.whole(data).divide(seed)
    labels = model.labels
    if labels is None or labels == list(dataset.classes) or set(labels) != set(dataset.classes):
        return dataset
    # Folders come in the order of their names; the model knows the order of its logits.
    position = np.array([labels.index(name) for name in dataset.classes])
    splits = {n: replace(split, y=position[split.y]) for n, split in dataset.splits.items()}
    return replace(dataset, splits=splits, classes=labels)


def _by_label(risks: Mapping[str, float] | None, classes: Sequence[str]) -> dict[int, float] | None:
    if risks is None:
        return None
    for name, weight in risks.items():
        if name not in classes:
            raise ModelfixError(
                f"there is no class {name!r} to give a risk; the classes are {', '.join(classes)}."
            )
        if not weight >= 0:
            raise ModelfixError(f"the risk of {name!r} is {weight:g}; it must be 0 or more.")
    return {list(classes).index(name): float(weight) for name, weight in risks.items()}
