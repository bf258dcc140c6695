"""Post-processing of a record: one further record per method, evaluated in the same way.

``python -m modelfix_metrics.post_processing --record RUN --subject SUBJECT --method sv`` writes
``<entrant>+sv/<repetition>`` beside the entrant's folder.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.files import replace_folder
from modelfix_core.model import Model
from modelfix_core.progress import ProgressReporter
from modelfix_core.record import Entrant, Record, config_digest, provenance
from modelfix_core.seeds import seed_for
from modelfix_core.subject import Subject

from modelfix_metrics.attacks import ATTACKED, PRESETS, AttackOptions
from modelfix_metrics.cell import CACHE_FOLDER, FIXED_FILE, attack_settings, evaluate_record
from modelfix_metrics.combining import (
    DEFAULT_METHODS,
    METHODS,
    Dropout,
    Mixture,
    MoreConfident,
    Perturbation,
    fit,
)
from modelfix_metrics.decisions import are_probabilities, predicted
from modelfix_metrics.evaluation import CORRUPTED_POINTS, evaluate, versions
from modelfix_metrics.fusing import fuse
from modelfix_metrics.predictions import FILE, Predictions, inputs_hash

if TYPE_CHECKING:
    from modelfix_metrics.aligning import AlignedTarget

ENTRY = "post_processing"  # in an entrant's configuration and in a record's provenance
ROUNDING = 1e-5  # a label may only differ where the winner leads by less
USER_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """Settings of the methods and of their evaluation.

    Attributes
    ----------
    perturbation, dropout : Perturbation, Dropout
        Of UP and UD.
    seed : int
        Of the draws of UP and UD.
    fresh : bool
        Whether attacks on UP and UD draw anew in every step (``eot``).
    attacked : int
        How many inputs are attacked.
    device : str
        Where UP, UD and the attack run.
    attack : AttackOptions
    """

    perturbation: Perturbation = field(default_factory=Perturbation)
    dropout: Dropout = field(default_factory=Dropout)
    seed: int = 0
    fresh: bool = False
    attacked: int = ATTACKED
    device: str = "cpu"
    attack: AttackOptions = field(default_factory=AttackOptions)

    def of(self, method: str) -> dict[str, Any]:
        """Return what is set for `method`, as JSON values."""
        if method == "up":
            return {**asdict(self.perturbation), "seed": self.seed}
        return {**asdict(self.dropout), "seed": self.seed} if method == "ud" else {}

    def name(self, method: str) -> str:
        """Return the method, with a digest of its settings where they are not the default."""
        settings, usual = self.of(method), Options().of(method)
        changed = {key: value for key, value in settings.items() if value != usual[key]}
        return f"{method}-{config_digest(changed)}" if changed else method


def folder_of(run: Path, name: str) -> Path:
    """Return where a method's record of a run lies: ``<entrant>+<name>/<repetition>``."""
    run = Path(run).absolute()
    return run.parent.with_name(f"{run.parent.name}+{name}") / run.name


class PostProcessing:
    """A fixed record with its models and predictions, ready to be post-processed.

    Parameters
    ----------
    run, subject : path
        Folders of an evaluated record and of its prepared subject.

    Raises
    ------
    ModelfixError
        If the record has no fixed model that counts as FIXED, no intact predictions, was
        post-processed itself, or is of another subject.
    """

    def __init__(self, run: str | Path, subject: str | Path) -> None:
        self.run, self.folder = Path(run).absolute(), Path(subject)
        self.record = record = Record.load(self.run)
        if record.outcome is not Outcome.FIXED:
            reason = f" ({record.reason})" if record.reason else ""
            raise ModelfixError(
                f"{self.run}: its outcome is {record.outcome}{reason}; post-processing needs a "
                "record that is FIXED."
            )
        if ENTRY in record.entrant.config:
            raise ModelfixError(
                f"{self.run}: was post-processed already; give the record of the fix itself."
            )
        if len(self.run.parts) < 4:
            raise ModelfixError(
                f"{self.run}: does not lie in runs/SUBJECT/ENTRANT/N, so there is no place beside "
                "it; give a record that does."
            )
        self.subject = Subject.load(self.folder)
        self.original = self.subject.model
        if not (self.run / FIXED_FILE).exists():
            raise ModelfixError(f"{self.run / FIXED_FILE}: is missing; run the fix again.")
        self.fixed = Model.load(self.run / FIXED_FILE)
        self.predictions = Predictions.load(self.run / FILE)
        self.dataset = self.subject.dataset(("validation", "test"))
        self._check()
        # No method ever sees the test split: what is fitted is fitted here.
        self.validation = self.dataset["validation"]
        self.before = self.original.predict(self.validation)
        self.after = self.fixed.predict(self.validation)

    def _check(self) -> None:
        """Refuse a record, predictions, models and a subject that do not belong together."""
        p, record = self.predictions, self.record
        for name, model, of_predictions in (
            ("original", self.original, p.original),
            ("fixed", self.fixed, p.fixed),
        ):
            if record.hashes.get(name, model.hash) != model.hash:
                raise ModelfixError(
                    f"{self.run}: was made with another {name} model than {model.name}; give the "
                    "subject of this record, or run the fix again."
                )
            if of_predictions != model.hash:
                raise ModelfixError(
                    f"{self.run / FILE}: holds predictions of another {name} model than "
                    f"{model.name}; evaluate the record again."
                )
        test = self.dataset["test"]
        p.require_same_inputs(inputs_hash(test.ids, test.y), "the subject's test split")

    @property
    def probabilities(self) -> tuple[bool, bool]:
        """Whether the outputs of the original and of the fixed model are probabilities."""
        return are_probabilities(self.before), are_probabilities(self.after)

    def apply(self, method: str, options: Options, reporter: Any = None) -> tuple[Path, bool]:
        """Write the record of a method, or reuse it.

        Parameters
        ----------
        method : str
            Key of `METHODS`.
        options : Options
        reporter : callable, optional
            Gets ``(done, total, note)`` during the attack.

        Returns
        -------
        folder : Path
        reused : bool
            Whether a complete record with the same settings was there already.
        """
        target = folder_of(self.run, options.name(method))
        record = self._describe(method, options)
        known = _known(target, record)
        if known is not None and self._evaluated(known, target, method, options):
            return target, True
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._work(_Work(method, options, record, partial, reporter, perf_counter()))
            replace_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target, False

    # -- the record --------------------------------------------------------------------------------

    def _describe(self, method: str, options: Options) -> Record:
        """Return the record of a method before it is run."""
        if method not in METHODS:
            raise ModelfixError(
                f"{method!r} is no post-processing method; choose from {', '.join(METHODS)}."
            )
        run = self.record
        seed = seed_for(
            stage="post-processing",
            seed=options.seed,
            subject=run.subject,
            method=method,
            repetition=run.repetition,
        )
        settings = {"method": method, **options.of(method)}
        entrant = Entrant(
            approach=f"{run.entrant.approach}+{method}",
            abbreviation=f"{run.entrant.abbreviation}+{method.upper()}",
            category=run.entrant.category,
            preset=run.entrant.preset,
            config={**run.entrant.config, ENTRY: settings},
            version=f"{run.entrant.version}, modelfix-metrics {versions()['modelfix-metrics']}",
        )
        identity = [run.cell, self.original.hash, self.fixed.hash, entrant.model_dump(), seed]
        cell = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Record(
            cell=cell,
            entrant=entrant,
            subject=run.subject,
            repetition=run.repetition,
            seed=seed,
            outcome=Outcome.UNADAPTABLE,
            hashes={k: v for k, v in run.hashes.items() if k != "fixed"},
            provenance={
                **provenance(options.device),
                ENTRY: {"of": self.run.parent.name, "fixed": self.fixed.hash, **settings},
            },
        )

    def _evaluated(self, known: Record, folder: Path, method: str, options: Options) -> bool:
        """Whether a record is complete with these very settings, its files intact."""
        if known.outcome is Outcome.UNADAPTABLE:
            return True
        try:
            stored = Predictions.load(folder / FILE)
            fixed = Model.load(folder / FIXED_FILE).hash if "fixed" in known.hashes else None
        except ModelfixError:
            return False
        evaluation = known.evaluation or {}
        return (
            known.hashes.get("fixed") == fixed
            and evaluation.get("settings") == self._settings(method, options)
            and evaluation.get("hashes", {}).get("fixed") == stored.fixed
        )

    def _settings(self, method: str, options: Options) -> dict[str, Any]:
        settings = attack_settings(
            self.subject, self.record.repetition, options.attacked, options.attack
        )
        return {**settings, "fresh": options.fresh} if method in ("up", "ud") else settings

    def _work(self, work: "_Work") -> None:
        """Fit, combine, evaluate and write the record into the working folder."""
        record, about = work.record, work.record.provenance[ENTRY]
        y, options = self.validation.y, work.options
        fitted = fit(work.method, self.before, self.after, y, options.perturbation, options.dropout)
        about["warnings"], about["rule"] = list(fitted.warnings), fitted.as_dict()
        try:
            if isinstance(fitted.rule, Mixture | MoreConfident):
                self._fused(fitted.rule, work)
            else:
                self._aligned(fitted.rule, work)
        except Unadaptable as reason:
            shutil.rmtree(work.folder, ignore_errors=True)
            record.outcome, record.reason = Outcome.UNADAPTABLE, str(reason)
            record.evaluation = None
            record.hashes.pop("fixed", None)
            record.save(work.folder)

    def _close(self, record: Record, log_r: np.ndarray, started: float) -> None:
        """Set outcome, validation accuracy and seconds."""
        y = self.validation.y
        before, after = (int((predicted(z) == y).sum()) for z in (self.before, log_r))
        record.validation_accuracy = {"before": before / len(y), "after": after / len(y)}
        record.outcome = Outcome.FIXED
        if 100 * (before - after) > CORRUPTED_POINTS * len(y):
            record.outcome = Outcome.CORRUPTED
            record.reason = "accuracy on the validation split fell by more than 10 points"
        own = perf_counter() - started
        # What the entrant costs is the fix and the post-processing.
        record.seconds = {
            "fixing": self.record.seconds.get("fixing", 0.0) + own,
            "post_processing": own,
            "total": self.record.seconds.get("total", 0.0) + own,
        }

    def _fused(self, rule: Mixture | MoreConfident, work: "_Work") -> None:
        """SV, HV and US: one graph, evaluated as every fixed model is."""
        record, options = work.record, work.options
        fused = fuse(self.original, self.fixed, rule, self.probabilities)
        fused = fused.with_metadata(post_processing=json.dumps(record.provenance[ENTRY]["rule"]))
        log_r = rule.combine(self.before, self.after)
        _require_same(fused.predict(self.validation), rule, self.before, self.after)
        record.hashes["fixed"] = fused.hash
        self._close(record, log_r, work.started)
        fused.save(work.folder / FIXED_FILE)
        record.save(work.folder)
        evaluate_record(
            work.folder,
            self.folder,
            attacked=options.attacked,
            device=options.device,
            attack=options.attack,
            reporter=work.reporter,
        )
        found = Predictions.load(work.folder / FILE).after
        _require_same(found, rule, self.predictions.before, self.predictions.after)

    def _aligned(self, rule: Perturbation | Dropout, work: "_Work") -> None:
        """UP and UD: draws that no graph can hold, so the pair itself is run and attacked."""
        record, options = work.record, work.options
        target = self._target(rule, record.seed, options)
        self._close(record, target.align(self.validation).log_r, work.started)
        settings, test = self._settings(work.method, options), self.dataset["test"]
        found = evaluate(
            self.original,
            self.fixed,
            test,
            classes=self.dataset.classes,
            epsilon=settings["epsilon"],
            order_seed=settings["order_seed"],
            attacked=options.attacked,
            device=options.device,
            attack=options.attack,
            reporter=work.reporter,
            combined=target,
        )
        record.provenance[ENTRY]["at_floor"] = target.align(test).at_floor()
        predictions = found.predictions
        hashes = {"fixed": predictions.fixed, "inputs": predictions.inputs}
        record.evaluation = {
            **found.as_dict(),
            "settings": settings,
            "hashes": {"original": self.original.hash, **hashes},
            "device": options.device,
            "versions": dict(versions()),
        }
        predictions.save(work.folder / FILE)
        record.save(work.folder)

    def _target(self, rule: Any, seed: int, options: Options) -> "AlignedTarget":
        try:
            from modelfix_metrics.aligning import AlignedTarget
        except ImportError as error:
            raise ModelfixError(
                f"UP and UD need PyTorch and Foolbox ({error}); install modelfix-metrics[attack]."
            ) from error
        probabilities, fresh = self.probabilities, options.fresh
        return AlignedTarget(
            self.original, self.fixed, rule, seed, options.device, probabilities, fresh
        )


@dataclass(frozen=True)
class _Work:
    """A method on its way to a record."""

    method: str
    options: Options
    record: Record
    folder: Path
    reporter: Any
    started: float


def _require_same(
    found: np.ndarray, rule: Mixture | MoreConfident, before: np.ndarray, after: np.ndarray
) -> None:
    """Refuse a graph that labels inputs otherwise than the computation from stored logits."""
    differ = predicted(found) != predicted(rule.combine(before, after))
    wrong = int((differ & (rule.margin(before, after) > ROUNDING)).sum())
    if wrong:
        raise ModelfixError(
            f"the exported graph labels {wrong} of {len(found)} inputs otherwise than the "
            "computation from stored predictions; please report it."
        )


def _known(folder: Path, record: Record) -> Record | None:
    """Return the record in `folder` if it is of the same cell."""
    try:
        known = Record.load(folder)
    except ModelfixError:
        return None
    return known if known.cell == record.cell else None


def describe(record: Record) -> str:
    """Say in a few words what a method fitted and found, for a table."""
    about: Mapping[str, Any] = record.provenance.get(ENTRY, {})
    rule, method = about.get("rule", {}), about.get("method", "")
    if "at_floor" in about:
        return f"{about['at_floor']['both']:.1%} of the inputs at the floor"
    if method in ("us", "us-paper"):
        return f"T = {rule['original']:.3g}"
    if method == "us-labelled":
        return f"T = {rule['original']:.3g} and {rule['fixed']:.3g}"
    return f"k = {rule['weight']:g}" if method == "us-weight" else ""


# -- command ---------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modelfix_metrics.post_processing",
        description="Combine the original and the fixed model of records, and evaluate that.",
    )
    parser.add_argument("--record", type=Path, required=True, action="append")
    parser.add_argument("--subject", type=Path, required=True)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--noise", type=float, default=Perturbation.noise)
    parser.add_argument("--space", default=Perturbation.space, choices=("pixel", "model"))
    parser.add_argument("--own-noise", action="store_true")
    parser.add_argument("--dropout", type=float, default=Dropout.rate)
    parser.add_argument("--layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eot", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attacked", type=int, default=ATTACKED)
    parser.add_argument("--no-attack", action="store_true")
    parser.add_argument("--attack", choices=PRESETS, default="pgd")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    attack = AttackOptions(
        metrics=() if arguments.no_attack else ("asr", "asr_margin"),
        preset=arguments.attack,
        cache=arguments.subject.resolve().parent / CACHE_FOLDER,
    )
    return Options(
        perturbation=Perturbation(
            arguments.samples, arguments.noise, arguments.space, not arguments.own_noise
        ),
        dropout=Dropout(arguments.samples, arguments.dropout, arguments.layer),
        seed=arguments.seed,
        fresh=arguments.eot,
        attacked=arguments.attacked,
        device=arguments.device,
        attack=attack,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Post-process the records named on the command line; return the exit code.

    For every record and method it prints the folder written, and ``reused`` where it was there.
    """
    parsed = _parser().parse_args(arguments)
    try:
        options = _options(parsed)
        for run in parsed.record:
            processing = PostProcessing(run, parsed.subject)
            for method in parsed.method or DEFAULT_METHODS:
                with ProgressReporter(f"{method.upper()}, repetition {run.name}") as reporter:
                    folder, reused = processing.apply(method, options, reporter)
                print(folder, *(["reused"] if reused else []), sep="\t")
    except ModelfixError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
