"""One run on a task: samples, probes, the marked blocks, and the candidates of the repair."""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from modelfix_core.approach import Candidate, Evidence, Localisation, Task
from modelfix_core.dataset import Split
from modelfix_core.errors import Unadaptable
from modelfix_core.seeds import generator, seed_for
from modelfix_core.torch import PrefixCache, load, predict
from torch import Tensor, nn

from modelfix_inner.approach import NO_TRAINING_DATA, InnerConfig
from modelfix_inner.blocks import find_blocks
from modelfix_inner.localisation import Reading, block_scores, count_hits, make_mask
from modelfix_inner.probes import make_probe, train_probes
from modelfix_inner.repair import Marked, Repair
from modelfix_inner.samples import Samples, join, misclassified, partners, take


class Quality(NamedTuple):
    """What a model makes of the validation split.

    Attributes
    ----------
    accuracy : float
        In [0, 1].
    failures : float
        Share of the original's mispredictions that are still wrong; 0 where it had none.
    """

    accuracy: float
    failures: float


class Run:
    """INNER on one task.

    Parameters
    ----------
    task : Task
    config : InnerConfig
    """

    def __init__(self, task: Task, config: InnerConfig) -> None:
        if task.train is None:
            raise Unadaptable(NO_TRAINING_DATA)
        self.task, self.config, self.train = task, config, task.train
        self.net = load(task.model, task.device)
        self.net.requires_grad_(False)
        self.blocks = find_blocks(task.model)
        self.kept = min(config.blocks, len(self.blocks))
        self.marked: list[Marked] = []
        self.done = 0

    # -- samples -------------------------------------------------------------------------------

    @property
    def nothing_to_repair(self) -> bool:
        """Whether no faulty input was found."""
        return len(self.faulty.y) == 0

    @cached_property
    def faulty(self) -> Samples:
        """Misclassified inputs in random order, with their labels."""
        config, parts = self.config, []
        missing = config.samples
        if config.source == "train":
            parts.append(self._misclassified("training", self.train, config.samples))
            missing = min(config.least_faults, config.samples) - len(parts[0].y)
        parts.append(self._misclassified("repair", self.task.repair, missing))
        return join(parts)

    def _misclassified(self, name: str, split: Split, most: int) -> Samples:
        def report(looked: int) -> None:
            self._report(f"{looked} of {len(split)} {name} images looked through for faults", 0)

        order = generator(self.task.seed, stage="faulty", split=name).permutation(len(split))
        index = misclassified(self.net, split, order, most, report)
        return take(split, index, self.net.device)

    @cached_property
    def order(self) -> np.ndarray:
        """In which training images serve as clean inputs."""
        return generator(self.task.seed, stage="clean").permutation(len(self.train))

    # -- localisation --------------------------------------------------------------------------

    def localise(self) -> Iterator[Localisation | Evidence]:
        """Choose blocks and mark their weights, which `repair` trains."""
        config = self.config
        clean = take(self.train, self.order[: config.probe_samples], self.net.device)
        probes, accuracies = self._probes(clean)
        scores = block_scores(
            self._readings(probes, clean.x[: config.score_samples]),
            self._readings(probes, self.faulty.x[: config.score_samples]),
        )
        kept = np.argsort(-np.array(scores), kind="stable")[: self.kept]
        shares = np.full(len(self.blocks), np.nan)
        layers: list[str] = []
        positions, blame = [], []
        for position in kept:
            block, probe = self.blocks[position], probes[position]
            reading = Reading(self.net, block, probe)
            mask, score = self._mark(reading)
            self.marked.append(Marked(int(position), reading, mask))
            shares[position] = float(mask.double().mean())
            index = mask.flatten().nonzero()[:, 0]
            layers += [block.layer.name] * len(index)
            positions.append(index.cpu().numpy())
            blame.append(score.flatten()[index].cpu().numpy())
        yield Localisation("weight", layers, np.concatenate(positions), np.concatenate(blame))
        yield self._evidence(accuracies, scores, shares)

    def _probes(self, clean: Samples) -> tuple[list[nn.Module], list[float]]:
        config, task = self.config, self.task
        taps = [block.tap for block in self.blocks]
        self._report("training the probes", 0)
        with torch.no_grad():
            features = self.net.activations(clean.x[:1], taps)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed_for(seed=task.seed, stage="probes"))
            probes = [
                make_probe(features[tap].shape[1:], task.model.num_classes, shallow=depth < 2)
                for depth, tap in enumerate(taps)
            ]
        probes = [probe.to(self.net.device) for probe in probes]

        def report(epoch: int, accuracy: float) -> None:
            note = f"probes, epoch {epoch} of {config.probe_epochs}: accuracy {accuracy:.2%}"
            self._report(note)

        accuracies = train_probes(
            probes,
            PrefixCache(self.net, taps, clean.x, config.memory),
            clean.y,
            generator(task.seed, stage="probes"),
            epochs=config.probe_epochs,
            learning_rate=config.probe_learning_rate,
            batch_size=config.probe_batch_size,
            report=report,
        )
        return probes, accuracies

    def _readings(self, probes: list[nn.Module], x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            features = self.net.activations(x, [block.tap for block in self.blocks])
            return [
                probe(features[block.tap]) for probe, block in zip(probes, self.blocks, strict=True)
            ]

    def _mark(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Return a block's mask, and for each weight the share of the inputs that mark it."""
        config = self.config
        x = self.faulty.x[: config.routing_samples]
        before = self.done

        def report(count: int) -> None:
            self._report(f"routing {len(x)} inputs through {reading.block.layer.name}", count)

        counts, routed = count_hits(
            reading,
            x,
            steps=config.routing_steps,
            rate=config.routing_rate,
            decay=config.routing_decay,
            until_full=config.mask == "reference",
            memory=config.memory,
            report=report,
        )
        self.done = before + config.routing_samples
        return make_mask(counts, config.mask, config.neurons), counts / routed

    def _evidence(
        self, accuracies: list[float], scores: list[float], shares: np.ndarray
    ) -> Evidence:
        summary = (
            "How well each block's probe reads clean inputs, how unlike those faults are there, "
            "and which share of a repaired block's weights is marked."
        )
        columns = {
            "layer": [block.layer.name for block in self.blocks],
            "probe_accuracy": accuracies,
            "score": scores,
            "repaired": ~np.isnan(shares),
            "marked": shares,
        }
        return Evidence("blocks", summary, columns)

    # -- repair --------------------------------------------------------------------------------

    def repair(self) -> Iterator[Candidate]:
        """Yield the original, and a candidate after each half of an epoch, until one satisfies."""
        config = self.config
        chosen = partners(
            self.faulty.y.cpu().numpy(), self.train.y, self.order, config.pairing == "label"
        )
        clean = take(self.train, chosen, self.net.device).x
        repair = Repair(
            self.net,
            self.faulty,
            clean,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            alpha=config.alpha,
            temperature=config.temperature,
            batch_statistics=config.bn_mode == "train",
            memory=config.memory,
        )
        before = self._quality()
        yield Candidate(weights={}, validation_accuracy=before.accuracy)
        quality = before
        for epoch in range(1, config.epochs + 1):
            note = f"epoch {epoch} of {config.epochs}: {quality.failures:.2%} of the faults remain"
            self._report(note)
            losses = []
            for marked in self.marked:
                losses.append(repair.by_probe(marked))
                self._report(note, 0)
            quality = self._quality()
            yield self._candidate(epoch, quality, loss=float(np.mean(losses)))
            if self._satisfies(quality, before):
                return
            for _ in range(config.label_passes):
                for marked in self.marked:
                    repair.by_label(marked)
                    self._report(note, 0)
            quality = self._quality()
            yield self._candidate(epoch, quality)
            if self._satisfies(quality, before):
                return

    def _quality(self) -> Quality:
        """Measure the network as it is now."""
        y = self.task.validation.y
        right = predict(self.net, self.task.validation).argmax(axis=1) == y
        failed = ~right[~self._right_before]
        return Quality(float(right.mean()), float(failed.mean()) if len(failed) else 0.0)

    @cached_property
    def _right_before(self) -> np.ndarray:
        validation = self.task.validation
        return self.task.model.predict(validation).argmax(axis=1) == validation.y

    def _satisfies(self, quality: Quality, before: Quality) -> bool:
        """Whether the repair is done (step 8)."""
        keeps = quality.accuracy >= before.accuracy - self.config.accuracy_drop
        return keeps and quality.failures < self.config.failure_rate

    def _candidate(self, epoch: int, quality: Quality, **values: float) -> Candidate:
        return Candidate(
            weights=self.net.weights(),
            validation_accuracy=quality.accuracy,
            step=epoch,
            values={"failures": quality.failures, **values},
        )

    def _report(self, note: str, done: int = 1) -> None:
        """Report progress: epochs of the probes, routed inputs and epochs of the repair."""
        config = self.config
        total = config.probe_epochs + self.kept * config.routing_samples + config.epochs
        self.done += done
        self.task.progress(self.done, total, note)
