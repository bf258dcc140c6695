"""Options, risk settings, what is refused, which place is chosen."""

import subprocess
import sys

import numpy as np
import pytest
from modelfix_core import Candidate, Evidence, Localisation, ModelfixError, Outcome, Unadaptable
from modelfix_core.fixing import run
from modelfix_distrrep import DistrRep
from modelfix_distrrep.risks import Misclassification, RiskTable, Score, from_classes, from_table
from modelfix_testing import tiny_task

LABELS = ["cat", "dog", "car", "bus"]
TABLE = {
    "target_misclassifications": {"car": ["cat", "dog"], "bus": ["car"]},
    "general_misclassifications": ["car"],
    "weights_precisions": {"car": 3, "bus": 1},
    "weights_misclassifications": {"car": 2, "car,dog": 1, "bus,car": 1},
}
QUICK = {"particles": 20, "iterations": 12, "classes": 2}


@pytest.mark.parametrize(
    "values",
    [
        {"blend": "cubic"},
        {"selection": "best"},
        {"without_risks": "guess"},
        {"classes": 0},
        {"phi": 4.0},
        {"speed": 2},
    ],
)
def test_refused_options(values):
    with pytest.raises(ModelfixError, match=next(iter(values))):
        DistrRep(**values)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights_misclassifications": {}}, "not all of a table 0"),
        ({"weights_misclassifications": {"car": -1, "bus,car": 3}}, "0 or more"),
        ({"weights_precisions": {"car": 0}}, "not all of a table 0"),
        ({"weights_precisions": {"bus": 1}}, "lacks the general class 'car'"),
        ({"weights_misclassifications": {"cat": 1}}, "'cat' is none of the named ones"),
        ({"target_misclassifications": {"car": ["car"]}}, "no misclassification"),
        ({"general_misclassifications": [], "target_misclassifications": {}}, "names no"),
    ],
)
def test_refused_settings(changes, reason):
    with pytest.raises(ModelfixError, match=reason):
        DistrRep(setting=TABLE | changes)


def test_presets():
    assert DistrRep("paper").config.selection == "swarm"
    study = DistrRep("study").config
    assert (study.classes, study.selection, study.particles) == (4, "accuracy", 100)
    assert DistrRep().config.without_risks == "refuse"


def test_importing_the_package_imports_no_framework():
    code = "import sys, modelfix_distrrep; print({'tensorflow', 'torch'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


# -- risk settings -----------------------------------------------------------------------------


def test_a_table_is_divided_by_its_sums():
    setting = from_table(RiskTable(**TABLE), LABELS)
    assert setting.misclassifications == (
        Misclassification(2, None, 0.5),
        Misclassification(2, 0, 0.0),
        Misclassification(2, 1, 0.25),
        Misclassification(3, 2, 0.25),
    )
    assert setting.precision == {2: 0.75}


def test_an_unknown_class_is_unadaptable():
    with pytest.raises(Unadaptable, match="'car'"):
        from_table(RiskTable(**TABLE), ["cat", "dog"])
    result = run(DistrRep(setting=TABLE), tiny_task())
    assert result.outcome is Outcome.UNADAPTABLE


def test_class_risks_name_each_class_and_its_most_frequent_error():
    y = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    predicted = np.array([1, 2, 2, 1, 1, 0, 3, 3])
    setting = from_classes({0: 1.0, 1: 2.0, 2: 1.0, 3: 0.0}, predicted, y)
    assert [(m.true, m.predicted) for m in setting.misclassifications] == [
        (0, None),
        (1, None),
        (2, None),
        (0, 2),
        (2, 0),
    ]
    assert [m.risk for m in setting.misclassifications] == pytest.approx(
        [1 / 6, 2 / 6, 1 / 6, 1 / 6, 1 / 6]
    )
    assert setting.precision == {0: 0.25, 1: 0.5, 2: 0.25}


def test_a_limit_keeps_the_riskiest_classes_then_those_with_most_errors():
    y = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    predicted = np.array([1, 2, 2, 1, 1, 0, 3, 3])
    risks = {0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}
    chosen = [set(from_classes(risks, predicted, y, count).precision) for count in (1, 2, 3, 9)]
    assert chosen == [{1}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_a_class_without_inputs_does_not_count():
    setting = from_classes({0: 1.0, 1: 1.0}, np.array([0, 1]), np.array([0, 1]))
    score = Score(setting, np.array([0, 0]))
    assert score(score.errors(np.array([[0, 0]]))).tolist() == [0.5]


def test_risks_that_weigh_nothing_are_a_mistake():
    for risks in ({0: 0.0, 1: 0.0}, {0: 1.0, 1: -1.0}):
        with pytest.raises(ModelfixError, match="class risks must be 0 or more"):
            DistrRep().check(tiny_task(risks=risks))


def test_all_classes_count_alike_on_request():
    task = tiny_task(risks=None)
    with pytest.raises(Unadaptable, match="without_risks=uniform"):
        DistrRep().check(task)
    DistrRep(without_risks="uniform").check(task)


def test_a_model_without_a_dense_head_is_unadaptable():
    from modelfix_core import Model
    from onnx import TensorProto, helper, numpy_helper

    kernel = numpy_helper.from_array(np.zeros((10, 1, 28, 28), np.float32), "head.weight")
    nodes = [
        helper.make_node("Conv", ["x", "head.weight"], ["z"], "head"),
        helper.make_node("Flatten", ["z"], ["logits"], "flatten"),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 28, 28]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [kernel])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    result = run(DistrRep(), tiny_task(model=Model(proto, "convolutional")))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "not the output of a dense layer" in result.reason


# -- what it yields ----------------------------------------------------------------------------


def places(*rows):
    from modelfix_distrrep.merge import Place

    return [
        Place(
            np.zeros(1),
            np.zeros(1),
            Candidate(
                weights={},
                validation_accuracy=accuracy,
                step=step,
                values={"validation_score": score},
            ),
        )
        for step, score, accuracy in rows
    ]


def test_the_chosen_place():
    from modelfix_distrrep.merge import choose

    found = places((1, 0.7, 0.9), (2, 0.8, 0.8), (3, 0.8, 0.85), (4, 0.8, 0.85), (5, 0.6, 0.9))
    steps = {s: choose(found, s).candidate.step for s in ("score", "accuracy", "swarm")}
    assert steps == {"score": 4, "accuracy": 5, "swarm": 5}


def test_no_gain_proposes_the_original(model, split, net, task):
    """A patch that only breaks inputs: no blend reaches the score of the original model."""
    from modelfix_distrrep.approach import DistrRepConfig
    from modelfix_distrrep.merge import merge
    from modelfix_distrrep.patches import Blame, Repair

    predicted = model.predict(split).argmax(axis=1)
    perfect = type(split)(split.x, predicted)
    common = int(np.bincount(predicted).argmax())
    entry = Misclassification(common, None, 1.0)
    setting = from_classes({common: 1.0}, predicted, predicted)
    index = common * 24 + np.arange(24)
    harm = Repair(Blame(entry, np.arange(1), index, np.ones(24)), np.full(24, -50, np.float32), 0)
    config = DistrRepConfig(particles=10, iterations=5)
    job = task(model, perfect)
    proposals = list(merge(net, job, config, setting, [harm], lambda *_: None))
    assert [p.weights for p in proposals if isinstance(p, Candidate)] == [{}]


def test_localisation_and_evidence():
    proposals = list(DistrRep(**QUICK).candidates(tiny_task()))
    found = proposals[0]
    assert isinstance(found, Localisation)
    assert set(found.layer) == {"fc3"}
    assert len(set(found.index.tolist())) == len(found)
    assert (np.diff(found.score) <= 0).all()
    shown = {p.name: p.columns for p in proposals if isinstance(p, Evidence)}
    assert set(shown) == {"misclassifications", "patches"}
    table = shown["misclassifications"]
    assert list(table["predicted"][:2]) == ["any other"] * 2
    assert sum(table["weights"]) == len(shown["patches"]["feature"])
    positions = {
        (int(name), int(feature))
        for name, feature in zip(
            shown["patches"]["class"], shown["patches"]["feature"], strict=True
        )
    }
    assert {divmod(int(i), 84) for i in found.index} == positions


def test_the_evidence_is_true():
    task = tiny_task()
    proposals = list(DistrRep(**QUICK).candidates(task))
    fixed = next(p for p in proposals if isinstance(p, Candidate)).apply(task.model)
    table = next(p.columns for p in proposals if isinstance(p, Evidence))
    for split, name in ((task.repair, "repair"), (task.validation, "validation")):
        for model, when in ((task.model, "before"), (fixed, "after")):
            predicted = model.predict(split).argmax(axis=1)
            for true, wrong, count in zip(
                table["true"], table["predicted"], table[f"{name}_errors_{when}"], strict=True
            ):
                of_class = predicted[split.y == int(true)]
                counted = of_class != int(true) if wrong == "any other" else of_class == int(wrong)
                assert counted.sum() == count
