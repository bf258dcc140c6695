"""The study's subjects before any data: their models, untrained and narrow, and tasks on them."""

from pathlib import Path
from typing import Any

import numpy as np
from modelfix_core import Model, Split, Task
from modelfix_core.subjects.catalogue import named
from modelfix_core.subjects.untrained import untrained

STUDY_SUBJECTS = (
    "mnist-lenet5",
    "utkface-facenet",
    "cifar10-vgg16",
    "cifar10s-resnet18",
    "imagenet-densenet121",
)
WIDTH = 1 / 8
IMAGES = 4


def study_model(name: str, width: float = WIDTH, seed: int = 0) -> Model:
    """Return the model of a subject of the study with random weights, without a framework.

    Parameters
    ----------
    name : str
        One of `STUDY_SUBJECTS`, or another named subject with one of their architectures.
    width : float
        Factor on the numbers of channels; 1 is the study's network in full.
    seed : int
        Of the weights.
    """
    return untrained(name, width, seed)


def study_task(name: str, folder: Path, width: float = WIDTH, **changes: Any) -> Task:
    """Return a task that has what a subject of the study has, on a few random images.

    It is made for the check of an approach: the model's structure, class risks and history are
    there or missing as in the study; `changes` replace fields.

    Parameters
    ----------
    name : str
        One of `STUDY_SUBJECTS`.
    folder : Path
        Gets the models of two training epochs, where the subject is trained.
    width : float
        As in `study_model`.
    """
    subject = named(name)
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % len(subject.origin.classes)
    splits = {}
    for number, split in enumerate(("train", "validation", "repair")):
        x = rng.integers(0, 256, (IMAGES, *subject.input_shape), dtype=np.uint8)
        splits[split] = Split(x, labels, ids=np.arange(IMAGES) + IMAGES * number)
    history = [] if subject.recipe is None else [folder / f"epoch-{n:02d}.onnx" for n in (1, 2)]
    for number, path in enumerate(history):
        study_model(name, width, seed=number).save(path)
    fields = {
        "model": study_model(name, width),
        "history": history,
        "risks": subject.class_risks,
        **splits,
        **changes,
    }
    return Task(**fields)
