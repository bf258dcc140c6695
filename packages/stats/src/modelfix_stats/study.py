"""The published study's tables as data, and what was measured here beside them.

You, Mo, Wang, Zhao, Dong, Chen: A Comprehensive Study of Deep Learning Model Fixing Approaches,
ICSE 2026, tables 2 to 6.
"""

from functools import cache
from importlib.resources import files
from typing import TypeVar

import numpy as np
import pandas as pd

from modelfix_stats.frame import FIXED, Data, Summary, from_summary
from modelfix_stats.metrics import find_metric
from modelfix_stats.values import describe

REPETITIONS = 3
ABBREVIATIONS = {
    "apricot": "AP",
    "editable-training": "ET",
    "fsgmix": "FM",
    "deeprepair": "DR",
    "hudd": "HUDD",
    "hybridrepair": "HR",
    "minimal-3m": "3M",
    "reassure": "RA",
    "arachne": "AR",
    "care": "CARE",
    "neurecover": "NR",
    "i-repair": "IR",
    "distrrep": "DTR",
    "genmunn": "GM",
    "vere": "VERE",
    "inner": "IN",
}
SUBJECTS = {
    "mnist-lenet5": "MNIST",
    "utkface-facenet": "UTKFace",
    "cifar10-vgg16": "CIFAR10",
    "cifar10s-resnet18": "CIFAR10S",
    "imagenet-densenet121": "ImageNet",
}
PUBLISHED_AS = {"asr_study": "asr", "aaod_study": "aaod"}
Numbers = TypeVar("Numbers", float, pd.Series)
PERCENT = ("accuracy", "repair_rate", "asr", "nfr")


def read_table(name: str) -> pd.DataFrame:
    """Return one of the study's tables as printed.

    Parameters
    ----------
    name : str
        table2_subjects, table3_effectiveness, table4_groups, table5_properties or table6_time.

    Returns
    -------
    DataFrame
    """
    source = files("modelfix_stats") / "data" / f"{name}.csv"
    with source.open(encoding="utf-8") as stream:
        return pd.read_csv(stream)


def published() -> Summary:
    """Return tables 3, 5 and 6 in the statistics' form: shares in [0, 1] and seconds.

    Subjects and entrants carry the study's names (MNIST, AP). Standard deviations were printed
    with ddof 0 and are converted. Gains are those printed; the original's ASR and AAOD follow from
    mean and gain. (Its ASR differs between entrants, each having been attacked apart. Its AAOD is
    one number per subject, 0.0202 and 0.3188, which rounding lets vary by up to 0.0002.)

    Returns
    -------
    Summary
    """
    cells = pd.concat([read_table("table3_effectiveness"), read_table("table5_properties")])
    key = ["approach", "dataset", "metric"]
    gains = cells[cells["metric"].str.endswith("_gain_percent")]
    gains = gains.assign(metric=gains["metric"].str.removesuffix("_gain_percent"))
    gains = gains.rename(columns={"mean": "gain"})[[*key, "gain"]]
    values = cells[~cells["metric"].str.endswith("_gain_percent")].merge(gains, "left", key)
    percent = values["metric"].isin(PERCENT)
    for column in ("mean", "std"):
        values[column] = values[column].where(~percent, values[column] / 100)
    time = read_table("table6_time").rename(columns={"seconds": "mean"})
    values = pd.concat([values, time.assign(metric="seconds", std=np.nan, gain=np.nan)])
    accuracy = read_table("table2_subjects").set_index("dataset")["accuracy_percent"] / 100
    implied = implied_original(values["mean"], values["gain"])[0]
    known = values["dataset"].map(accuracy)
    values["original"] = known.where(values["metric"] == "accuracy", implied)
    frame = pd.DataFrame(
        {
            "subject": values["dataset"],
            "entrant": values["approach"],
            "approach": values["approach"],
            "category": values["category"].str.removesuffix("-level").str.lower(),
            "metric": values["metric"],
            "mean": values["mean"],
            "std": values["std"],
            "n": REPETITIONS,
            "original": values["original"],
            "gain": values["gain"],
            "outcome": values["status"].replace("OK", FIXED),
        }
    )
    return from_summary(frame, ddof=0)


def published_letters() -> pd.DataFrame:
    """Return table 4: entrant, metric, letters (empty where printed ``-``)."""
    table = read_table("table4_groups").rename(columns={"approach": "entrant"})
    table["metric"] = table["metric"].replace("time", "seconds")
    return table[["entrant", "metric", "letters"]].fillna({"letters": ""})


def layers(subject: str) -> int | None:
    """Return the layers of a subject's model as the study counts them; None if it has no such.

    Parameters
    ----------
    subject : str
        One of the study's data sets, or a name that ends in one of its architectures
        (``fashion-vgg16``).
    """
    known = _known_layers()
    return known.get(subject, known.get(subject.rpartition("-")[2]))


@cache
def _known_layers() -> dict[str, int]:
    """Return the layers of table 2 by data set and by architecture."""
    table = read_table("table2_subjects")
    names = [*table["dataset"], *table["model"].str.lower()]
    return dict(zip(names, 2 * table["layers"].tolist(), strict=True))


def beside_published(data: Data) -> pd.DataFrame:
    """Compare what was measured with the study's tables, cell by cell.

    Subjects and approaches are matched by name (``mnist-lenet5`` is MNIST) or by the study's own;
    what the study does not have is left out. ``asr`` and ``asr_study`` both stand beside the
    printed ASR, though only the latter is defined as the study's.

    Parameters
    ----------
    data : DataFrame or Summary

    Returns
    -------
    DataFrame
        subject, entrant, metric, status, published_status, n, mean, std (ddof 1), published_mean,
        published_std, deviation (mean - published_mean; for seconds the factor between them),
        deviation_in_std (in standard deviations of both together; NaN where neither varies), sign
        and published_sign (1 better than the original model, -1 worse, 0 equal as printed), and
        same_sign (None where one has no value). Not for time, which has no sign.
    """
    ours = describe(data)
    ours["dataset"] = ours["subject"].map(SUBJECTS).fillna(ours["subject"])
    ours["abbreviation"] = ours["approach"].map(ABBREVIATIONS).fillna(ours["approach"])
    ours["printed"] = ours["metric"].replace(PUBLISHED_AS)
    theirs = describe(published())
    keys = ["subject", "entrant", "metric"]
    heads = {name: f"published_{name}" for name in ("status", "mean", "std", "better", "gain")}
    theirs = theirs[[*keys, *heads]].rename(columns=heads)
    theirs = theirs.rename(
        columns=dict(zip(keys, ["dataset", "abbreviation", "printed"], strict=True))
    )
    both = ours.merge(theirs, on=["dataset", "abbreviation", "printed"], how="inner")
    seconds = both["metric"] == "seconds"
    both["deviation"] = np.where(
        seconds, both["mean"] / both["published_mean"], both["mean"] - both["published_mean"]
    )
    spread = np.hypot(both["std"].fillna(0), both["published_std"].fillna(0))
    both["deviation_in_std"] = (both["deviation"] / spread).where((spread > 0) & ~seconds)
    both["sign"] = _signs(both["metric"], both["better"])
    # A printed gain says more than a printed mean: it was rounded last.
    stated = both["published_gain"].where(both["published_gain"].notna(), both["published_better"])
    both["published_sign"] = _signs(both["metric"], stated)
    known = both["sign"].notna() & both["published_sign"].notna()
    same = (both["sign"] == both["published_sign"]).astype(object)
    both["same_sign"] = same.where(known, None)
    columns = ["subject", "entrant", "metric", "status", "published_status", "n", "mean", "std"]
    columns += ["published_mean", "published_std", "deviation", "deviation_in_std"]
    return both[[*columns, "sign", "published_sign", "same_sign"]]


def _signs(metrics: pd.Series, better: pd.Series) -> pd.Series:
    """Return the sign of what is printed; NaN for time."""
    digits = metrics.map(lambda id: find_metric(id).decimals + 2 * find_metric(id).percent)
    rounded = [round(value, place) for value, place in zip(better, digits, strict=True)]
    signs = pd.Series(np.sign(rounded), index=better.index)
    return signs.where(metrics != "seconds")


def agreement(beside: pd.DataFrame) -> pd.DataFrame:
    """Sum up `beside_published` by metric.

    Parameters
    ----------
    beside : DataFrame
        What `beside_published` returned.

    Returns
    -------
    DataFrame
        By metric: cells, same_status, compared (cells with a value on both sides), same_sign,
        median_deviation, largest_deviation (by absolute value; of seconds by factor).
    """

    def summarise(part: pd.DataFrame) -> pd.Series:
        deviation = part["deviation"].dropna()
        distance = deviation.abs()
        if part["metric"].iloc[0] == "seconds":
            distance = np.log(deviation).abs()
        largest = deviation.loc[distance.idxmax()] if len(deviation) else np.nan
        return pd.Series(
            {
                "cells": len(part),
                "same_status": int((part["status"] == part["published_status"]).sum()),
                "compared": len(deviation),
                "same_sign": int((part["same_sign"] == True).sum()),  # noqa: E712
                "median_deviation": deviation.median(),
                "largest_deviation": largest,
            }
        )

    rows = {metric: summarise(part) for metric, part in beside.groupby("metric", sort=False)}
    counts = ["cells", "same_status", "compared", "same_sign"]
    return pd.DataFrame(rows).T.rename_axis("metric").astype(dict.fromkeys(counts, int))


def identity(data: Data) -> pd.DataFrame:
    """Check accuracy' = accuracy + RR (1 - accuracy) - NFR on every cell.

    Parameters
    ----------
    data : DataFrame or Summary

    Returns
    -------
    DataFrame
        subject, entrant, original, accuracy, repair_rate, nfr, nfr_implied, residual
        (nfr - nfr_implied), gain (as stated), gain_implied (by accuracy and original, percent).
    """
    cells = describe(data)
    cells = cells[cells["status"] == "OK"]
    wide = cells.pivot(index=["subject", "entrant"], columns="metric", values="mean")
    about = cells[cells["metric"] == "accuracy"].set_index(["subject", "entrant"])
    result = wide[["accuracy", "repair_rate", "nfr"]].join(about[["original", "gain"]]).dropna()
    lost = result["original"] - result["accuracy"]
    result["nfr_implied"] = lost + result["repair_rate"] * (1 - result["original"])
    result["residual"] = result["nfr"] - result["nfr_implied"]
    result["gain_implied"] = -100 * lost / result["original"]
    return result.reset_index()


def implied_original(
    mean: Numbers, gain: Numbers, *, mean_step: float = 0.01, gain_step: float = 0.01
) -> tuple[Numbers, Numbers, Numbers]:
    """Return the original's value that a printed mean and gain imply, lower being better.

    Parameters
    ----------
    mean : float or Series
        Of the fixed model.
    gain : float or Series
        Printed relative gain in percent.
    mean_step, gain_step : float
        Last printed digits.

    Returns
    -------
    value, low, high : float or Series
        ``mean / (1 - gain / 100)`` and the range that rounding leaves.
    """
    value = mean / (1 - gain / 100)
    low = (mean - mean_step / 2) / (1 - (gain - gain_step / 2) / 100)
    high = (mean + mean_step / 2) / (1 - (gain + gain_step / 2) / 100)
    return value, low, high
