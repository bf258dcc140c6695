"""What may be wrong with a prepared subject: its files, labels, images and predictions."""

import hashlib
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from modelfix_core.dataset import Dataset, Split
from modelfix_core.errors import ModelfixError
from modelfix_core.subject import Subject

FEW_FAULTS = 20  # faults in the repair split from which hardly anything can be learned
CONSTANT = 0.95  # share of the predictions that one class may have
NEAR_CHANCE = 0.05  # accuracy above that of always guessing the largest class
DUPLICATES = 0.005  # share of a split that may lie in another one too
SMALL_GROUP = 0.1  # share of a split that a group should have
PROBABILITY_SUM = 1e-3


class Symptom(NamedTuple):
    """One thing that was looked at: whether it is well, and a sentence."""

    what: str
    ok: bool
    detail: str


def check_up(subject: Subject) -> Iterator[Symptom]:
    """Look at everything about a subject, from its files to its predictions."""
    problems = subject.problems()
    yield from (Symptom("files", False, problem) for problem in problems)
    if not problems:
        yield Symptom("files", True, "every file has the hash that the card states")
    try:
        dataset, model = subject.dataset(), subject.model
        dataset.validate()
    except ModelfixError as error:
        if str(error) not in problems:
            yield Symptom("labels", False, str(error))
        return
    yield Symptom("labels", True, f"all within the {len(dataset.classes)} classes")
    yield from _classes(dataset)
    yield from _duplicates(dataset)
    yield from _groups(dataset)
    seen = [name for name in ("validation", "repair", "test") if name in dataset.splits]
    logits = {name: model.predict(dataset[name]) for name in seen}
    yield from _logits(logits)
    if all(np.isfinite(values).all() for values in logits.values()):
        y = np.concatenate([dataset[name].y for name in seen])
        predicted = np.concatenate([logits[name].argmax(axis=1) for name in seen])
        yield from _predictions(y, predicted, list(dataset.classes))
        yield _faults(dataset["repair"], logits["repair"])


def _classes(dataset: Dataset) -> Iterator[Symptom]:
    missing = [
        f"{split} has no image of class {name!r}"
        for split, content in dataset.splits.items()
        for label, name in enumerate(dataset.classes)
        if not (content.y == label).any()
    ]
    if not missing:
        yield Symptom("classes", True, "every split has images of every class")
        return
    more = f" (and {len(missing) - 3} more)" if len(missing) > 3 else ""
    yield Symptom(
        "classes",
        False,
        f"{'; '.join(missing[:3])}{more}: give more images of these classes, or take the classes "
        "out of model and data.",
    )


def _duplicates(dataset: Dataset) -> Iterator[Symptom]:
    digests = {name: _digests(split) for name, split in dataset.splits.items()}
    found = []
    for first, second in combinations(digests, 2):
        shared = digests[first].keys() & digests[second].keys()
        if not shared:
            continue
        smaller = min(first, second, key=lambda name: len(dataset[name]))
        count = sum(digests[smaller][key] for key in shared)
        found.append((count / len(dataset[smaller]), count, first, second, smaller))
    if not found:
        yield Symptom("duplicates", True, "no image lies in two splits")
        return
    share, count, first, second, smaller = max(found)
    fact = f"{count} images of {smaller} ({share:.1%}) lie in {first} and in {second}"
    if share <= DUPLICATES:
        yield Symptom("duplicates", True, fact)
        return
    yield Symptom(
        "duplicates",
        False,
        f"{fact}, so that results on {smaller} say too much: remove the copies and prepare the "
        "subject again.",
    )


def _digests(split: Split) -> dict[bytes, int]:
    """Return how often each image is in the split, by the digest of its pixels."""
    counts: dict[bytes, int] = {}
    for batch in split.batches(1024):
        for image in np.ascontiguousarray(split.x[batch]):
            digest = hashlib.blake2b(image, digest_size=16).digest()
            counts[digest] = counts.get(digest, 0) + 1
    return counts


def _groups(dataset: Dataset) -> Iterator[Symptom]:
    if dataset.group_name is None:
        return
    columns = {name: split.group for name, split in dataset.splits.items()}
    groups = {name: column for name, column in columns.items() if column is not None}
    values = np.unique(np.concatenate(list(groups.values())))
    if len(values) < 2:
        yield Symptom(
            "groups", False,
            f"all images have one value of {dataset.group_name!r}: give images of both groups, or "
            "leave --group-column out.",
        )  # fmt: skip
        return
    shares = [
        (float(np.mean(column == value)), name, value)
        for name, column in groups.items()
        for value in values
    ]
    share, name, value = min(shares)
    fact = f"{dataset.group_name} {value} has {share:.1%} of the {name} split"
    if share >= SMALL_GROUP:
        yield Symptom("groups", True, f"the smallest: {fact}")
    else:
        yield Symptom(
            "groups", False,
            f"{fact}, too little to compare groups: give more images of this group.",
        )  # fmt: skip


def _logits(logits: dict[str, np.ndarray]) -> Iterator[Symptom]:
    values = np.concatenate(list(logits.values()))
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        yield Symptom(
            "logits", False,
            f"{broken.sum()} of {len(values)} images get NaN or infinite logits: check the weights "
            "and the range of the pixels (--scale, --mean, --std).",
        )  # fmt: skip
    elif values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=PROBABILITY_SUM):
        yield Symptom(
            "logits", False,
            "the outputs are probabilities, a softmax was left inside: prepare the subject again "
            "from the original model, which cuts it.",
        )  # fmt: skip
    else:
        yield Symptom("logits", True, f"finite, from {values.min():.3g} to {values.max():.3g}")


def _predictions(y: np.ndarray, predicted: np.ndarray, classes: list[str]) -> Iterator[Symptom]:
    counts = np.bincount(predicted, minlength=len(classes))
    largest, share = classes[int(counts.argmax())], counts.max() / len(predicted)
    majority = np.bincount(y).max() / len(y)
    if share > CONSTANT and share > majority + NEAR_CHANCE:
        yield Symptom(
            "predictions", False,
            f"{share:.1%} of the predictions are {largest!r}: the model hardly looks at the "
            "images; check the range of the pixels and the normalisation (--scale, --mean, --std).",
        )  # fmt: skip
    else:
        yield Symptom("predictions", True, f"the most frequent: {largest!r} with {share:.1%}")
    accuracy = float(np.mean(y == predicted))
    fact = f"{accuracy:.2%} of the images outside the train split are right"
    order, reordered = _better_order(y, predicted, classes)
    if reordered > accuracy + 2 * NEAR_CHANCE:
        yield Symptom(
            "accuracy", False,
            f"{fact}, but {reordered:.2%} would be with the classes in another order: prepare the "
            f"subject again with --classes {','.join(order)}",
        )  # fmt: skip
    elif accuracy <= majority + NEAR_CHANCE:
        yield Symptom(
            "accuracy", False,
            f"{fact}, no better than guessing ({majority:.2%}): the normalisation (--scale, "
            "--mean, --std), the layout of the axes (--layout) or the labels may be wrong.",
        )  # fmt: skip
    else:
        yield Symptom("accuracy", True, fact)


def _better_order(
    y: np.ndarray, predicted: np.ndarray, classes: list[str]
) -> tuple[list[str], float]:
    """Return the order of class names that fits the predictions best, and its accuracy.

    Each output is read as the class that it mostly stands for; 0 where two outputs stand for one.
    """
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (predicted, y), 1)
    meaning = confusion.argmax(axis=1)
    if len(set(meaning.tolist())) < len(classes):
        return classes, 0.0
    return [classes[label] for label in meaning], float(confusion.max(axis=1).sum() / len(y))


def _faults(repair: Split, logits: np.ndarray) -> Symptom:
    faults = int(np.sum(logits.argmax(axis=1) != repair.y))
    fact = f"the model mispredicts {faults} of {len(repair)} images of the repair split"
    if faults >= FEW_FAULTS:
        return Symptom("faults", True, fact)
    return Symptom(
        "faults", False, f"{fact}, too few to learn a repair from: give more images to it."
    )
