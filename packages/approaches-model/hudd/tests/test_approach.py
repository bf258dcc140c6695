from dataclasses import replace

import numpy as np
import pytest
import torch
from modelfix_core import Candidate, Evidence, Localisation, Outcome, Split, Unadaptable
from modelfix_core.fixing import run
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import export
from modelfix_hudd import Hudd
from modelfix_hudd.clustering import choose_k, cluster, cut, distances, gradient, normalise, ward
from modelfix_hudd.heatmaps import bytes_of, collect, groups
from modelfix_hudd.places import Place, outline
from modelfix_hudd.selection import bag
from modelfix_testing import layerless_model, mlp, tiny_task
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import cdist, pdist
from torch import nn

QUICK = {"learning_rates": (1e-3,), "epochs": 1}


# -- the run -----------------------------------------------------------------------------------


def test_shows_layers_then_root_causes_then_epochs():
    proposals = list(Hudd(learning_rates=(1e-2, 1e-3), epochs=2).candidates(tiny_task()))
    localisation, evidence, *candidates = proposals
    assert isinstance(localisation, Localisation)
    assert (localisation.kind, len(localisation)) == ("layer", 5)
    assert isinstance(evidence, Evidence)
    assert [c.step for c in candidates] == [1, 2, 1, 2]
    assert [c.values["learning_rate"] for c in candidates] == [1e-2, 1e-2, 1e-3, 1e-3]
    best = localisation.layer[int(np.argmax(localisation.score))]
    assert f"layer {best};" in evidence.summary


def test_evidence_tells_the_truth_about_images():
    task = tiny_task()
    _, evidence, *_ = Hudd(**QUICK).candidates(task)
    columns = evidence.columns
    where = {int(sample): row for row, sample in enumerate(task.repair.ids)}
    rows = np.array([where[int(sample)] for sample in columns["sample"]])
    predicted = task.model.predict(task.repair).argmax(axis=1)
    np.testing.assert_array_equal(columns["label"], task.repair.y[rows])
    np.testing.assert_array_equal(columns["predicted"], predicted[rows])
    failure = np.array(columns["role"]) == "failure"
    assert (columns["label"] != columns["predicted"])[failure].all()
    assert (np.diff(columns["cluster"]) >= 0).all()
    for name in np.unique(columns["cluster"]):
        own = columns["distance"][(columns["cluster"] == name) & failure]
        assert len(own) >= 2
        assert (np.diff(own) >= 0).all()


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_interrupted_run_goes_on(tmp_path, stop):
    approach = Hudd(learning_rates=(1e-2, 1e-3), epochs=2)
    whole = run(approach, tiny_task())
    task = tiny_task(folder=tmp_path)
    started = approach.candidates(task)
    for _ in range(stop):
        next(started)
    started.close()
    again = run(approach, task)
    assert again.model.hash == whole.model.hash
    assert [e["validation_accuracy"] for e in again.candidates] == [
        e["validation_accuracy"] for e in whole.candidates
    ]


def test_rates_start_from_the_original():
    alone = list(Hudd(**QUICK).candidates(tiny_task()))[-1]
    second = list(Hudd(learning_rates=(1e-2, 1e-3), epochs=1).candidates(tiny_task()))[-1]
    for name, array in alone.weights.items():
        np.testing.assert_array_equal(second.weights[name], array)


def test_failures_of_the_validation_split(planted):
    given = planted()
    other = Split(given.repair.x[::-1], given.repair.y[::-1], ids=np.arange(len(given.repair)))
    task = given.task(validation=other)
    evidence = next(
        p for p in Hudd(**QUICK, failures="validation").candidates(task) if isinstance(p, Evidence)
    )
    failure = np.array(evidence.columns["role"]) == "failure"
    assert set(evidence.columns["sample"][failure]) <= set(other.ids)
    assert set(evidence.columns["sample"][~failure]) <= set(given.repair.ids)
    assert (evidence.columns["copies"][failure] == 0).all()
    assert evidence.columns["copies"][~failure].sum() > 0


@pytest.mark.parametrize("failing", [0, 1])
def test_without_failures_in_common_the_original_is_proposed(planted, failing):
    given = planted()
    repair = given.repair.select(slice(0, given.first_failure + failing))
    [only] = Hudd(**QUICK).candidates(given.task(repair=repair))
    assert isinstance(only, Candidate)
    assert only.weights == {}


def test_few_failures_are_one_cluster(planted):
    given = planted()
    repair = given.repair.select(slice(0, given.first_failure + 11))
    _, evidence, *_ = Hudd(**QUICK).candidates(given.task(repair=repair))
    failure = np.array(evidence.columns["role"]) == "failure"
    assert set(evidence.columns["cluster"]) == {0}
    assert failure.sum() == 11


def test_layers_beyond_the_memory_are_left_out(caplog):
    task = tiny_task()
    failing = int((task.model.predict(task.repair).argmax(axis=1) != task.repair.y).sum())
    places = outline(task.model, 16).places
    largest = max(places, key=lambda place: place.size)
    # As an option the memory is at least a megabyte, which no layer of this model needs.
    approach = Hudd(**QUICK)
    approach.config = approach.config.model_copy(update={"memory": bytes_of(largest, failing) - 1})
    localisation = next(approach.candidates(task))
    assert set(localisation.layer) == {p.layer for p in places} - {largest.layer}
    assert f"heatmaps of {largest.layer} take more" in caplog.text
    approach.config = approach.config.model_copy(update={"memory": 1})
    result = run(approach, task)
    assert result.outcome is Outcome.FAILURE
    assert "raise the option memory" in result.reason


@pytest.mark.parametrize(
    "options",
    [
        {"cluster_on": "distance"},
        {"k_select": "minimum"},
        {"k_select": "knee"},
        {"kmax": 3},
        {"bag_factor": 2.0},
        {"layers": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_change_the_result(options):
    plain = list(Hudd(**QUICK).candidates(tiny_task()))
    other = list(Hudd(**QUICK, **options).candidates(tiny_task()))
    assert other[-1].values["loss"] != plain[-1].values["loss"]


# -- applicability -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"),
    [
        ("lenet5", 1, 28, 10),
        ("vgg16", 3, 32, 10),
        ("resnet18", 3, 32, 10),
        ("densenet121", 3, 64, 20),
        ("resnet8", 3, 32, 10),
    ],
)
def test_the_studys_architectures_are_taken(name, channels, size, classes):
    torch.manual_seed(0)
    net = build(name, classes, channels, mean=[0.4] * channels, std=[0.3] * channels)
    model = export(net.eval(), (channels, size, size))
    Hudd().check(replace(tiny_task(), model=model))
    found = outline(model, 16)
    assert 2 <= len(found.places) <= 16
    assert found.approximate == ()
    assert found.tail


def test_what_cannot_be_taken():
    task = tiny_task()
    with pytest.raises(Unadaptable, match="no training images"):
        Hudd().check(replace(task, train=None))
    with pytest.raises(Unadaptable, match="0 inner layers"):
        Hudd().check(replace(task, model=layerless_model((1, 28, 28), 10)))
    weights = [np.ones((8, 784), np.float32), np.ones((10, 8), np.float32)]
    shallow = mlp(weights, [np.zeros(8, np.float32), np.zeros(10, np.float32)], (1, 28, 28))
    with pytest.raises(Unadaptable, match="1 inner layers"):
        Hudd().check(replace(task, model=shallow))


# -- heatmaps ----------------------------------------------------------------------------------


def test_places_are_inner_and_few(model_of):
    model = model_of()
    assert [(p.layer, p.size) for p in outline(model, 16).places] == [
        ("0", 6 * 20 * 20),
        ("3", 8 * 8 * 8),
        ("7", 128),
        ("10", 40),
        ("12", 20),
    ]
    assert [p.layer for p in outline(model, 4).places] == ["0", "7", "10", "12"]
    assert [p.layer for p in outline(model, 2).places] == ["10", "12"]


@pytest.mark.parametrize("name", ["resnet8", "densenet121"])
def test_batches_do_not_mix_images(name, images, heatmaps_of):
    torch.manual_seed(0)
    model = export(build(name, 10, 3, mean=[0.5] * 3, std=[0.3] * 3).eval(), (3, 32, 32))
    x = images(3, (3, 32, 32))
    together = heatmaps_of(model, x)
    for i in range(3):
        for layer, maps in heatmaps_of(model, x[i : i + 1]).items():
            scale = float(maps.abs().max())
            torch.testing.assert_close(together[layer][i], maps[0], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.LeakyReLU, nn.ELU])
def test_other_activations_conserve_relevance(activation, model_of, images, heatmaps_of):
    model, x = model_of(bias=False, activation=activation), images(12)
    logit = torch.from_numpy(model.predict(x).max(axis=1)).double()
    for maps in heatmaps_of(model, x).values():
        torch.testing.assert_close(maps.double().sum(dim=1), logit, rtol=2e-3, atol=1e-4)
    exact = activation is nn.LeakyReLU
    assert (outline(model, 16).approximate == ()) is exact


def test_a_model_without_dense_layers_at_its_end(images, heatmaps_of):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 6, 3, bias=False), nn.ReLU()]
    last = [nn.Conv2d(6, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = export(nn.Sequential(*layers, *last).eval(), (1, 12, 12))
    found = outline(model, 16)
    assert found.tail == ()
    x = images(8, (1, 12, 12))
    logit = torch.from_numpy(model.predict(x).max(axis=1)).double()
    maps = heatmaps_of(model, x)
    assert list(maps)[:2] == ["0", "2"]
    for values in maps.values():
        torch.testing.assert_close(values.double().sum(dim=1), logit, rtol=1e-4, atol=1e-6)


def test_passes_are_as_few_as_the_memory_allows(model_of, images):
    from modelfix_core.torch import load
    from modelfix_hudd.heatmaps import Heatmaps

    model = model_of()
    found = outline(model, 16)
    places = [Place(str(i), str(i), size) for i, size in enumerate([50, 30, 20, 60, 40])]
    parts = groups(places, 10, memory=4 * 10 * 100)
    assert [[p.layer for p in part] for part in parts] == [["0", "1", "2"], ["3", "4"]]
    split = Split(images(10), np.zeros(10, np.int64))
    heatmaps = Heatmaps(load(model), found)
    at_once, in_turn = (
        dict(collect(heatmaps, split, found.places, memory))
        for memory in (2**30, 4 * 10 * 6 * 20 * 20)
    )
    assert at_once.keys() == in_turn.keys() == set(found.places)
    for place, maps in at_once.items():
        np.testing.assert_allclose(in_turn[place], maps, rtol=1e-5, atol=1e-6)


# -- clusters ----------------------------------------------------------------------------------


def test_distances_are_euclidean_in_blocks(monkeypatch):
    from modelfix_hudd import clustering

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 17)).astype(np.float32) for n in (70, 33))
    x[5] = x[60]
    monkeypatch.setattr(clustering, "BLOCK_BYTES", 8 * 17 * 16)
    found = distances(x)
    np.testing.assert_allclose(found, cdist(x.astype(float), x.astype(float)), atol=1e-6)
    assert found[5, 60] == found[60, 5] == 0
    assert (np.diag(found) == 0).all()
    np.testing.assert_allclose(found, found.T, rtol=1e-14)
    np.testing.assert_allclose(distances(x, y), cdist(x.astype(float), y.astype(float)), atol=1e-9)


def test_ward_on_distances_is_ward_on_heatmaps():
    maps = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    matrix = distances(maps)
    top = normalise(matrix)
    assert matrix.max(axis=1) == pytest.approx(1)
    expected = linkage(pdist(maps.astype(float)), "ward")
    np.testing.assert_allclose(ward(matrix, top, "distance"), expected, rtol=1e-6)


def test_equal_heatmaps_are_one_root_cause():
    found = cluster(np.ones((30, 4), np.float32))
    assert np.isfinite(found.score)
    assert found.score == 0


def test_gradient_is_exact_for_polynomials_inside():
    k = np.arange(2, 40, dtype=float)
    slope = gradient(k**3 - 2 * k)
    np.testing.assert_allclose(slope[2:-2], (3 * k**2 - 2)[2:-2])
    np.testing.assert_allclose(slope[[0, -1]], np.diff(k**3 - 2 * k)[[0, -1]])


def test_knee_of_the_gradient_and_what_is_done_without():
    k = np.arange(2, 60, dtype=float)
    assert 3 <= choose_k(1 / k, 120) <= 15
    assert choose_k(1 / k, 120, "minimum") == 59
    # A straight line has no knee: the least distance among few clusters.
    assert choose_k(100 - k, 120) == 24
    assert 3 <= choose_k(1 / k, 120, "knee") <= 20


def test_members_leave_out_singletons():
    points = np.concatenate([np.zeros((3, 2)), np.ones((2, 2)) * 9, [[50, 50]]])
    labels, roots = cut(linkage(points + np.arange(6)[:, None] * 1e-3, "ward"), 3)
    assert len(set(labels)) == 3 == len(roots)
    from modelfix_hudd.clustering import Clustering

    members = Clustering(labels, 0.0).members
    assert [rows.tolist() for rows in members] == [[0, 1, 2], [3, 4]]


def test_bags_of_one_image_and_of_none():
    kept = [np.array([4]), np.array([], dtype=int), np.array([1, 2, 3])]
    bags = bag(kept, np.zeros((5, 3)), np.random.default_rng(0))
    assert bags.rows.tolist() == [4, 4, 4, 1, 2, 3]
    assert len(bag([], np.zeros((5, 0)), np.random.default_rng(0)).rows) == 0
