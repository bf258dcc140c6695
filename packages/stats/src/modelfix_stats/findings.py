"""The study's eight findings as statements that records can hold or break.

You, Mo, Wang, Zhao, Dong, Chen: A Comprehensive Study of Deep Learning Model Fixing Approaches,
ICSE 2026, section 6. A finding has a leading claim, which is its verdict, and further claims, most
of them about named approaches, each with a verdict of its own.
"""

from dataclasses import dataclass

import pandas as pd

from modelfix_stats.claims import (
    AAOD,
    ACCURACY,
    ASR,
    ASR_KEPT,
    FIXED_SHARE,
    NFR,
    REPAIR,
    SECONDS,
    Claim,
    Records,
    Sides,
    Verdict,
    best_everywhere,
    falling,
    falling_each,
    mostly_kept,
    never_worse,
    ordered,
    representatives,
    represented,
    worst_of_all,
)
from modelfix_stats.frame import FIXED, Data, Summary, complete
from modelfix_stats.study import published
from modelfix_stats.tables import CATEGORIES, Cell, Table

RETRAINING, FINE_TUNING = ("AP", "ET", "HUDD"), ("FM", "DR", "HR")
TRAINING, SEARCH = ("IR", "IN"), ("AR", "CARE", "NR", "DTR", "GM", "VERE")
RADICAL, CONSERVATIVE = (*RETRAINING, *TRAINING), ("FM", "GM", "VERE")
NOTE = (
    "A claim compares means over subjects of the mean over approaches, on the subjects that all "
    "its sides have. It says nothing of chance: the letters and pairs of the comparisons do."
)


@dataclass(frozen=True)
class Finding:
    """One of the study's findings.

    Attributes
    ----------
    number : int
        1 to 8, as in the study.
    title : str
        What it is about.
    claims : tuple of Claim
        The leading claim first; the others concern named approaches.
    """

    number: int
    title: str
    claims: tuple[Claim, ...]

    @property
    def statement(self) -> str:
        """The leading claim's statement."""
        return self.claims[0].statement

    @property
    def verdict(self) -> Verdict:
        """The leading claim's verdict."""
        return self.claims[0].verdict

    @property
    def sentence(self) -> str:
        """The leading claim's numbers in words."""
        return self.claims[0].sentence

    @property
    def numbers(self) -> pd.DataFrame:
        """The leading claim's numbers."""
        return self.claims[0].numbers


def findings(data: Data) -> tuple[Finding, ...]:
    """Return the study's eight findings with what the records say of each.

    Parameters
    ----------
    data : DataFrame or Summary
        As the tables take it. One entrant stands for an approach on each subject: the one of the
        approach's name, else the one with most subjects.

    Returns
    -------
    tuple of Finding
        All eight; a claim whose records are missing or cannot be compared says so.

    Raises
    ------
    StatsError
        If the data lack a column of the long format.
    """
    records = Records(data)
    return (
        Finding(1, "Applicability", _applicability(records)),
        Finding(2, "Overall accuracy", _accuracy(records)),
        Finding(3, "Error correction", _repair(records)),
        Finding(4, "Size of the model", _size(records)),
        Finding(5, "Robustness", _robustness(records)),
        Finding(6, "Fairness", _fairness(records)),
        Finding(7, "Backward compatibility", _compatibility(records)),
        Finding(8, "Time", _time(records)),
    )


def findings_table(data: Data, *, beside: bool = False) -> Table:
    """Return the findings as a table: what is claimed, the verdict and its numbers.

    Parameters
    ----------
    data : DataFrame or Summary
    beside : bool
        Add the verdict that the same claim gets from the study's own tables.

    Returns
    -------
    Table
    """
    ours = findings(data)
    theirs = findings(published()) if beside else ours
    rows = []
    for finding, printed in zip(ours, theirs, strict=True):
        for place, (claim, study) in enumerate(zip(finding.claims, printed.claims, strict=True)):
            letter = chr(ord("a") + place - 1)
            name = f"{finding.number}{letter}" if place else f"{finding.number} {finding.title}"
            verdicts = (claim.verdict, study.verdict) if beside else (claim.verdict,)
            texts = (name, claim.statement, *verdicts, claim.sentence)
            rows.append(tuple(Cell(str(text)) for text in texts))
    return Table(
        title="The study's findings",
        groups=(),
        columns=("finding", "claim", "verdict", *(["study's tables"] if beside else []), "numbers"),
        rows=tuple(rows),
        notes=(NOTE, *_notes(data)),
        sections=tuple(str(finding.number) for finding in ours for _ in finding.claims),
        widths=(0.1, 0.22, 0.1, *([0.1] if beside else []), 0.38),
    )


def _notes(data: Data) -> list[str]:
    """Return what a reader must know of the records."""
    frame = data.frame if isinstance(data, Summary) else complete(data)
    chosen = representatives(frame)
    frame = represented(frame)
    notes = []
    others = chosen[chosen["entrant"] != chosen["approach"]]
    if len(others):
        stand = [f"{row.entrant} on {row.subject}" for row in others.itertuples()]
        notes.append(f"Standing for their approaches: {', '.join(stand)}.")
    fixed = frame[frame["outcome"] == FIXED]
    never = sorted(set(chosen["approach"]) - set(fixed["approach"]))
    if never:
        notes.append(f"Without a FIXED cell: {', '.join(never)}.")
    if "repetition" in fixed:
        cells = fixed.groupby(["subject", "entrant"])["repetition"].nunique()
        single = int((cells == 1).sum())
        if single:
            notes.append(
                f"{single} of {len(cells)} cells are a single repetition: their spread is unknown."
            )
    return notes


# -- the findings ----------------------------------------------------------------------------------

MODEL, LAYER, NEURON = ({f"{name}-level": name} for name in CATEGORIES)
OTHER_MODEL = "the other model-level approaches"
OTHER_NEURON = "the other neuron-level approaches"


def _applicability(records: Records) -> tuple[Claim, ...]:
    def compare(statement: str, sides: Sides, **options: bool) -> Claim:
        return ordered(records, FIXED_SHARE, f"share of FIXED cells: {statement}", sides, **options)

    return (
        compare(
            "model-level and neuron-level > layer-level",
            {**MODEL, **NEURON, **LAYER},
            last_only=True,
        ),
        compare("FM, DR, HUDD > AP, ET, HR", _two(("FM", "DR", "HUDD"), ("AP", "ET", "HR"))),
        compare(
            "AR, IR, GM, CARE, IN > NR, DTR, VERE",
            _two(("AR", "IR", "GM", "CARE", "IN"), ("NR", "DTR", "VERE")),
        ),
    )


def _accuracy(records: Records) -> tuple[Claim, ...]:
    what = "mean relative accuracy gain"
    others = ("AP", "ET", *FINE_TUNING)
    return (
        ordered(
            records,
            ACCURACY,
            f"{what}: model-level > layer-level > neuron-level",
            {**MODEL, **LAYER, **NEURON},
        ),
        ordered(
            records,
            ACCURACY,
            f"{what}: HUDD > {OTHER_MODEL}",
            {"HUDD": ("HUDD",), OTHER_MODEL: others},
        ),
        ordered(
            records,
            ACCURACY,
            f"{what}: IR < {OTHER_NEURON}",
            {OTHER_NEURON: ("IN", *SEARCH), "IR": ("IR",)},
        ),
        never_worse(records, ACCURACY, CONSERVATIVE),
    )


def _repair(records: Records) -> tuple[Claim, ...]:
    def compare(statement: str, sides: Sides) -> Claim:
        return ordered(records, REPAIR, f"mean RR: {statement}", sides)

    return (
        compare("model-level > neuron-level > layer-level", {**MODEL, **NEURON, **LAYER}),
        compare("model-level, retraining > fine-tuning", _two(RETRAINING, FINE_TUNING)),
        compare("neuron-level, training > searching", _two(TRAINING, SEARCH)),
        compare("radical > conservative changes", _two(RADICAL, CONSERVATIVE)),
    )


def _size(records: Records) -> tuple[Claim, ...]:
    return (
        falling(records, REPAIR, "mean RR of a subject falls with the layers of its model"),
        falling_each(records, REPAIR, "RR of most approaches falls with the layers of the model"),
        falling(records, FIXED_SHARE, "share of FIXED cells falls with the layers of the model"),
    )


def _robustness(records: Records) -> tuple[Claim, ...]:
    sides = {**MODEL, **LAYER, **NEURON}
    others = ("HUDD", *FINE_TUNING, "3M", "RA", *TRAINING, *SEARCH)
    return (
        ordered(
            records,
            ASR_KEPT,
            "share of cells whose ASR does not rise: model-level > neuron-level and layer-level",
            sides,
            first_only=True,
        ),
        ordered(
            records,
            ASR,
            "mean relative ASR gain: model-level > neuron-level and layer-level",
            sides,
            first_only=True,
        ),
        ordered(
            records,
            ASR,
            "mean relative ASR gain: AP, ET > all other approaches",
            {"AP, ET": ("AP", "ET"), "all others": others},
        ),
        never_worse(records, ASR, ("ET",)),
    )


def _fairness(records: Records) -> tuple[Claim, ...]:
    return (
        mostly_kept(records, AAOD),
        best_everywhere(records, AAOD, "IN"),
        worst_of_all(records, AAOD, "3M"),
    )


def _compatibility(records: Records) -> tuple[Claim, ...]:
    def compare(statement: str, sides: Sides) -> Claim:
        return ordered(records, NFR, f"mean NFR: {statement}", sides, low_first=True)

    return (
        compare("layer-level < neuron-level < model-level", {**LAYER, **NEURON, **MODEL}),
        compare("conservative < radical changes", _two(CONSERVATIVE, RADICAL)),
        compare("neuron-level, searching < training", _two(SEARCH, TRAINING)),
        compare("model-level, fine-tuning < retraining", _two(FINE_TUNING, RETRAINING)),
    )


def _time(records: Records) -> tuple[Claim, ...]:
    def compare(statement: str, sides: Sides, **options: bool) -> Claim:
        statement = f"geometric mean time: {statement}"
        return ordered(records, SECONDS, statement, sides, low_first=True, **options)

    others = ("ET", "HUDD", *FINE_TUNING)
    return (
        compare(
            "layer-level < model-level and neuron-level",
            {**LAYER, **MODEL, **NEURON},
            first_only=True,
        ),
        compare("HUDD, FM < AP, ET, DR, HR", _two(("HUDD", "FM"), ("AP", "ET", "DR", "HR"))),
        compare(
            "IN, IR, VERE, AR < CARE, NR, DTR, GM",
            _two((*TRAINING, "VERE", "AR"), ("CARE", "NR", "DTR", "GM")),
        ),
        compare(f"{OTHER_MODEL} < AP", {OTHER_MODEL: others, "AP": ("AP",)}),
        ordered(
            records,
            REPAIR,
            f"mean RR: AP > {OTHER_MODEL}",
            {"AP": ("AP",), OTHER_MODEL: others},
        ),
    )


def _two(first: tuple[str, ...], second: tuple[str, ...]) -> Sides:
    return {", ".join(first): first, ", ".join(second): second}
