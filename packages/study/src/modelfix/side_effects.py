"""Side effects with and without post-processing: the study's Figure 1 for any run, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelfix_core.errors import ModelfixError
from modelfix_core.files import atomic_path
from modelfix_core.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY, GREEN, RED, PAPER = "#222222", "#8a8a8a", "#1a7f37", "#b42318", "#ffffff"
NONE = "NO"  # the study's name for no post-processing
PICTURE = "side-effects.png"
METRICS = (
    ("accuracy", "accuracy (%)", 100),
    ("asr", "ASR (%)", 100),
    ("aaod", "AAOD", 1),
    ("nfr", "NFR (%)", 100),
)

Columns = Mapping[str, Sequence[Record]]


def same_entrant(runs: Sequence[Path], records: Sequence[Record]) -> None:
    """Refuse runs that are not repetitions of one entrant on one subject.

    Raises
    ------
    ModelfixError
    """
    first = runs[0].absolute()
    for run, record in zip(runs, records, strict=True):
        if run.absolute().parent != first.parent or record.subject != records[0].subject:
            raise ModelfixError(
                f"{run} and {runs[0]} are not repetitions of one entrant; give those of one."
            )


def draw(columns: Columns, path: Path) -> None:
    """Draw a panel per metric with a box over the repetitions per method.

    A single repetition is a point with its Wilson interval at 95 %; the dashed line is the original
    model. Metrics without values have no panel.

    Parameters
    ----------
    columns : mapping of str to sequence of Record
        Evaluated records of the repetitions by method, the first without post-processing.
    path : Path
        PNG, written atomically.

    Raises
    ------
    ModelfixError
        If no record has a value.
    """
    from matplotlib.figure import Figure

    shown = [m for m in METRICS if any(values(records, m[0]) for records in columns.values())]
    if not shown:
        raise ModelfixError("none of these records has values to draw; evaluate them first.")
    figure = Figure(figsize=(3.3 * len(shown), 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (metric, title, factor) in zip(axes, shown, strict=True):
        _panel(axis, columns, metric, factor)
        axis.set_title(title, fontsize=10, color=INK)
    record = next(iter(columns.values()))[0]
    count = len(next(iter(columns.values())))
    figure.suptitle(
        f"{record.entrant.approach} on {record.subject}: side effects with post-processing, "
        f"{count} repetition{'s' * (count != 1)}\ngreen: better than without ({NONE}), red: worse; "
        f"dashed: the original model{'' if count > 1 else '; bars: Wilson intervals at 95 %'}",
        fontsize=10,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, facecolor=PAPER)


def values(records: Sequence[Record], metric: str, model: str = "metrics") -> list[float]:
    """Return the values of a metric of the repetitions, those that have one."""
    found = [_entry(record, metric, model).get("value") for record in records]
    return [value for value in found if value is not None]


def _entry(record: Record, metric: str, model: str = "metrics") -> dict[str, Any]:
    return (record.evaluation or {}).get(model, {}).get(metric) or {}


def _panel(axis: "Axes", columns: Columns, metric: str, factor: float) -> None:
    without = values(columns[NONE], metric)
    for place, records in enumerate(columns.values()):
        found = values(records, metric)
        if not found:
            axis.annotate(
                "none", (place, 0.02), xycoords=("data", "axes fraction"), ha="center",
                fontsize=7, color=GREY,
            )  # fmt: skip
            continue
        colour = _colour(metric, found, without)
        scaled = [factor * value for value in found]
        if len(found) > 1:
            _box(axis, place, scaled, colour)
            continue
        interval = next(
            (e["interval"] for record in records if (e := _entry(record, metric)).get("interval")),
            None,
        )
        spread = None
        if interval is not None:
            low, high = (factor * bound for bound in interval)
            spread = [[max(0.0, scaled[0] - low)], [max(0.0, high - scaled[0])]]
        axis.errorbar(place, scaled, yerr=spread, fmt="o", color=colour, capsize=3, ms=5, lw=1)
    before = values(columns[NONE], metric, "original")
    if before:
        axis.axhline(factor * sum(before) / len(before), color=GREY, ls="--", lw=0.9, zorder=0)
    axis.set_xticks(range(len(columns)), list(columns), fontsize=8)
    axis.set_xlim(-0.6, len(columns) - 0.4)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(axis="y", color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _box(axis: "Axes", place: int, scaled: list[float], colour: str) -> None:
    lines = {"color": colour, "linewidth": 1.1}
    axis.boxplot(
        [scaled], positions=[place], widths=0.55, manage_ticks=False, showfliers=False,
        boxprops=lines, whiskerprops=lines, capprops=lines, medianprops=lines,
    )  # fmt: skip
    axis.scatter([place] * len(scaled), scaled, s=12, color=colour, zorder=3)


def _colour(metric: str, found: Sequence[float], without: Sequence[float]) -> str:
    """Return green where the mean is better than without post-processing, red where worse."""
    if not without or list(found) == list(without):
        return INK
    change = sum(found) / len(found) - sum(without) / len(without)
    if change == 0:
        return INK
    return GREEN if (change > 0) == (metric == "accuracy") else RED
