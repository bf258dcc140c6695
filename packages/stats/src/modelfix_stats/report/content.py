"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from modelfix_stats.tables import Table


@dataclass(frozen=True)
class Picture:
    """An image with lines of text below it; `image` is a key of `Content.images`."""

    image: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """A titled row of pictures.

    Attributes
    ----------
    title : str
    pictures : sequence of Picture
        Perhaps fewer than there are: `title` says of how many.
    better : bool
        Whether what they show is good.
    """

    title: str
    pictures: Sequence[Picture]
    better: bool


@dataclass(frozen=True)
class Point:
    """A candidate: its step, accuracy on the validation split in [0, 1], seconds since the start.

    Numbers are None where they are not known.
    """

    step: float
    accuracy: float | None
    seconds: float | None


@dataclass(frozen=True)
class CellPage:
    """The page of a cell: one entrant on one subject in one repetition.

    Attributes
    ----------
    subject, entrant : str
    repetition : int
        As in the data frame.
    tables : sequence of Table
    sheets : sequence of Sheet
    curve : sequence of Point
        The candidates in order.
    original_accuracy : float or None
        Of the original model on the validation split, for the curve.
    notes : sequence of str
        What a reader must know, and what is missing.
    """

    subject: str
    entrant: str
    repetition: int
    tables: Sequence[Table] = ()
    sheets: Sequence[Sheet] = ()
    curve: Sequence[Point] = ()
    original_accuracy: float | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Content:
    """Everything a report shows.

    Attributes
    ----------
    frame : DataFrame
        Long format, as `modelfix_stats.check` describes.
    title : str
    problems : sequence of str
        Sentences on what could not be read; shown at the top.
    pages : sequence of CellPage
    images : mapping of str to str
        ``data:image/...`` addresses by key, each embedded once.
    definitions, provenance : sequence of Table
    """

    frame: pd.DataFrame
    title: str = "Model fixing: report"
    problems: Sequence[str] = ()
    pages: Sequence[CellPage] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    definitions: Sequence[Table] = ()
    provenance: Sequence[Table] = ()
