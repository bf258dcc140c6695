import copy
from unittest import mock

import numpy as np
import pytest
import torch
from modelfix_core.approach import Candidate, Evidence, Localisation, Task
from modelfix_core.errors import ModelfixError
from modelfix_core.torch import load
from modelfix_inner import Inner
from modelfix_inner.approach import InnerConfig
from modelfix_inner.localisation import Reading, count_hits, make_mask
from modelfix_inner.prefixes import Prefixes
from modelfix_inner.repair import Marked, Repair
from modelfix_inner.run import Run
from modelfix_inner.samples import misclassified, partners

QUICK = {
    "probe_samples": 300,
    "probe_epochs": 5,
    "routing_samples": 20,
    "routing_steps": 5,
    "epochs": 3,
}


# -- samples ------------------------------------------------------------------------------------


def test_faults_are_what_the_model_mispredicts(digits):
    run = Run(digits.task(), InnerConfig())
    predicted = digits.model.predict(run.faulty.x.numpy()).argmax(axis=1)
    assert (predicted != run.faulty.y.numpy()).all()
    wrong = [
        int((digits.model.predict(split).argmax(axis=1) != split.y).sum())
        for split in (digits.train, digits.repair)
    ]
    assert len(run.faulty.y) == min(100, sum(wrong)) > wrong[0]


@pytest.mark.parametrize(
    ("options", "count"),
    [({"least_faults": 1}, "train"), ({"source": "repair"}, "repair"), ({"samples": 5}, 5)],
)
def test_where_faults_come_from_can_be_set(digits, options, count):
    if isinstance(count, str):
        split = getattr(digits, count)
        count = int((digits.model.predict(split).argmax(axis=1) != split.y).sum())
    assert len(Run(digits.task(), InnerConfig(**options)).faulty.y) == count


def test_looking_for_faults_ends_when_there_are_enough(digits, monkeypatch):
    monkeypatch.setattr("modelfix_inner.samples.CHUNK", 100)
    looked = []
    net = load(digits.model)
    order = np.arange(len(digits.train))[::-1]
    found = misclassified(net, digits.train, order, 3, looked.append)
    everything = misclassified(net, digits.train, order, 10**6)
    assert found.tolist() == everything[:3].tolist()
    assert len(looked) < len(order) / 100
    assert misclassified(net, digits.train, order, -5).tolist() == []


def test_partners_by_label_have_it_and_are_used_in_turn():
    y = np.array([1, 0, 1, 1, 2])
    clean = np.array([0, 1, 1, 0])
    order = np.array([3, 2, 1, 0])
    chosen = partners(y, clean, order, by_label=True)
    assert chosen[:4].tolist() == [2, 3, 1, 2]
    assert chosen[4] == 3  # no clean image of its class: any
    assert partners(y, clean, order, by_label=False).tolist() == [3, 2, 1, 0]


# -- localisation -------------------------------------------------------------------------------


def test_routing_ends_early_only_where_it_changes_nothing(parts):
    reading = Reading(parts.net, parts.blocks[1], parts.probes[1])
    options = {"steps": 10, "rate": 0.009, "decay": 0.005}
    counts, routed = count_hits(reading, parts.faulty.x, **options)
    early, fewer = count_hits(reading, parts.faulty.x, until_full=True, **options)
    assert torch.equal(make_mask(counts, "reference", 1), make_mask(early, "reference", 1))
    assert fewer < routed == len(parts.faulty.x)


def test_memory_changes_no_count(parts):
    reading = Reading(parts.net, parts.blocks[2], parts.probes[2])
    options = {"steps": 10, "rate": 0.009, "decay": 0.005}
    counts, _ = count_hits(reading, parts.faulty.x[:10], **options)
    scarce, _ = count_hits(reading, parts.faulty.x[:10], memory=1, **options)
    # A routing at its mean may fall on either side of it when sums are rounded differently.
    assert (counts != scarce).float().mean() < 0.01


def test_masks():
    counts = torch.tensor([[2, 0, 3], [3, 1, 0]])
    assert make_mask(counts, "reference", 1).int().tolist() == [[1, 0, 1], [1, 1, 0]]
    assert make_mask(counts, "topk", 1).int().tolist() == [[0, 0, 1], [0, 0, 0]]
    assert make_mask(counts, "topk", 3).int().tolist() == [[1, 0, 1], [1, 0, 0]]


def test_localisation_and_evidence_tell_the_same(digits):
    localisation, evidence, original, *candidates = Inner(
        **QUICK, mask="topk", neurons=10, blocks=2
    ).candidates(digits.task())
    assert isinstance(localisation, Localisation)
    assert localisation.kind == "weight"
    assert len(localisation) == 20
    assert localisation.score.min() >= 0
    assert localisation.score.max() <= 1
    assert isinstance(evidence, Evidence)
    columns = evidence.columns
    order = np.argsort(-np.array(columns["score"]))[:2]
    assert [columns["layer"][i] for i in order] == list(dict.fromkeys(localisation.layer))
    assert np.flatnonzero(columns["repaired"]).tolist() == sorted(order)
    sizes = [digits.model.weights[f"{columns['layer'][i]}.weight"].size for i in order]
    assert [columns["marked"][i] for i in order] == pytest.approx([10 / size for size in sizes])
    assert original == Candidate(
        weights={}, validation_accuracy=digits.model.accuracy(digits.validation)
    )
    assert [candidate.step for candidate in candidates] == [1, 1, 2, 2, 3, 3]


# -- repair -------------------------------------------------------------------------------------


def test_it_stops_when_enough_faults_are_repaired(digits):
    # With every rate allowed the first half of the first epoch satisfies.
    proposals = list(Inner(**QUICK, failure_rate=1.0, learning_rate=0.01).candidates(digits.task()))
    candidates = [p for p in proposals if isinstance(p, Candidate)]
    assert len(candidates) == 2
    assert candidates[1].values["failures"] < 1
    never = list(Inner(**QUICK, failure_rate=0.0).candidates(digits.task()))
    assert len(never) == 2 + 1 + 2 * QUICK["epochs"]


def test_failures_are_faults_of_the_validation_split_that_remain(digits):
    candidates = [p for p in Inner(**QUICK).candidates(digits.task()) if isinstance(p, Candidate)]
    y = digits.validation.y
    before = digits.model.predict(digits.validation).argmax(axis=1) != y
    last = candidates[-1]
    after = last.apply(digits.model).predict(digits.validation).argmax(axis=1) != y
    assert last.values["failures"] == pytest.approx(after[before].mean(), abs=1 / before.sum())


@pytest.mark.parametrize("drifts", [False, True])
def test_statistics_drift_only_where_the_code_is_followed(residual, residual_parts, drifts):
    parts = copy.deepcopy(residual_parts)
    reading = Reading(parts.net, parts.blocks[0], parts.probes[0])
    marked = Marked(0, reading, torch.ones_like(reading.weight, dtype=torch.bool))
    clean = parts.clean.x[: len(parts.faulty.y)]
    repair = Repair(parts.net, parts.faulty, clean, batch_statistics=drifts)
    repair.by_probe(marked)
    repair.by_label(marked)
    statistics = {name for layer in residual.model.layers("batchnorm") for name in layer.statistics}
    allowed = set(parts.blocks[0].layer.parameters)
    changed = set(parts.net.weights())
    assert changed == (allowed | statistics if drifts else allowed)
    assert not any(m.training for part in (parts.net, *parts.probes) for m in part.modules())


@pytest.mark.parametrize("name", ["parts", "residual_parts"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 0, 1, 1, 0)])
def test_what_is_kept_between_passes_changes_nothing(request, name, order):
    def repaired(memory):
        parts = copy.deepcopy(request.getfixturevalue(name))
        clean = parts.clean.x[: len(parts.faulty.y)]
        repair = Repair(parts.net, parts.faulty, clean, learning_rate=0.01, memory=memory)
        for depth in order:
            reading = Reading(parts.net, parts.blocks[depth], parts.probes[depth])
            marked = Marked(depth, reading, torch.ones_like(reading.weight, dtype=torch.bool))
            repair.by_probe(marked)
            repair.by_label(marked)
        return parts.net.weights()

    kept, scarce = repaired(2**30), repaired(0)
    assert kept.keys() == scarce.keys() != set()
    for weight, values in kept.items():
        np.testing.assert_array_equal(values, scarce[weight])


def test_prefixes_follow_the_network_and_stay_within_memory(fresh):
    net, x = fresh.net, fresh.faulty.x
    readings = [Reading(net, *pair) for pair in zip(fresh.blocks, fresh.probes, strict=True)]
    prefixes = Prefixes(net, x, batch_size=16)
    prefixes.keep(1, readings[1].frontier)
    prefixes.keep(3, readings[3].frontier)
    net.tensor(fresh.blocks[1].layer.weight).data.mul_(2)
    prefixes.drop_above(1)
    (name,) = readings[3].frontier
    expected = net.activations(x, [name])[name]
    torch.testing.assert_close(prefixes.rows([name], slice(None))[name], expected)
    steps = []
    with mock.patch.object(net, "apply", side_effect=lambda step, _: steps.append(step)):
        prefixes.rows(readings[1].frontier, slice(None))
    assert steps == []
    scarce = Prefixes(net, x, batch_size=16, memory=10)
    scarce.keep(1, readings[1].frontier)
    assert len(scarce._levels) == 1


@pytest.mark.parametrize("preset", ["default", "reference", "paper", "study"])
def test_every_preset_runs_on_a_residual_network(residual, preset):
    proposals = list(Inner(preset, **QUICK).candidates(residual.task()))
    assert sum(isinstance(p, Candidate) for p in proposals) == 1 + 2 * QUICK["epochs"]


def test_seeds_and_global_state(digits):
    def last(seed):
        task: Task = digits.task(seed=seed)
        return list(Inner(**QUICK).candidates(task))[-1].apply(digits.model).hash

    state = torch.random.get_rng_state()
    assert last(0) == last(0) != last(1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "options", [{"mask": "x"}, {"alpha": 2}, {"epochs": -1}, {"temperature": 0}, {"source": "test"}]
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ModelfixError, match=next(iter(options))):
        Inner(**options)
