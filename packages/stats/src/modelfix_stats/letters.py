"""Letters: the compact letter display (Piepho 2004), and the group letters of the study."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from string import ascii_lowercase

import numpy as np

MOST_COLUMNS = 500
READABLE_COLUMNS, READABLE_LETTERS = 6, 4

Column = frozenset[int]


@dataclass(frozen=True)
class Letters:
    """Letters of entrants.

    Attributes
    ----------
    names : tuple of str
        Entrants from best to worst.
    columns : tuple of tuple of int
        For each letter the positions of its entrants, the first letter first.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]

    def __getitem__(self, name: str) -> tuple[str, ...]:
        position = self.names.index(name)
        return tuple(letter(i) for i, column in enumerate(self.columns) if position in column)

    def as_dict(self) -> dict[str, tuple[str, ...]]:
        """Return the letters of every entrant."""
        return {name: self[name] for name in self.names}

    def text(self, name: str) -> str:
        """Return an entrant's letters as printed: with spaces once a letter has two characters."""
        letters = self[name]
        return ("" if all(len(word) == 1 for word in letters) else " ").join(letters)

    def share(self) -> np.ndarray:
        """Return which entrants share a letter, bool [n, n]."""
        member = np.zeros((len(self.names), len(self.columns)), dtype=int)
        for index, column in enumerate(self.columns):
            member[list(column), index] = 1
        return member @ member.T > 0

    @property
    def readable(self) -> bool:
        """Whether there are at most six letters, and at most four for any entrant."""
        most = max((len(self[name]) for name in self.names), default=0)
        return len(self.columns) <= READABLE_COLUMNS and most <= READABLE_LETTERS


def letter(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for 0, 1, ..."""
    name = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        name = ascii_lowercase[digit] + name
    return name


def compact_letters(
    names: Sequence[str], different: np.ndarray, *, sweep: bool = True
) -> Letters | None:
    """Return a valid display: two entrants share a letter iff they do not differ.

    Insert and absorb after Piepho (2004), then a sweep that drops letters that say nothing.

    Parameters
    ----------
    names : sequence of str
        From best to worst.
    different : array_like of bool, [n, n]
        Which pairs differ significantly; symmetric, False on the diagonal.
    sweep : bool
        Whether to drop letters whose every pair shares another one; without it the letters are
        all maximal sets of entrants that do not differ.

    Returns
    -------
    Letters or None
        None if more than 500 letters would be needed.
    """
    different = np.asarray(different, dtype=bool)
    columns: list[Column] = [frozenset(range(len(names)))] if names else []
    for i, j in combinations(range(len(names)), 2):
        if different[i, j]:
            columns = _insert(columns, i, j)
        if len(columns) > MOST_COLUMNS:
            return None
    columns.sort(key=sorted)
    if sweep:
        columns = _sweep(columns)
    display = Letters(tuple(names), tuple(tuple(sorted(column)) for column in columns))
    assert (display.share() == (~different | np.eye(len(names), dtype=bool))).all()
    return display


def _insert(columns: list[Column], i: int, j: int) -> list[Column]:
    """Split the columns that hold both, and absorb what another column contains."""
    split = {part for c in columns if i in c and j in c for part in (c - {i}, c - {j})}
    kept = {column for column in columns if not (i in column and j in column)}
    # Kept columns contain no other kept column; only new ones can be absorbed, by any.
    new = {part for part in split if part and not any(part < other for other in kept | split)}
    return list(kept | new)


def _sweep(columns: list[Column]) -> list[Column]:
    remaining = list(columns)
    for column in reversed(columns):
        others = [other for other in remaining if other != column]
        members = all(any(i in other for other in others) for i in column)
        pairs = all(any({i, j} <= other for other in others) for i, j in combinations(column, 2))
        if members and pairs:
            remaining = others
    return remaining


def group_letters(
    names: Sequence[str], different: np.ndarray, alone: Sequence[bool] | None = None
) -> Letters:
    """Return the study's group letters, which are *not* a compact letter display.

    From the best: the next entrant without letter opens one; then every entrant further down that
    differs from none of those in the letter joins, even if it has a letter already. Entrants
    without a common letter need not differ significantly.

    Parameters
    ----------
    names : sequence of str
        From best to worst.
    different : array_like of bool, [n, n]
    alone : sequence of bool, optional
        Entrants that share with nobody (results on fewer than two subjects).

    Returns
    -------
    Letters
    """
    different = np.asarray(different, dtype=bool)
    single = [False] * len(names) if alone is None else list(alone)
    columns: list[tuple[int, ...]] = []
    lettered: set[int] = set()
    for first in range(len(names)):
        if first in lettered:
            continue
        column = [first]
        for other in range(first + 1, len(names)):
            joins = not single[first] and not single[other]
            if joins and not different[other, column].any():
                column.append(other)
        columns.append(tuple(column))
        lettered.update(column)
    return Letters(tuple(names), tuple(columns))


def note(letters: Letters | None, untestable: int) -> list[str]:
    """Return what a reader must know of a compact letter display.

    Parameters
    ----------
    letters : Letters or None
    untestable : int
        Number of pairs without test.
    """
    notes = []
    if letters is None:
        notes.append(f"More than {MOST_COLUMNS} letters are needed: read the matrix instead.")
    elif not letters.readable:
        notes.append("Many letters are needed: the matrix of adjusted p values is easier to read.")
    if untestable:
        pairs = "pair is" if untestable == 1 else "pairs are"
        notes.append(f"{untestable} {pairs} untestable and may share a letter: nothing was shown.")
    return notes
