"""One run of HUDD on a task: localise, show the root causes, select, retrain."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from modelfix_core.approach import Candidate, Evidence, Localisation, Task
from modelfix_core.dataset import Split
from modelfix_core.errors import Failure
from modelfix_core.joining import join
from modelfix_core.seeds import generator
from modelfix_core.torch import TorchModel
from modelfix_core.torch.training import FineTuning, fine_tune

from modelfix_hudd.approach import HuddConfig
from modelfix_hudd.clustering import Clustering, cluster, distances
from modelfix_hudd.heatmaps import Heatmaps, bytes_of, collect, in_batches
from modelfix_hudd.places import Outline, Place
from modelfix_hudd.selection import Bags, assign, bag, keep, quotas

logger = logging.getLogger(__name__)


class RootCauses:
    """The clusters of the chosen layer.

    Parameters
    ----------
    place : Place
    maps : ndarray of float32, [N, size]
        Heatmaps of all failures there.
    clustering : Clustering

    Attributes
    ----------
    members : list of ndarray of int
        Positions among the failures, for each cluster with at least two.
    sizes : ndarray of int, [R]
    centres : ndarray of float64, [R, size]
        Mean heatmaps.
    """

    def __init__(self, place: Place, maps: np.ndarray, clustering: Clustering) -> None:
        self.place, self.members = place, clustering.members
        self.sizes = np.array([len(rows) for rows in self.members], dtype=int)
        self._maps = maps[np.concatenate([*self.members, np.zeros(0, dtype=int)])]
        self._starts = np.cumsum([0, *self.sizes[:-1]])
        sums = np.add.reduceat(self._maps, self._starts, axis=0, dtype=np.float64)
        self.centres = sums / self.sizes[:, None]

    def nearest(self, maps: np.ndarray, device: str) -> np.ndarray:
        """Return the distances of heatmaps to the nearest member of each cluster, [N, R]."""
        found = distances(maps, self._maps, device)
        return np.minimum.reduceat(found, self._starts, axis=1)

    def from_centre(self, maps: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """Return the distances of heatmaps to the mean heatmaps of their clusters, [N]."""
        return np.linalg.norm(maps - self.centres[clusters], axis=1)

    def member_maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions among the failures, clusters and heatmaps of all members."""
        clusters = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.concatenate(self.members), clusters, self._maps


class Run:
    """HUDD at work on one task.

    Parameters
    ----------
    net : TorchModel
        With the original weights.
    task : Task
    config : HuddConfig
    outline : Outline
    """

    def __init__(self, net: TorchModel, task: Task, config: HuddConfig, outline: Outline) -> None:
        self.net, self.task, self.config, self.outline = net, task, config, outline
        self.heatmaps = Heatmaps(net, outline, config.lrp_eps)
        self.source = task.repair if config.failures == "repair" else task.validation
        if outline.approximate:
            logger.warning(
                "heatmaps are approximate: relevance has no exact rule for %s",
                ", ".join(outline.approximate),
            )

    def proposals(self) -> Iterator[Candidate | Localisation | Evidence]:
        """Yield localisation, evidence and candidates; the original where nothing can be done."""
        predicted = self.task.model.predict(self.source).argmax(axis=1)
        failing = np.flatnonzero(predicted != self.source.y)
        logger.info("%d of %d images are mispredicted", len(failing), len(self.source))
        if len(failing) < 2:
            logger.info("there are no two failures with a root cause in common")
            yield Candidate(weights={})
            return
        localisation, causes = self.localise(self.source.select(failing))
        yield localisation
        if not causes.members:
            logger.info("no two failures have a root cause in common")
            yield Candidate(weights={})
            return
        nearest = self.distances_to(causes)
        assigned = assign(nearest, quotas(causes.sizes, self.config.assign_factor))
        kept = keep(assigned, nearest, quotas(causes.sizes, self.config.bag_factor))
        rng = generator(self.task.seed, stage="bagging")
        bags = bag(kept, nearest, rng, self.config.bagging)
        logger.info(
            "%d root causes at layer %s; %d images assigned, bags of %d",
            len(causes.members),
            causes.place.layer,
            np.count_nonzero(assigned >= 0),
            bags.size,
        )
        yield self.evidence(causes, failing, predicted, assigned, bags)
        yield from self.retrain(bags)

    # -- root causes ---------------------------------------------------------------------------

    def localise(self, failures: Split) -> tuple[Localisation, RootCauses]:
        """Cluster the heatmaps of every layer; the tightest clusters are the root causes."""
        config, task = self.config, self.task
        fitting, large = self._fitting(len(failures))
        if large:
            logger.warning("the heatmaps of %s take more than %d bytes", large, config.memory)
        if not fitting:
            raise Failure(
                f"the heatmaps of {len(failures)} failures take more than {config.memory} bytes at "
                "every layer; raise the option memory"
            )
        scores: list[float] = []
        best: RootCauses | None = None
        maps_of = collect(self.heatmaps, failures, fitting, config.memory, self._progress)
        for place, maps in maps_of:
            found = cluster(maps, config.kmax, config.k_select, config.cluster_on, task.device)
            if not scores or found.score < min(scores):
                best = RootCauses(place, maps, found)
            scores.append(found.score)
            logger.info(
                "layer %s: %d clusters, score %.6g",
                place.layer,
                found.labels.max() + 1,
                found.score,
            )
            self._progress(f"clustered layer {place.layer}")
        assert best is not None, "there is at least one layer"
        layers = [place.layer for place in fitting]
        # A tight layer has a small score; to be blamed is to have a large one.
        blame = Localisation(
            "layer", layers, np.zeros(len(layers), dtype=np.int64), -np.array(scores)
        )
        return blame, best

    def _fitting(self, failures: int) -> tuple[list[Place], str]:
        """Return the places whose heatmaps fit in memory, and the layers of those that do not."""
        places, memory = self.outline.places, self.config.memory
        fitting = [place for place in places if bytes_of(place, failures) <= memory]
        return fitting, ", ".join(place.layer for place in places if place not in fitting)

    def _progress(self, note: str) -> None:
        self.task.progress(0, 1, note)

    def distances_to(self, causes: RootCauses) -> np.ndarray:
        """Return the distances of all repair images to the nearest member of each cluster."""
        pool = self.task.repair
        result = np.empty((len(pool), len(causes.members)))
        for part, found in in_batches(self.heatmaps, pool, [causes.place]):
            maps = found[causes.place.layer].cpu().numpy()
            result[part] = causes.nearest(maps, self.task.device)
            self._progress(f"root causes of {part.stop} of {len(pool)} images")
        return result

    def evidence(
        self,
        causes: RootCauses,
        failing: np.ndarray,
        predicted: np.ndarray,
        assigned: np.ndarray,
        bags: Bags,
    ) -> Evidence:
        """Return the clusters: their failures, and the images that were assigned to them."""
        pool, place = self.task.repair, causes.place
        copies = np.bincount(bags.rows, minlength=len(pool))
        members, clusters, maps = causes.member_maps()
        inside = failing[members]
        if self.config.failures == "repair":
            rows = np.setdiff1d(np.flatnonzero(assigned >= 0), inside)
            copied = copies[inside]
        else:
            rows = np.flatnonzero(assigned >= 0)
            copied = np.zeros(len(inside), dtype=int)
        selected = pool.select(rows)
        found = [m[place.layer].cpu() for _, m in in_batches(self.heatmaps, selected, [place])]
        others = torch.cat([torch.from_numpy(maps[:0]), *found]).numpy()
        columns = {
            "cluster": (clusters, assigned[rows]),
            "sample": (self.source.ids[inside], selected.ids),
            "label": (self.source.y[inside], selected.y),
            "predicted": (predicted[inside], self.task.model.predict(selected).argmax(axis=1)),
            "distance": (
                causes.from_centre(maps, clusters),
                causes.from_centre(others, assigned[rows]),
            ),
            "role": (["failure"] * len(inside), ["selected"] * len(rows)),
            "copies": (copied, copies[rows]),
        }
        table = {name: np.concatenate(parts) for name, parts in columns.items()}
        order = np.lexsort((table["distance"], table["role"], table["cluster"]))
        return Evidence(
            "clusters",
            f"{len(causes.members)} root causes of {len(failing)} failures by their heatmaps at "
            f"layer {place.layer}; distance is that to the cluster's mean heatmap, and copies are "
            "how often the image is added to the training images.",
            {name: column[order] for name, column in table.items()},
        )

    # -- repair --------------------------------------------------------------------------------

    def retrain(self, bags: Bags) -> Iterator[Candidate]:
        """Yield the epochs of every learning rate on training images and bags."""
        config, train = self.config, self.task.train
        assert train is not None, "`Hudd.check` refuses tasks without training images"
        split = join(train, self.task.repair, bags.rows)
        for position, rate in enumerate(config.learning_rates):
            self.net.reset()
            recipe = FineTuning(
                epochs=config.epochs,
                learning_rate=rate,
                batch_size=config.batch_size,
                momentum=config.momentum,
                nesterov=False,
                weight_decay=config.weight_decay,
                schedule="constant",
                patience=config.patience,
            )
            yield from fine_tune(
                self.net,
                self.task,
                split,
                recipe,
                name=f"learning-rate-{rate:g}",
                part=(position, len(config.learning_rates)),
            )
