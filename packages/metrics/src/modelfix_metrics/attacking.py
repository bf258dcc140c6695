"""Attack the original and the fixed model on the same inputs: pool, cache, values."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.files import atomic_path
from modelfix_core.model import Model

from modelfix_metrics.attacks import (
    Attack,
    AttackContext,
    Attacked,
    AttackOptions,
    Sample,
    derived_values,
    masking_warning,
    success_value,
)
from modelfix_metrics.decisions import are_probabilities, predicted
from modelfix_metrics.predictions import Predictions
from modelfix_metrics.value import Comparison, MetricValue, mcnemar_p

if TYPE_CHECKING:
    from modelfix_metrics.aligning import AlignedTarget

logger = logging.getLogger(__name__)

TOLERATED_DISAGREEMENT = 0.001  # of onnxruntime's and PyTorch's predicted classes


@dataclass
class AttackFindings:
    """Values and books of all attacks of an evaluation; fields as in `Evaluation`."""

    values: list[MetricValue] = field(default_factory=list)
    original: list[MetricValue] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Attacking:
    """The attacks of one evaluation; parameters as in `evaluate`."""

    original: Model
    fixed: Model
    test: Split
    predictions: Predictions
    epsilon: float
    order_seed: int
    attacked: int
    device: str
    options: AttackOptions
    reporter: Callable[[int, int, str], None] | None = None
    combined: "AlignedTarget | None" = None
    """What is attacked in place of `fixed`, and answers the predictions' logits after."""

    def run(self) -> AttackFindings:
        """Run every attack asked for.

        Returns
        -------
        AttackFindings
            ABSENT values where a model has no gradients.

        Raises
        ------
        ModelfixError
            If PyTorch or Foolbox is missing, or PyTorch predicts other classes than onnxruntime.
        """
        found = AttackFindings()
        attacks = [Attack(m, self.epsilon, self.options.preset) for m in self.options.metrics]
        try:
            self._prepare()
        except Unadaptable as reason:
            split = self.predictions.split
            found.values = [MetricValue.absent(a.metric, str(reason), split) for a in attacks]
            return found
        self._total = 2 * len(attacks) * len(self.sample)
        for number, attack in enumerate(attacks):
            started = perf_counter()
            self._done = 2 * number * len(self.sample)
            self._attack(attack, found)
            found.seconds[attack.metric] = perf_counter() - started
        _warn_of_masking(found)
        return found

    # -- preparation ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Load both models, check the conversion and draw the attacked inputs."""
        try:
            from modelfix_metrics.adversary import Target
        except ImportError as error:
            raise ModelfixError(
                f"the attack needs PyTorch and Foolbox ({error}); install modelfix-metrics[attack] "
                "or evaluate without attack."
            ) from error
        p = self.predictions
        self.targets = [
            Target(self.original, self.device, are_probabilities(p.before)),
            self.combined or Target(self.fixed, self.device, are_probabilities(p.after)),
        ]
        right, self.disagreements = [], 0
        for target, logits in zip(self.targets, (p.before, p.after), strict=True):
            other = predicted(target.logits(self.test))
            self.disagreements += self._disagreement(target.model, predicted(logits), other)
            right.append((predicted(logits) == p.y) & (other == p.y))
        self.right_before, self.right_after = right
        self.sample = Sample.draw(self._pool(), self.order_seed, self.attacked)

    def _disagreement(self, model: Model, expected: np.ndarray, found: np.ndarray) -> int:
        count = int((expected != found).sum())
        if count > TOLERATED_DISAGREEMENT * len(found):
            raise ModelfixError(
                f"{model.name}: PyTorch and onnxruntime predict different classes for {count} of "
                f"{len(found)} inputs, so the attack would be on another model; please report it."
            )
        return count

    def _pool(self) -> np.ndarray:
        if self.options.subset == "all":
            return np.ones(len(self.predictions), dtype=bool)
        pool = self.right_before & self.right_after
        for other in self.options.repetitions:
            other.require_same_inputs(self.predictions.inputs, "those of another repetition")
            pool &= other.right_after
        return pool

    # -- one attack ----------------------------------------------------------------------------

    def _attack(self, attack: Attack, found: AttackFindings) -> None:
        sample = self.sample
        before = self._attack_original(attack)
        after = self._run(1, attack, sample.ranks)
        context = AttackContext(
            sample, self.predictions.split, self._variant(), self._details(attack)
        )
        original = success_value(attack.metric, before, context)
        fixed = success_value(attack.metric, after, context)
        pairs = [(original, fixed)]
        if attack.metric == "asr":
            rights = [r[sample.positions] for r in (self.right_before, self.right_after)]
            derived = [
                derived_values(flags, right, context)
                for flags, right in zip((before, after), rights, strict=True)
            ]
            pairs += list(zip(*derived, strict=True))
        p_value = mcnemar_p(
            (before.wrong & ~after.wrong).sum(), (~before.wrong & after.wrong).sum()
        )
        found.original += [pair[0] for pair in pairs]
        found.values += [pair[1] for pair in pairs]
        found.comparisons += [
            Comparison(*pair, p_value if pair[1].metric == attack.metric else None)
            for pair in pairs
        ]

    def _variant(self) -> str | None:
        """Name what differs from the default definition."""
        differing = [
            self.options.preset if self.options.preset != "pgd" else "",
            "all-inputs" if self.options.subset == "all" else "",
            "all-repetitions" if self.options.repetitions else "",
            "eot" if self.combined is not None and self.combined.fresh else "",
        ]
        return ",".join(filter(None, differing)) or None

    def _details(self, attack: Attack) -> dict[str, Any]:
        details = {"attack": attack.as_dict(), "disagreements": self.disagreements}
        if self.combined is not None:
            details["draws"] = "fresh" if self.combined.fresh else "fixed"
        return details

    def _run(self, which: int, attack: Attack, ranks: np.ndarray) -> Attacked:
        note = f"{attack.metric} of the {('original', 'fixed')[which]} model"

        def progress(inputs: int) -> None:
            self._done = min(self._done + inputs, self._total)
            if self.reporter is not None:
                self.reporter(self._done, self._total, note)

        target = self.targets[which]
        return target.attack(attack, self.test, ranks, self.sample.order, self.order_seed, progress)

    def _attack_original(self, attack: Attack) -> Attacked:
        """Attack the original model, or take from the cache what is known of it.

        The original is attacked along the order on whole batches of the inputs that it gets
        right, whatever entrant asks: so one cached prefix serves all entrants. In the network's
        space the bounds depend on the sample, so nothing can be shared there.
        """
        if attack.space == "network":
            return self._run(0, attack, self.sample.ranks)
        order = self.sample.order
        everything = self.options.subset == "all"
        candidates = (
            np.arange(len(order)) if everything else np.flatnonzero(self.right_before[order])
        )
        wanted = np.searchsorted(candidates, self.sample.ranks)
        batch = self.targets[0].batch
        needed = -(-(int(wanted.max(initial=-1)) + 1) // batch) * batch
        cache = OriginalCache(self.options.cache, self._identity(attack, candidates))
        known = cache.load()
        missing = candidates[len(known) : needed]
        if len(missing):
            known = known.join(self._run(0, attack, missing))
            cache.save(known)
        return known.select(wanted)

    def _identity(self, attack: Attack, candidates: np.ndarray) -> dict[str, Any]:
        return {
            "model": self.original.hash,
            "inputs": self.predictions.inputs,
            "candidates": hashlib.sha256(candidates.astype("<i8").tobytes()).hexdigest(),
            "order_seed": self.order_seed,
            "attack": attack.as_dict(),
            "batch": self.targets[0].batch,
            "device": self.targets[0].device.type,
        }


def _warn_of_masking(found: AttackFindings) -> None:
    for values in (found.values, found.original):
        by_metric = {value.metric: value for value in values}
        if not {"asr", "asr_margin"} <= by_metric.keys():
            continue
        warning = masking_warning(by_metric["asr"], by_metric["asr_margin"])
        if warning:
            values[values.index(by_metric["asr"])] = by_metric["asr"].with_warnings(warning)


@dataclass(frozen=True)
class OriginalCache:
    """The attacked original model, stored as NPZ: flags along a prefix of the order.

    Attributes
    ----------
    folder : Path or None
        None: nothing is kept.
    identity : dict
        All that the result depends on.
    """

    folder: Path | None
    identity: dict[str, Any]

    @property
    def _text(self) -> str:
        return json.dumps(self.identity, sort_keys=True)

    @property
    def path(self) -> Path | None:
        """The file of this identity."""
        if self.folder is None:
            return None
        key = hashlib.sha256(self._text.encode()).hexdigest()
        return self.folder / f"attack-{key[:24]}.npz"

    def load(self) -> Attacked:
        """Return what is known; nothing where there is no file or it is damaged."""
        if self.path is None or not self.path.exists():
            return Attacked.none()
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["identity"]) == self._text:
                    return Attacked(file["wrong"], file["zero_gradient"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            logger.warning("%s is damaged; the original model is attacked again", self.path)
        return Attacked.none()

    def save(self, attacked: Attacked) -> None:
        """Store the results; a folder that cannot be written costs time, not the evaluation."""
        if self.path is None:
            return
        try:
            with atomic_path(self.path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    identity=np.array(self._text),
                    wrong=attacked.wrong,
                    zero_gradient=attacked.zero_gradient,
                )
        except ModelfixError as error:
            logger.warning("the attacked original model is not kept: %s", error)
