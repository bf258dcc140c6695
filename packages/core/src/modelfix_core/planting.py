"""Planted faults: a trained model with known weights disturbed, so that blame can be scored."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from modelfix_core.approach import Localisation
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_core.model import Model

DRAWS = 20  # of weights; many a weight of a trained layer can be moved without harm
STRENGTHS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
CUTS = (1, 10, 100)


@dataclass(frozen=True)
class PlantedFault:
    """A disturbed model and the truth about it.

    Attributes
    ----------
    model : Model
        The disturbed one.
    layer : str
    index : ndarray of int64, [D]
        Positions in the layer's flattened weight that were disturbed.
    """

    model: Model
    layer: str
    index: np.ndarray

    def parts(self, kind: str) -> set[tuple[str, int]]:
        """Return what a perfect localisation of that kind blames: (layer, index) pairs.

        A neuron is to blame for its incoming weights.
        """
        if kind == "layer":
            return {(self.layer, 0)}
        fan_in = self._fan_in(self.layer) if kind == "neuron" else 1
        return {(self.layer, int(i) // fan_in) for i in self.index}

    def count(self, kind: str) -> int:
        """Return how many layers, neurons or weights of the model could be blamed."""
        arrays = [
            self.model.weights[layer.weight]
            for layer in self.model.layers()
            if layer.kind != "batchnorm"
        ]
        sizes = {"layer": len(arrays), "neuron": sum(len(a) for a in arrays)}
        return sizes.get(kind, sum(a.size for a in arrays))

    def _fan_in(self, layer: str) -> int:
        return int(np.prod(self.model.weights[self.model.layer(layer).weight].shape[1:]))


def plant(
    model: Model, split: Split, layer: str, *, size: int = 1, broken: float = 0.05, seed: int = 0
) -> PlantedFault:
    """Disturb `size` weights of `layer` until at least a share `broken` of right inputs breaks.

    Parameters
    ----------
    model : Model
        A trained model; stays untouched.
    split : Split
        On which the damage is measured.
    layer : str
    size : int
        Number of weights, chosen by `seed` among the larger half of the layer; where no shift of
        them does enough damage, others are drawn.
    broken : float
        Share of the inputs that the model gets right, in (0, 1).
    seed : int

    Raises
    ------
    ModelfixError
        If no drawn weights can do enough damage, or the layer has fewer weights.
    """
    weight = model.weights[model.layer(layer).weight]
    rng = np.random.default_rng(seed)
    large = np.flatnonzero(np.abs(weight.ravel()) >= np.median(np.abs(weight)))
    if not 1 <= size <= len(large):
        raise ModelfixError(
            f"{size} weights cannot be disturbed in layer {layer!r}; choose 1 to {len(large)}."
        )
    right = model.predict(split).argmax(axis=1) == split.y
    for _ in range(DRAWS):
        index = np.sort(rng.choice(large, size, replace=False))
        for strength in STRENGTHS:
            values = weight.ravel().copy()
            values[index] -= np.sign(values[index]) * strength * weight.std()
            changed = model.with_weights({model.layer(layer).weight: values.reshape(weight.shape)})
            still = changed.predict(split).argmax(axis=1) == split.y
            if np.mean(~still[right]) >= broken:
                return PlantedFault(changed, layer, index)
    raise ModelfixError(
        f"no shift of {size} weights of layer {layer!r} breaks {broken:.0%} of the inputs; choose "
        "another layer, more weights or a smaller share."
    )


@dataclass(frozen=True)
class BlameScore:
    """How well a localisation found a planted fault.

    Attributes
    ----------
    kind : str
        ``weight``, ``neuron`` or ``layer``: what was blamed.
    blamed, possible : int
        How many were blamed, and how many the model has.
    planted, found : int
        How many are to blame in truth, and how many of them were blamed at all.
    first_rank, mean_rank : float
        Rank (from 1) of the best-placed planted part and mean over all of them. Ties share the
        mean of their ranks; what is not blamed shares the ranks behind.
    precision : dict of int to float
        Share of planted parts among the first k blamed, by k, in [0, 1]. Where fewer are blamed,
        the missing places count as wrong; a perfect localisation reaches min(1, planted / k).
    """

    kind: str
    blamed: int
    possible: int
    planted: int
    found: int
    first_rank: float
    mean_rank: float
    precision: dict[int, float]

    def as_dict(self) -> dict:
        """Return plain JSON values."""
        return asdict(self)


def score_blame(
    localisation: Localisation, fault: PlantedFault, cuts: Sequence[int] = CUTS
) -> BlameScore:
    """Compare a localisation with the truth.

    Parameters
    ----------
    localisation : Localisation
        Of the planted model.
    fault : PlantedFault
    cuts : sequence of int
        The k of precision at k; the number of planted parts is added.
    """
    kind, truth = localisation.kind, fault.parts(localisation.kind)
    possible = fault.count(kind)
    parts = list(zip(localisation.layer, map(int, localisation.index), strict=True))
    hit = np.array([part in truth for part in parts], dtype=bool)
    ranks = _ranks(np.asarray(localisation.score, dtype=np.float64))
    unseen = (len(parts) + possible + 1) / 2
    of_planted = np.concatenate([ranks[hit], np.full(len(truth) - hit.sum(), unseen)])
    order = np.argsort(ranks, kind="stable")
    return BlameScore(
        kind=kind,
        blamed=len(parts),
        possible=possible,
        planted=len(truth),
        found=int(hit.sum()),
        first_rank=float(of_planted.min()),
        mean_rank=float(of_planted.mean()),
        precision={k: float(hit[order][:k].sum() / k) for k in sorted({*cuts, len(truth)})},
    )


def _ranks(score: np.ndarray) -> np.ndarray:
    """Return ranks from 1, the largest score first; ties share the mean of theirs."""
    values, inverse, counts = np.unique(-score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse] if len(values) else np.empty(0)


def rank_of_planted(localisation: Localisation, fault: PlantedFault) -> float:
    """Return the best rank (from 1) of a planted weight in `localisation`; inf if none has one."""
    order = np.argsort(-np.asarray(localisation.score), kind="stable")
    for rank, row in enumerate(order, start=1):
        if localisation.layer[row] == fault.layer and localisation.index[row] in fault.index:
            return float(rank)
    return float("inf")


# -- files ---------------------------------------------------------------------------------------


def save_truth(fault: PlantedFault, path: Path) -> None:
    """Write layer and positions as JSON."""
    write_text(path, json.dumps({"layer": fault.layer, "index": fault.index.tolist()}))


def load_truth(model: Model, path: Path) -> PlantedFault:
    """Read what `save_truth` wrote about `model`.

    Raises
    ------
    ModelfixError
        If there is no such file or it is damaged.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        index = np.array(content["index"], dtype=np.int64)
        return PlantedFault(model, model.layer(content["layer"]).name, index)
    except FileNotFoundError:
        raise ModelfixError(
            f"{path}: is missing, so the subject has no planted fault; make one with `modelfix "
            "plant`."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelfixError(f"{path}: is damaged; plant the fault again.") from error
