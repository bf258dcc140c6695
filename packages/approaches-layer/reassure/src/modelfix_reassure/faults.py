"""Faults and the linear regions that they share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Faults:
    """Faults by region.

    Attributes
    ----------
    patterns : ndarray of bool, [R, sum of hidden]
        Distinct regions, in order of their first fault.
    labels : ndarray of int64, [R]
        What each region shall be: its most frequent label, the earlier on ties.
    example : ndarray of int, [R]
        First fault of each region with that label.
    region : ndarray of int, [B]
        Region of each fault.
    consistent : ndarray of bool, [B]
        Whether a fault has its region's label; the others cannot be repaired.
    """

    patterns: np.ndarray
    labels: np.ndarray
    example: np.ndarray
    region: np.ndarray
    consistent: np.ndarray


def merge(patterns: np.ndarray, y: np.ndarray) -> Faults:
    """Merge faults that share a region (section 4.1).

    Parameters
    ----------
    patterns : ndarray of bool, [B, sum of hidden]
    y : ndarray of int64, [B]
    """
    _, first, inverse = np.unique(
        np.packbits(patterns, axis=1), axis=0, return_index=True, return_inverse=True
    )
    rank = np.argsort(np.argsort(first))
    region = rank[inverse.reshape(-1)]
    first = np.sort(first)
    labels = np.empty(len(first), dtype=np.int64)
    example = np.empty(len(first), dtype=np.int64)
    for r, members in enumerate(_groups(region, len(first))):
        values, earliest, count = np.unique(y[members], return_index=True, return_counts=True)
        best = np.lexsort((earliest, -count))[0]
        labels[r], example[r] = values[best], members[earliest[best]]
    return Faults(patterns[first], labels, example, region, y == labels[region])


def _groups(region: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(region, kind="stable")
    return np.split(order, np.searchsorted(region[order], np.arange(1, count)))


def locate(patterns: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Find the region of each pattern.

    Parameters
    ----------
    patterns : ndarray of bool, [N, sum of hidden]
    regions : ndarray of bool, [R, sum of hidden]
        Distinct.

    Returns
    -------
    ndarray of int, [N]
        Position in `regions`, -1 where a pattern is none of them.
    """
    keys = np.packbits(np.concatenate([regions, patterns]), axis=1)
    _, key = np.unique(keys, axis=0, return_inverse=True)
    key = key.reshape(-1)
    region_of = np.full(key.max() + 1, -1)
    region_of[key[: len(regions)]] = np.arange(len(regions))
    return region_of[key[len(regions) :]]
