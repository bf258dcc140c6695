"""A subject from one's own model and data."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

from modelfix_core import foreign, readers
from modelfix_core.dataset import Dataset
from modelfix_core.errors import ModelfixError
from modelfix_core.fixing import check_classes, check_fits
from modelfix_core.foreign import Conventions, Original
from modelfix_core.model import Model
from modelfix_core.readers import Listing
from modelfix_core.subject import HISTORY_FOLDER, file_hash
from modelfix_core.subjects.catalogue import CATALOGUE, REVISION
from modelfix_core.subjects.prepare import Prepared, build_once, finish

EPSILON = 8 / 255  # customary for natural images
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def prepare_own(
    name: str,
    model: str | Path,
    data: str | Path,
    root: str | Path,
    seed: int = 0,
    *,
    weights: str | Path | None = None,
    labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
    group_column: str | None = None,
    conventions: Conventions | None = None,
    attack_epsilon: float = EPSILON,
    risks: Mapping[str, float] | None = None,
    history: str | Path | None = None,
) -> Prepared:
    """Prepare ``<root>/<name>`` from a model of any framework and labelled images.

    Parameters
    ----------
    name : str
        Letters, digits, ``.``, ``_`` and ``-``; not one of the catalogue.
    model : str or Path
        ONNX or Keras file, or a PyTorch factory (``module:name``, ``file.py:name``). Keras and
        PyTorch models need that framework in this process.
    data : str or Path
        Any kind of data of `modelfix_core.readers`. Given splits are respected; without any, the
        images are split 60/10/15/15 %, stratified by class and group.
    root : str or Path
    seed : int
        Of the splits.
    weights : str or Path, optional
        State dict of the PyTorch module.
    labels : str or Path, optional
        CSV or NPY file, where the labels lie apart from the images.
    classes : sequence of str, optional
        Class names in the order of the model's outputs; default as the model says, else sorted.
    group_column : str, optional
        The sensitive attribute.
    conventions : Conventions, optional
        What the model expects of its images; what is left out is found out.
    attack_epsilon : float
        Radius of the attack, in pixel space.
    risks : mapping of str to float, optional
        Weight of a mistake by name or number of the class.
    history : str or Path, optional
        Folder of ONNX models of the training epochs, in the order of their names.

    Raises
    ------
    ModelfixError
        If model or data cannot be read or do not fit, or the converted model does not answer as
        the original does; nothing is written then.
    """
    data = Path(data)
    if name in CATALOGUE or not NAME.fullmatch(name):
        raise ModelfixError(
            f"{name!r} cannot be the name of your subject; use letters, digits, '.', '_' and '-', "
            f"and none of {', '.join(CATALOGUE)}."
        )
    if not 0 <= attack_epsilon <= 1:
        raise ModelfixError(f"the attack epsilon is {attack_epsilon:g}; it must lie in 0 to 1.")
    factory = str(model).rpartition(":")[2] if foreign.kind_of(model) == "torch" else None
    files = [Path(path) for path in (weights, labels) if path is not None]
    conventions = conventions or Conventions()
    identity = _identity(
        [*_model_files(model), data, *files, *([] if history is None else [Path(history)])],
        [name, factory, seed, attack_epsilon, group_column, classes, risks, repr(conventions)],
    )

    def build(folder: Path) -> None:
        started = perf_counter()
        listing = readers.find(data, labels=labels, group_column=group_column, classes=classes)
        original = foreign.read(
            model, None if weights is None else Path(weights), listing.images.shape,
            conventions.layout,
        )  # fmt: skip
        if classes is None:
            listing = _named_as(listing, original)
        dataset = Dataset(
            listing.write(folder, seed),
            listing.classes,
            _by_label(risks, listing.classes),
            None if listing.group is None else group_column or readers.GROUP,
        )
        dataset.save(folder)
        dataset.validate()
        adopted = foreign.adopt(original, dataset, conventions)
        check_classes(adopted, len(dataset.classes))
        check_fits(adopted, dataset)
        for number, epoch in enumerate(_epochs(history, adopted), 1):
            epoch.save(folder / HISTORY_FOLDER / f"epoch-{number:02d}.onnx")
        notes = [*listing.notes, *adopted.notes]
        finish(
            folder,
            adopted.with_metadata(labels=json.dumps(list(dataset.classes))),
            dataset,
            device="cpu",
            seconds={"data": perf_counter() - started},
            source={
                "model": str(model),
                "origin": data.name,
                "notes": notes,
                **({} if listing.group_values is None else {"groups": listing.group_values}),
            },
            name=name,
            summary=f"Own model {Path(model).name} with own images {data.name}.",
            dataset=data.name,
            architecture=factory or Path(model).stem,
            attack_epsilon=attack_epsilon,
            seed=seed,
            identity=identity,
        )

    return build_once(Path(root) / name, identity, build)


def _named_as(listing: Listing, original: Original) -> Listing:
    """Bring the labels to the order of the model's outputs, where the model knows it."""
    known = original.labels
    if known is None or len(known) != len(listing.classes):
        return listing
    if set(known) == set(listing.classes):
        return listing.ordered(known)
    if listing.classes == [str(number) for number in range(len(known))]:
        return listing  # labels that are numbers count the outputs
    raise ModelfixError(
        f"{original.name}: its classes are {', '.join(known)} but those of the data are "
        f"{', '.join(listing.classes)}; give the latter in the order of the model's outputs with "
        "--classes."
    )


def _model_files(model: str | Path) -> list[Path]:
    """Return the files that make up a model; of a PyTorch factory, the code that it is found in."""
    if foreign.kind_of(model) != "torch":
        return [Path(model)]
    place = str(model).rpartition(":")[0]
    if place.endswith(".py"):
        return [Path(place)]
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        spec = None
    return [Path(spec.origin)] if spec is not None and spec.origin else []


def _identity(sources: Sequence[Path], settings: list) -> str:
    """Return a content hash of the settings and of every file that the subject is made from."""
    content = []
    for source in sources:
        files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        try:
            content += [[p.parent.name, p.name, file_hash(p)] for p in files]
        except OSError as error:
            reason = "does not exist" if not source.exists() else f"cannot be read ({error})"
            raise ModelfixError(f"{error.filename}: {reason}; check the path.") from error
    text = json.dumps([REVISION, settings, content], sort_keys=True)
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


def _by_label(risks: Mapping[str, float] | None, classes: Sequence[str]) -> dict[int, float] | None:
    if risks is None:
        return None
    numbers = {str(number): number for number in range(len(classes))}
    numbers |= {name: number for number, name in enumerate(classes)}
    for name, weight in risks.items():
        if name not in numbers:
            raise ModelfixError(
                f"there is no class {name!r} to give a risk; the classes are {', '.join(classes)}."
            )
        if not weight >= 0:
            raise ModelfixError(f"the risk of {name!r} is {weight:g}; it must be 0 or more.")
    return {numbers[name]: float(weight) for name, weight in risks.items()}
