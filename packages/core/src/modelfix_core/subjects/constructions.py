"""How the splits of a subject are made from its source."""

import colorsys
from collections.abc import Mapping

import numpy as np

from modelfix_core.dataset import Split, stratified
from modelfix_core.seeds import generator, seed_for

COLOUR = "colour"  # the sensitive attribute
TINTED, GREY = 0, 1  # its groups; TINTED are coloured images as they are, or grey ones tinted
LUMA = np.array([19595, 38470, 7471], dtype=np.uint32)  # ITU-R 601-2 in units of 2**-16
SATURATION = 0.8
BOTH_VERSIONS = ("repair", "test")


def carve(
    parts: Mapping[str, Split], sizes: Mapping[str, Mapping[str, int]], seed: int
) -> dict[str, Split]:
    """Cut each part of a source into splits, stratified by class.

    Parameters
    ----------
    parts : mapping of str to Split
        As `Source.read` gives them.
    sizes : mapping of str to mapping of str to int
        For each part the number of images of each split; they sum to the size of the part.
    seed : int

    Returns
    -------
    dict of str to Split
    """
    splits: dict[str, Split] = {}
    for name, part in parts.items():
        shares = {split: size / len(part) for split, size in sizes[name].items()}
        index = stratified(part.y, shares, seed_for(seed=seed, stage="splits", part=name))
        splits |= {split: part.select(positions) for split, positions in index.items()}
    return splits


def colour_skew(splits: Mapping[str, Split], skew: float, seed: int) -> dict[str, Split]:
    """Make a fairness variant: CIFAR10S of CIFAR10 (Wang et al., CVPR 2020), or its like.

    Coloured images appear in colour or grey, grey images tinted or grey. In train and validation
    each image appears once, in even classes grey with the share `skew` and else in colour, in odd
    classes the reverse; colour then tells the class apart without being part of it. In repair and
    test each image appears in both versions, side by side, so both lie on the same side of the
    cut.

    Parameters
    ----------
    splits : mapping of str to Split
        uint8, [N, 3, H, W] or [N, 1, H, W].
    skew : float
        Share of the majority colour within each class, in [0.5, 1].
    seed : int
        Of the choice of images and of their hues.

    Returns
    -------
    dict of str to Split
        uint8, [N, 3, H, W]; group 0 is in colour, 1 is grey; the id is twice that of the source,
        plus the group.
    """
    variant: dict[str, Split] = {}
    for name, split in splits.items():
        rng = generator(seed, stage="colour", split=name)
        hues = rng.random(len(split)) if split.x.shape[1] == 1 else None
        if name in BOTH_VERSIONS:
            positions = np.repeat(np.arange(len(split)), 2)
            group = np.tile([TINTED, GREY], len(split))
        else:
            positions = np.arange(len(split))
            group = _skewed_groups(split.y, skew, rng)
        x = split.x[positions]
        variant[name] = Split(
            _greyed(x, group) if hues is None else _tinted(x, hues[positions], group),
            split.y[positions],
            group.astype(np.int64),
            2 * split.ids[positions] + group,
        )
    return variant


def bring_to(splits: Mapping[str, Split], shape: tuple[int, int, int]) -> dict[str, Split]:
    """Bring small images to a shape: black on all sides, grey copied to every channel.

    Parameters
    ----------
    splits : mapping of str to Split
        [N, c, h, w], where c is the number of channels of `shape` or 1.
    shape : tuple of int
        Channels, height and width, none smaller than those of the images.

    Returns
    -------
    dict of str to Split
        [N, C, H, W]
    """
    channels, height, width = shape
    brought: dict[str, Split] = {}
    for name, split in splits.items():
        n, _, h, w = split.x.shape
        top, left = (height - h) // 2, (width - w) // 2
        x = np.zeros((n, channels, height, width), split.x.dtype)
        x[:, :, top : top + h, left : left + w] = split.x
        brought[name] = Split(x, split.y, split.group, split.ids)
    return brought


def _skewed_groups(y: np.ndarray, skew: float, rng: np.random.Generator) -> np.ndarray:
    """Assign exactly the share `skew` of every class to its majority group."""
    group = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        majority = GREY if label % 2 == 0 else TINTED
        cut = round(skew * len(members))
        group[members[:cut]] = majority
        group[members[cut:]] = TINTED + GREY - majority
    return group


def grey(x: np.ndarray) -> np.ndarray:
    """Return the luminance of coloured images, as Pillow computes it.

    Parameters
    ----------
    x : ndarray of uint8, [N, 3, H, W]

    Returns
    -------
    ndarray of uint8, [N, 1, H, W]
    """
    luma = np.tensordot(LUMA, x.astype(np.uint32), axes=(0, 1))
    return ((luma + 2**15) >> 16).astype(np.uint8)[:, None]


def _greyed(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Copy the luminance to the three channels of the images of group 1, [N, 3, H, W]."""
    x = x.copy()
    x[group == GREY] = grey(x[group == GREY])
    return x


def _tinted(grey: np.ndarray, hues: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Copy the luminance to three channels and tint the images of group 0, [N, 3, H, W]."""
    tints = np.array([colorsys.hsv_to_rgb(hue, SATURATION, 1.0) for hue in hues], dtype=np.float32)
    tints[group == GREY] = 1.0
    return np.rint(grey * tints[:, :, None, None]).astype(np.uint8)
