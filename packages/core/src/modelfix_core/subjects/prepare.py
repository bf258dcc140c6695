"""Prepare a subject into a folder: splits, model, history and card; whole or not at all."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from modelfix_core.dataset import Dataset
from modelfix_core.errors import ModelfixError
from modelfix_core.files import explain_write_errors, replace_folder, write_text
from modelfix_core.model import Model
from modelfix_core.progress import ProgressReporter
from modelfix_core.record import provenance
from modelfix_core.subject import (
    CARD_FILE,
    HISTORY_FOLDER,
    MODEL_FILE,
    Subject,
    SubjectCard,
    data_hash,
    file_hash,
)
from modelfix_core.subjects.catalogue import NamedSubject, named
from modelfix_core.subjects.constructions import bring_to, carve, colour_skew
from modelfix_core.subjects.recipes import Recipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Prepared:
    """What came of preparing: the subject, and whether it was there already, complete."""

    subject: Subject
    reused: bool


def prepare(
    subject: str | NamedSubject,
    root: str | Path,
    *,
    data: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Prepared:
    """Prepare a named subject into ``<root>/<name>``, or reuse it if it is complete.

    Parameters
    ----------
    subject : str or NamedSubject
        A name of the catalogue, or a definition of one's own.
    root : str or Path
    data : Path, optional
        Folder of image files, searched first; default ``MODELFIX_DATA``.
    device : str
        Trains the model.
    seed : int
        Of the splits and of the training.

    Raises
    ------
    ModelfixError
        If the name is unknown, data are missing or damaged, PyTorch is not installed or the folder
        cannot be written; the folder then is as it was before.
    """
    definition = named(subject) if isinstance(subject, str) else subject
    identity = definition.identity(seed)
    target = Path(root) / definition.name

    def build(folder: Path) -> None:
        started = perf_counter()
        dataset = make_dataset(definition, data, seed)
        dataset.save(folder)
        ready = perf_counter()
        if definition.recipe is None:
            model = _pretrained(definition, dataset, data)
        else:
            scratch = _scratch(target, identity)
            model = _train(definition, definition.recipe, dataset, scratch, device, seed)
            shutil.copytree(scratch / HISTORY_FOLDER, folder / HISTORY_FOLDER)
        trained = perf_counter()
        finish(
            folder,
            model,
            dataset,
            device=device,
            seconds={"data": ready - started, "training": trained - ready},
            source={"licence": definition.origin.licence, "origin": definition.origin.homepage},
            name=definition.name,
            summary=definition.summary,
            dataset=definition.origin.title,
            architecture=definition.architecture,
            attack_epsilon=definition.attack_epsilon,
            recipe=definition.training,
            seed=seed,
            identity=identity,
        )

    prepared = build_once(target, identity, build)
    shutil.rmtree(target.with_name(f".{target.name}.training"), ignore_errors=True)
    return prepared


def make_dataset(definition: NamedSubject, data: Path | None, seed: int) -> Dataset:
    """Read the source of a named subject and make its splits."""
    origin = definition.origin
    splits = carve(origin.read(data), definition.sizes, seed)
    if definition.skew is not None:
        splits = colour_skew(splits, definition.skew, seed)
    if definition.image is not None:
        splits = bring_to(splits, definition.image)
    return Dataset(splits, origin.classes, definition.class_risks, definition.group_name)


def _train(
    definition: NamedSubject,
    recipe: Recipe,
    dataset: Dataset,
    scratch: Path,
    device: str,
    seed: int,
) -> Model:
    """Train the model, keep one ONNX file per epoch in `scratch`, and return the last one.

    What an interrupted run of the same subject has left in `scratch` is taken up.
    """
    with _needs_torch(definition):
        from modelfix_core.subjects import training
        from modelfix_core.torch import export
    split, validation = dataset["train"], dataset["validation"]
    training.check_device(device)
    note = ""
    with ProgressReporter(f"training {definition.name}") as report, training.reproducible(seed):
        network = _network(definition)
        epochs = training.train(
            network,
            split,
            recipe,
            seed=seed,
            device=device,
            state=scratch / "state.pt",
            on_step=lambda done, total: report(done, total, note),
        )
        for epoch in epochs:
            model = export(
                network,
                definition.input_shape,
                dataset.classes,
                subject=definition.name,
                epoch=epoch,
            )
            model.save(_epoch_file(scratch, epoch))
            note = f"epoch {epoch}, validation accuracy {model.accuracy(validation):.1%}"
    return Model.load(_epoch_file(scratch, recipe.epochs))


def _pretrained(definition: NamedSubject, dataset: Dataset, data: Path | None) -> Model:
    """Build the model with the weights that come trained."""
    with _needs_torch(definition):
        from modelfix_core.subjects import pretrained
        from modelfix_core.torch import export
    network = _network(definition)
    pretrained.load(network, str(definition.pretrained), data)
    return export(network.eval(), definition.input_shape, dataset.classes, subject=definition.name)


def _network(definition: NamedSubject) -> "nn.Module":
    from modelfix_core.subjects.architectures import build

    classes, channels = len(definition.origin.classes), definition.input_shape[0]
    return build(definition.architecture, classes, channels, definition.mean, definition.std)


@contextmanager
def _needs_torch(definition: NamedSubject) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelfixError(
            f"{definition.name}: its model is made with PyTorch, which cannot be imported "
            f"({error}); install modelfix-core[subjects]."
        ) from error


def _epoch_file(folder: Path, epoch: int) -> Path:
    return folder / HISTORY_FOLDER / f"epoch-{epoch:02d}.onnx"


def _scratch(target: Path, identity: str) -> Path:
    """Return the folder in which the training of a subject is kept until it is complete."""
    folder = target.with_name(f".{target.name}.training")
    owner = folder / "identity.txt"
    if not owner.exists() or owner.read_text(encoding="utf-8") != identity:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(owner, identity)
    return folder


def finish(
    folder: Path,
    model: Model,
    dataset: Dataset,
    /,
    *,
    device: str,
    seconds: Mapping[str, float],
    source: Mapping[str, Any],
    **card: Any,
) -> None:
    """Write the model and, last, the card of a subject whose splits and history are in `folder`.

    Parameters
    ----------
    folder : Path
    model : Model
    dataset : Dataset
    device : str
    seconds : mapping of str to float
        Of the parts; their sum is added as ``total``.
    source : mapping of str to JSON value
        Licence and origin of the data, for the provenance.
    **card
        The entries of `SubjectCard` that follow neither from the model nor from the data.
    """
    model.save(folder / MODEL_FILE)
    ran = provenance(device)
    SubjectCard(
        classes=list(dataset.classes),
        input_shape=model.input_shape,
        splits={name: len(split) for name, split in dataset.splits.items()},
        sensitive_attribute=dataset.group_name,
        risks=None if dataset.risks is None else dict(dataset.risks),
        validation_accuracy=model.accuracy(dataset["validation"]),
        model_hash=model.hash,
        data_hash=data_hash(folder),
        history_hashes=[file_hash(p) for p in sorted((folder / HISTORY_FOLDER).glob("*.onnx"))],
        seconds={**seconds, "total": sum(seconds.values())},
        versions=ran.pop("versions"),
        provenance={**ran, **source},
        **card,
    ).save(folder)


def build_once(target: Path, identity: str, build: Callable[[Path], None]) -> Prepared:
    """Reuse the subject at `target` if it is the wanted one; else build it and put it there.

    Parameters
    ----------
    target : Path
    identity : str
        Content hash of what the subject is made from.
    build : callable
        Writes everything into the empty folder that it is given, beside `target`.
    """
    # Several processes may use a complete subject at once; only those that prepare it exclude
    # each other, and the second look is for what one of them has finished in between.
    known = _complete(target, identity)
    if known is not None:
        return Prepared(known, reused=True)
    with _only_one(target):
        known = _complete(target, identity)
        if known is not None:
            return Prepared(known, reused=True)
        _refuse_foreign(target)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with explain_write_errors(target):
                shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
                partial.mkdir()
            build(partial)
            replace_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return Prepared(Subject.load(target), reused=False)


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Keep a second process off the same subject."""
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ModelfixError(
                f"{target}: another process is preparing this subject; wait for it to end."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _complete(target: Path, identity: str) -> Subject | None:
    try:
        subject = Subject.load(target)
    except ModelfixError:
        return None
    return subject if subject.card.identity == identity and not subject.problems() else None


def _refuse_foreign(target: Path) -> None:
    """Never put a subject in the place of a folder that holds something else."""
    if target.is_dir() and any(target.iterdir()) and not (target / CARD_FILE).exists():
        raise ModelfixError(
            f"{target}: holds files but no prepared subject; choose another folder or empty it."
        )
