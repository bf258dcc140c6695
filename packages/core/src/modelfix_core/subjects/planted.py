"""A subject with a planted fault: a prepared one whose model has known weights disturbed."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from time import perf_counter

from modelfix_core.errors import ModelfixError
from modelfix_core.planting import plant, save_truth
from modelfix_core.subject import DATASET_FILE, HISTORY_FOLDER, Subject
from modelfix_core.subjects.prepare import Prepared, build_once, finish

TRUTH_FILE = "planted.json"
REVISION = 1


def prepare_planted(
    base: Subject,
    *,
    layer: str | None = None,
    size: int = 1,
    broken: float = 0.05,
    seed: int = 0,
) -> Prepared:
    """Prepare ``<base>-planted-<layer>-<size>-<seed>`` beside a prepared subject.

    Data and history are the base's (hard links where the file system has them); the truth lies in
    ``planted.json``, which no approach is given.

    Parameters
    ----------
    base : Subject
    layer : str, optional
        Default: the dense layer before the last layer, else the last one that is not BatchNorm.
    size : int
        Number of disturbed weights.
    broken : float
        Share of the right inputs of the repair split that the fault breaks at least, in (0, 1).
    seed : int
        Of the choice of weights.

    Raises
    ------
    ModelfixError
        If there is no such layer or the weights cannot do the damage.
    """
    layer = base.model.layer(layer).name if layer else _default_layer(base)
    name = f"{base.card.name}-planted-{layer}-{size}-{seed}"
    content = [base.card.identity, base.card.model_hash, layer, size, broken, seed, REVISION]
    identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def build(folder: Path) -> None:
        started = perf_counter()
        dataset = base.dataset()
        fault = plant(base.model, dataset["repair"], layer, size=size, broken=broken, seed=seed)
        for part in (*base.card.splits, HISTORY_FOLDER):
            if (base.folder / part).is_dir():
                shutil.copytree(base.folder / part, folder / part, copy_function=_link)
        _link(base.folder / DATASET_FILE, folder / DATASET_FILE)
        save_truth(fault, folder / TRUTH_FILE)
        finish(
            folder,
            fault.model.with_metadata(planted_in=base.card.model_hash),
            dataset,
            device="cpu",
            seconds={"planting": perf_counter() - started},
            source={"base": base.card.name},
            name=name,
            summary=f"{base.card.name} with {size} disturbed weight{'s' * (size > 1)} of {layer}.",
            dataset=base.card.dataset,
            architecture=base.card.architecture,
            attack_epsilon=base.card.attack_epsilon,
            recipe=base.card.recipe,
            seed=base.card.seed,
            identity=identity,
        )

    return build_once(base.folder.parent / name, identity, build)


def _default_layer(base: Subject) -> str:
    dense = base.model.layers("dense")
    layers = dense if len(dense) > 1 else [x for x in base.model.layers() if x.kind != "batchnorm"]
    if not layers:
        raise ModelfixError(f"{base.card.name}: its model has no layer in which to plant a fault.")
    return layers[-2].name if len(layers) > 1 else layers[-1].name


def _link(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, or copy it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
