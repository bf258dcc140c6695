"""A prepared subject: its folder read back, with its card, model, history and splits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelfix_core.dataset import SPLITS, Dataset
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_core.images import INDEX_FILE
from modelfix_core.model import Model

CARD_FILE = "subject.json"
MODEL_FILE = "model.onnx"
DATASET_FILE = "dataset.json"
HISTORY_FOLDER = "history"
REMEDY = "delete the subject's folder and prepare it again"


class SubjectCard(BaseModel):
    """What ``subject.json`` says of a prepared subject.

    Attributes
    ----------
    name : str
    summary : str
        One sentence.
    dataset : str
        Where the images come from.
    architecture : str
    classes : list of str
        Class names; labels are positions in it.
    input_shape : tuple of int
        Channels, height, width.
    splits : dict of str to int
        Number of images per split.
    attack_epsilon : float
        Radius of the attack in the maximum norm, in pixel space [0, 1].
    sensitive_attribute : str or None
        What ``group`` means, where the splits have groups.
    risks : dict of int to float, or None
        Weight of a mistake per class.
    recipe : dict or None
        How the model was trained; None for a model that was brought along.
    seed : int
        Of the splits and of the training.
    validation_accuracy : float
        Of the original model, in [0, 1].
    model_hash, data_hash : str
        SHA-256 of the model and of all split files.
    history_hashes : list of str
        SHA-256 of the model of every epoch, oldest first.
    seconds : dict of str to float
        ``data`` (reading and splitting), ``training``, ``total``.
    versions : dict of str to str
        Of the libraries that took part.
    provenance : dict
        Licence and source of the data, machine, device, time.
    identity : str
        Content hash of everything the subject was made from; the same means the same subject.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str
    summary: str
    dataset: str
    architecture: str
    classes: list[str]
    input_shape: tuple[int, int, int]
    splits: dict[str, int]
    attack_epsilon: float = Field(ge=0, le=1)
    sensitive_attribute: str | None = None
    risks: dict[int, float] | None = None
    recipe: dict[str, Any] | None = None
    seed: int
    validation_accuracy: float = Field(ge=0, le=1)
    model_hash: str
    data_hash: str
    history_hashes: list[str] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    identity: str

    def save(self, folder: Path) -> None:
        """Write ``subject.json`` into `folder` atomically."""
        write_text(Path(folder) / CARD_FILE, self.model_dump_json(indent=2))

    @classmethod
    def load(cls, folder: Path) -> "SubjectCard":
        """Read the card of `folder`.

        Raises
        ------
        ModelfixError
            If there is none or it is damaged.
        """
        path = Path(folder) / CARD_FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ModelfixError(
                f"{folder}: is no prepared subject (it has no {CARD_FILE}); prepare the subject "
                "first."
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            entry = ".".join(str(part) for part in first["loc"]) or "content"
            reason = f"{entry}: {first['msg']}"
            raise ModelfixError(f"{path}: is damaged ({reason}); {REMEDY}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ModelfixError(f"{path}: cannot be read ({error}); {REMEDY}.") from error


@dataclass(frozen=True)
class Subject:
    """A prepared subject.

    Attributes
    ----------
    folder : Path
    card : SubjectCard
    """

    folder: Path
    card: SubjectCard

    @classmethod
    def load(cls, folder: str | Path, verify: bool = False) -> "Subject":
        """Open the subject that was prepared into `folder`.

        Parameters
        ----------
        folder : str or Path
        verify : bool
            Also compare the hashes of all files with the card; reads every byte of the data.

        Raises
        ------
        ModelfixError
            If the card, the model or a split is missing or damaged, or, with `verify`, if a file
            is not the one that was prepared.
        """
        folder = Path(folder)
        subject = cls(folder, SubjectCard.load(folder))
        problems = subject.problems() if verify else subject._missing()
        if problems:
            raise ModelfixError(problems[0])
        return subject

    @cached_property
    def model(self) -> Model:
        """The original model.

        Raises
        ------
        ModelfixError
            If the file is not the model that was prepared.
        """
        path = self.folder / MODEL_FILE
        model = Model.load(path)
        _compare(path, model.hash, self.card.model_hash)
        return model

    @property
    def history(self) -> list[Path]:
        """Models of the training epochs, oldest first; the last one has the original's weights."""
        return sorted((self.folder / HISTORY_FOLDER).glob("epoch-*.onnx"))

    def dataset(self, splits: Sequence[str] = SPLITS) -> Dataset:
        """Memory-map the named splits."""
        return Dataset.load(self.folder, splits)

    def problems(self) -> list[str]:
        """Return what is wrong with the files of the subject, a sentence each; [] if nothing is."""
        found = self._missing()
        if found:
            return found
        for check in (self._check_model, self._check_history, self._check_data):
            try:
                check()
            except ModelfixError as error:
                found.append(str(error))
        return found

    def _missing(self) -> list[str]:
        arrays = [
            self.folder / name / array
            for name in self.card.splits
            for array in (_images_file(self.folder / name), "y.npy")
        ]
        needed = [self.folder / MODEL_FILE, self.folder / DATASET_FILE, *arrays]
        return [
            f"{path}: is missing from the prepared subject; {REMEDY}."
            for path in needed
            if not path.is_file()
        ]

    def _check_model(self) -> None:
        self.model  # noqa: B018  loading it compares the hash

    def _check_history(self) -> None:
        expected = self.card.history_hashes
        if len(self.history) != len(expected):
            raise ModelfixError(
                f"{self.folder / HISTORY_FOLDER}: holds {len(self.history)} models but "
                f"{len(expected)} were prepared; {REMEDY}."
            )
        for path, hash_ in zip(self.history, expected, strict=True):
            _compare(path, file_hash(path), hash_)

    def _check_data(self) -> None:
        dataset = self.dataset()
        for name, size in self.card.splits.items():
            if len(dataset[name]) != size:
                raise ModelfixError(
                    f"{self.folder / name}: holds {len(dataset[name])} images but {size} were "
                    f"prepared; {REMEDY}."
                )
        _compare(self.folder, data_hash(self.folder), self.card.data_hash)


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ModelfixError(
            f"{path}: has changed since it was prepared (hash {found[:12]}, the card says "
            f"{expected[:12]}); {REMEDY}."
        )


def prepared_subjects(root: str | Path) -> tuple[list[Subject], list[str]]:
    """Return the prepared subjects directly below `root`, and what is wrong with the others.

    Folders without ``subject.json`` and hidden ones (work in progress) are no subjects.

    Returns
    -------
    subjects : list of Subject
        By name of their folders; empty if `root` does not exist.
    broken : list of str
        A sentence for each subject that cannot be opened.
    """
    subjects, broken = [], []
    for card in sorted(Path(root).glob(f"*/{CARD_FILE}")):
        if card.parent.name.startswith("."):
            continue
        try:
            subjects.append(Subject.load(card.parent))
        except ModelfixError as error:
            broken.append(str(error))
    return subjects, broken


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _images_file(split: Path) -> str:
    return INDEX_FILE if (split / INDEX_FILE).exists() else "x.npy"


def data_hash(folder: Path) -> str:
    """Return one SHA-256 over ``dataset.json`` and every array of every split below `folder`.

    Of images that stay files the index is hashed: their paths and sizes.
    """
    arrays = [
        path
        for name in SPLITS
        for pattern in ("*.npy", INDEX_FILE)
        for path in sorted((folder / name).glob(pattern))
    ]
    total = hashlib.sha256()
    for path in [folder / DATASET_FILE, *arrays]:
        total.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return total.hexdigest()
