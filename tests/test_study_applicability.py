"""The study's inapplicable cells come out of `check` alone, on untrained models."""

import numpy as np
import pytest
from modelfix.catalogue import Catalogue
from modelfix_core import Split
from modelfix_core.errors import Unadaptable
from modelfix_stats.study import SUBJECTS, read_table
from modelfix_testing import study_task

CATALOGUE = Catalogue()
IMAGES_PER_CLASS = 60


def many(split, classes):
    """Return as many images as some approaches ask for: one black image, seen many times."""
    size = IMAGES_PER_CLASS * classes
    x = np.broadcast_to(np.uint8(0), (size, *split.x.shape[1:]))
    return Split(x, np.arange(size) % classes)


def unadaptable_in_print():
    """Return the cells that table 3 prints as UNADAPTABLE: abbreviation and data set."""
    table = read_table("table3_effectiveness")
    cells = table[table["status"] == "UNADAPTABLE"]
    return set(zip(cells["approach"], cells["dataset"], strict=True))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_check_alone_gives_the_studys_inapplicable_cells(subject, tmp_path):
    task = study_task(subject, tmp_path)
    for name in ("train", "validation", "repair"):
        setattr(task, name, many(getattr(task, name), task.model.num_classes))
    reasons = {}
    for info in CATALOGUE.infos.values():
        approach = CATALOGUE.registry.load(info.name)()
        try:
            approach.check(task)
        except Unadaptable as reason:
            reasons[info.abbreviation] = str(reason)
    printed = {name for name, dataset in unadaptable_in_print() if dataset == SUBJECTS[subject]}
    assert reasons.keys() == printed
    assert all(reasons.values())
