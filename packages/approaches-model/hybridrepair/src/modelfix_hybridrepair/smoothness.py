"""How much predictions change under augmentation, and up to where a model is smooth."""

from collections.abc import Callable

import numpy as np
import torch
from modelfix_core.torch import TorchModel
from modelfix_core.torch.augment import SIGNED, Mixing, Variant, views
from modelfix_core.torch.training import Feed
from torch import Tensor
from torch.nn import functional

OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
LOWEST_LEVEL, HIGHEST_LEVEL = 0.1, 3.0
DEPTH = 3
IMAGES_AT_ONCE = 288  # more do not fit in a processor's cache
COMPARED_BYTES = 64 * 1024**2
CERTAIN = 1e-9  # bits: with less everywhere, a model does not change at all

Progress = Callable[[str], None]


def augmentation() -> Mixing:
    """Return one chain of 1 to 3 operations, all alike, blended with the image at random."""
    chosen, shares = [], []
    for name in OPERATIONS:
        signs = (1, -1) if name in SIGNED else (1,)
        chosen += [Variant(name, HIGHEST_LEVEL, sign) for sign in signs]
        shares += [1 / len(OPERATIONS) / len(signs)] * len(signs)
    span = HIGHEST_LEVEL - LOWEST_LEVEL
    return Mixing(tuple(chosen), tuple(shares), width=1, depth=DEPTH, span=span)


def versions(images: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return images and `count` augmentations of each.

    Blending pixels is blending normalised pixels, because the models' own normalisation is affine.

    Returns
    -------
    Tensor, [1 + count, N, C, H, W]
        The images first.
    """
    return torch.cat([images[None], views(images, augmentation(), rng, count)])


def mean_predictions(
    net: TorchModel,
    feed: Feed,
    count: int,
    rng: np.random.Generator,
    progress: Progress = lambda note: None,
) -> np.ndarray:
    """Average the predicted probabilities over all versions of each image.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode.
    feed : Feed
    count : int
        Augmentations of each image.
    rng : numpy.random.Generator
    progress : callable
        Gets a note after each batch.

    Returns
    -------
    ndarray of float64, [N, K]
    """
    parts = []
    size = max(1, IMAGES_AT_ONCE // (1 + count))
    done = 0
    with torch.inference_mode():
        for x, _ in feed.batches(np.arange(len(feed)), size):
            stack = versions(x, count, rng)
            logits = net(stack.flatten(0, 1)).view(len(stack), len(x), -1)
            parts.append(functional.softmax(logits, dim=-1).mean(dim=0).double().cpu())
            done += len(x)
            progress(f"smoothness at {done} of {len(feed)} images")
    return torch.cat(parts).numpy()


def unsmoothness(q: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the entropy of mean predictions over its maximum, and that maximum.

    Parameters
    ----------
    q : ndarray of float, [N, K]

    Returns
    -------
    e : ndarray of float64, [N]
        In [0, 1]; all 0 where the maximum is.
    top : float
        In bits.
    """
    entropy = -np.sum(q * np.log2(np.clip(q, 1e-12, 1)), axis=1)
    top = float(entropy.max())
    return (entropy / top if top > CERTAIN else np.zeros(len(q))), top


def sparsity(
    points: Tensor, reference: Tensor, neighbours: int, progress: Progress = lambda note: None
) -> np.ndarray:
    """Return the mean cosine distance of points to their nearest reference points.

    Parameters
    ----------
    points : Tensor of float, [N, K]
    reference : Tensor of float, [M, K]
    neighbours : int
        At most M are taken.
    progress : callable

    Returns
    -------
    ndarray of float64, [N]
        In [0, 2].
    """
    reference = functional.normalize(reference, dim=1)
    count = min(neighbours, len(reference))
    result = []
    rows = max(1, COMPARED_BYTES // (4 * len(reference)))
    for part in functional.normalize(points, dim=1).split(rows):
        nearest = (part @ reference.T).topk(count, dim=1, sorted=False).values
        result.append(1 - nearest.double().mean(dim=1))
        progress("density")
    return torch.cat(result).cpu().numpy()


def threshold(e: np.ndarray, sparse: np.ndarray, images: int) -> float:
    """Return the mean unsmoothness of the images whose density is nearest to the average.

    Parameters
    ----------
    e, sparse : ndarray of float, [N]
        Unsmoothness and `sparsity` of the same images.
    images : int
        How many of them tell it.
    """
    order = np.argsort(np.abs(sparse - sparse.mean()), kind="stable")
    return float(e[order[:images]].mean())
