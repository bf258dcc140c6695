import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_metrics import (
    AttackOptions,
    MetricValue,
    Predictions,
    Status,
    compare,
    evaluate,
    evaluate_record,
    metrics_from_predictions,
)
from modelfix_metrics.__main__ import main
from modelfix_metrics.attacking import Attacking
from modelfix_metrics.cell import is_evaluated

SETTINGS = {"classes": ["a", "b", "c"], "epsilon": 0.05, "order_seed": 4}


def arguments(cell, *more):
    return ["--record", str(cell.record), "--subject", str(cell.subject), *more]


def evaluation(cell, **changed):
    return evaluate(cell.original, cell.fixed, cell.test, **{**SETTINGS, **changed})


def stored(cell):
    return json.loads((cell.record / "record.json").read_text())


def test_importing_the_package_imports_no_framework():
    code = (
        "import sys, modelfix_metrics, modelfix_metrics.__main__, modelfix_metrics.attacking;"
        "print([m for m in ('torch', 'tensorflow', 'foolbox', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- evaluate ----------------------------------------------------------------------------------


def test_evaluate_gives_every_metric(cell):
    found = evaluation(cell)
    metrics = [value.metric for value in found.values]
    assert len(metrics) == len(set(metrics))
    assert {"accuracy", "repair_rate", "nfr", "aaod", "asr", "asr_margin"} <= set(metrics)
    assert {v.status for v in found.values} == {Status.OK}
    right = cell.fixed.predict(cell.test).argmax(axis=1) == cell.test.y
    assert found["accuracy"].numerator == right.sum()
    before = cell.original.predict(cell.test).argmax(axis=1) == cell.test.y
    asr = found["asr"]
    assert asr.denominator == asr.details["pool"] == (before & right).sum()
    assert asr.details["model_calls"] == 41 * asr.denominator
    gains = {c.metric: c.gain for c in found.comparisons}
    change = (right.sum() - before.sum()) / before.sum()
    assert gains["accuracy"] == pytest.approx(100 * change)
    assert {"asr", "aaod"} <= gains.keys()
    assert not {"repair_rate", "nfr"} & gains.keys()
    assert [v.as_dict() for v in metrics_from_predictions(found.table)] == [
        v.as_dict() for v in found.values[: len(metrics_from_predictions(found.table))]
    ]


def test_an_unchanged_model_changes_nothing(cell):
    found = evaluate(cell.original, cell.original, cell.test, **SETTINGS)
    assert found["repair_rate"].value == found["nfr"].value == 0
    assert {c.gain for c in found.comparisons} == {0.0}
    assert {c.p_value for c in found.comparisons} == {1.0, None}
    # The same starts and batches: not one attacked input differs.
    original = {value.metric: value.numerator for value in found.original}
    for metric in ("asr", "asr_margin"):
        assert 0 < found[metric].numerator == original[metric]


def test_epsilon_zero(cell):
    found = evaluation(cell, epsilon=0.0)
    assert found["asr"].value == found["asr_margin"].value == 0
    every = AttackOptions(subset="all")
    found = evaluation(cell, epsilon=0.0, attack=every)
    assert found["asr"].value == pytest.approx(1 - found["accuracy"].value)
    assert found["asr_printed"].value == 0
    assert found["asr"].definition == "asr/1:all-inputs"


def test_the_study_attack_and_the_pool_over_repetitions(cell):
    other = Predictions.of(
        cell.original,
        cell.original.with_weights({"fc.weight": -cell.original.weights["fc.weight"]}),
        cell.test,
    )
    options = AttackOptions(metrics=("asr_study",), repetitions=(other,))
    found = evaluation(cell, attack=options)
    right = other.right_before & other.right_after
    right &= cell.fixed.predict(cell.test).argmax(axis=1) == cell.test.y
    assert found["asr_study"].details["pool"] == right.sum()
    assert found["asr_study"].definition == "asr_study/1:all-repetitions"
    assert found["asr_study"].details["attack"]["space"] == "network"
    moved = replace(other, ids=other.ids + 1)
    with pytest.raises(ModelfixError, match="different inputs"):
        evaluation(cell, attack=replace(options, repetitions=(moved,)))


def test_fewer_attacked_inputs_are_a_prefix(cell):
    few = evaluation(cell, attacked=20)["asr"]
    assert few.denominator == 20
    assert few.details["pool"] > 20


def test_without_epsilon_or_attack_asr_is_absent(cell):
    assert evaluation(cell, epsilon=None)["asr"].reason == "no_attack_epsilon"
    skipped = evaluation(cell, attack=AttackOptions(metrics=()))
    assert (skipped["asr"].status, skipped["asr"].reason) == (Status.ABSENT, "attack_skipped")


def test_no_input_right_gives_no_attack_rate(cell):
    wrong = Split(cell.test.x, (cell.original.predict(cell.test).argmax(axis=1) + 1) % 3)
    found = evaluate(cell.original, cell.fixed, wrong, **SETTINGS)
    assert found["asr"].reason == found["asr_margin"].reason == "empty_pool"


def test_a_model_that_cannot_be_attacked_has_no_asr(cell, linear):
    # PyTorch's bridge does not know this operator; onnxruntime does.
    hard = linear(cell.original.weights["fc.weight"], after=[("Hardmax", None, False)])
    found = evaluate(cell.original, hard, cell.test, **SETTINGS)
    assert found["asr"].status is Status.ABSENT
    assert found["asr"].reason.startswith("no_gradients")
    assert found["accuracy"].status is Status.OK


def test_disagreement_of_the_conversion_is_an_error(cell, monkeypatch):
    monkeypatch.setattr(
        "modelfix_metrics.adversary.Target.logits", lambda self, data: np.zeros((len(data), 3))
    )
    with pytest.raises(ModelfixError, match="PyTorch and onnxruntime predict different classes"):
        evaluation(cell)


def test_masked_gradients_are_warned_about(linear):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 4))
    bias = -0.5 * weight.sum(axis=1)
    x = rng.uniform(0.2, 0.8, (200, 1, 2, 2)).astype(np.float32)
    original, loud = linear(weight, bias), linear(3000 * weight, 3000 * bias)
    split = Split(x, original.predict(x).argmax(axis=1).astype(np.int64))
    found = evaluate(original, loud, split, **{**SETTINGS, "epsilon": 0.1})
    assert found["accuracy"].value == 1
    assert found["asr"].value < found["asr_margin"].value - 0.1
    assert "masked" in found["asr"].warnings[0]
    assert found["asr"].details["zero_gradient_share"] > 0.1


def test_nan_logits_are_wrong_and_not_attacked(cell, linear):
    weight = cell.original.weights["fc.weight"]
    broken = linear(weight, after=[("Sqrt", None, False)])  # NaN where a logit is negative
    found = evaluate(cell.original, broken, cell.test, **SETTINGS)
    missing = np.isnan(broken.predict(cell.test)).any(axis=1).sum()
    assert missing > 0
    assert f"{missing} of 200 inputs have NaN logits" in found["accuracy"].warnings[0]


@pytest.mark.parametrize(("fallen", "outcome"), [(20, "FIXED"), (21, "CORRUPTED")])
def test_corrupted_is_more_than_ten_points(cell, fallen, outcome):
    found = evaluation(cell, attack=AttackOptions(metrics=()))
    before = MetricValue.ratio("accuracy", 160, 200, "test")
    after = MetricValue.ratio("accuracy", 160 - fallen, 200, "test")
    changed = replace(found, original=[before], values=[after])
    assert changed.outcome_on_test == outcome


# -- the cached original -----------------------------------------------------------------------


@pytest.fixture
def attacks_run(monkeypatch):
    runs = []
    own = Attacking._run

    def noted(self, which, attack, ranks):
        runs.append((which, attack.metric, len(ranks)))
        return own(self, which, attack, ranks)

    monkeypatch.setattr(Attacking, "_run", noted)
    return runs


def values_of(found):
    return [(v.metric, v.numerator, v.denominator) for v in (*found.values, *found.original)]


def test_the_original_is_attacked_once_for_all_entrants(cell, tmp_path, attacks_run):
    options = AttackOptions(cache=tmp_path / "cache")
    first = evaluation(cell, attack=options)
    attacks_run.clear()
    again = evaluation(cell, attack=options)
    assert [which for which, *_ in attacks_run] == [1, 1]
    assert values_of(again) == values_of(first)
    assert values_of(evaluation(cell)) == values_of(first)
    other = evaluate(cell.original, cell.original, cell.test, **SETTINGS, attack=options)
    assert values_of(other) == values_of(
        evaluate(cell.original, cell.original, cell.test, **SETTINGS)
    )


def test_a_cached_prefix_is_extended(cell, tmp_path, attacks_run, monkeypatch):
    monkeypatch.setattr("modelfix_metrics.adversary.BATCH", 16)
    options = AttackOptions(metrics=("asr",), cache=tmp_path)
    evaluation(cell, attack=options, attacked=10)
    attacks_run.clear()
    large = evaluation(cell, attack=options, attacked=100)
    fresh = evaluation(cell, attack=replace(options, cache=None), attacked=100)
    assert values_of(large) == values_of(fresh)
    extended, anew = (inputs for which, _, inputs in attacks_run if which == 0)
    assert extended == anew - 16


def test_the_cache_is_for_one_model_seed_and_attack(cell, tmp_path):
    options = AttackOptions(metrics=("asr",), cache=tmp_path)
    for changed in ({}, {"order_seed": 5}, {"epsilon": 0.1}):
        evaluation(cell, attack=options, **changed)
    evaluation(cell, attack=replace(options, preset="fast-gradient"))
    evaluate(cell.fixed, cell.original, cell.test, **SETTINGS, attack=options)
    assert len(list(tmp_path.glob("*.npz"))) == 5


def test_a_damaged_cache_is_replaced(cell, tmp_path):
    options = AttackOptions(metrics=("asr",), cache=tmp_path / "cache")
    expected = values_of(evaluation(cell, attack=options))
    (file,) = (tmp_path / "cache").iterdir()
    for content in (b"", b"PK nothing", file.read_bytes()[:200]):
        file.write_bytes(content)
        assert values_of(evaluation(cell, attack=options)) == expected


# -- compare -----------------------------------------------------------------------------------


def test_compare_names_what_broke(cell):
    found = compare(cell.original, cell.fixed, cell.test)
    before = cell.original.predict(cell.test).argmax(axis=1) == cell.test.y
    after = cell.fixed.predict(cell.test).argmax(axis=1) == cell.test.y
    assert found.regressed.tolist() == cell.test.ids[before & ~after].tolist()
    assert found.repaired.tolist() == cell.test.ids[~before & after].tolist()
    values = {value.metric: value for value in found.values}
    assert values["nfr"].numerator == len(found.regressed)
    assert "asr" not in values


def test_compare_needs_no_torch(cell):
    code = (
        "import sys; from modelfix_core import Model, Split;"
        "from pathlib import Path; from modelfix_metrics import compare;"
        f"a = Model.load({str(cell.subject / 'model.onnx')!r});"
        f"compare(a, a, Split.load(Path({str(cell.subject / 'test')!r})));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- record folders ----------------------------------------------------------------------------


def test_a_record_is_evaluated_once(cell, capsys):
    assert main(arguments(cell)) == 0
    assert "asr" in capsys.readouterr().out
    content = stored(cell)
    assert {k: v for k, v in content.items() if k != "evaluation"} == cell.content
    found = content["evaluation"]
    assert found["hashes"]["fixed"] == cell.fixed.hash
    assert found["outcome_on_test"] in ("FIXED", "CORRUPTED")
    for metric in ("accuracy", "asr", "aaod"):
        assert {"before", "after", "gain"} <= found["comparisons"][metric].keys()
    assert {"asr", "total"} <= found["seconds"].keys()
    predictions = Predictions.load(cell.record / "predictions.parquet")
    assert predictions.group is not None
    for value in metrics_from_predictions(predictions):
        assert value.as_dict() == found["metrics"][value.metric]
    before = (cell.record / "record.json").read_bytes()
    assert main(arguments(cell)) == 0
    assert "evaluated already" in capsys.readouterr().out
    assert (cell.record / "record.json").read_bytes() == before


def test_other_settings_or_lost_predictions_evaluate_again(cell):
    assert main(arguments(cell, "--no-attack")) == 0
    assert stored(cell)["evaluation"]["metrics"]["asr"]["reason"] == "attack_skipped"
    assert evaluate_record(cell.record, cell.subject, attack=AttackOptions(metrics=())).reused
    assert is_evaluated(cell.record, cell.subject, attack=AttackOptions(metrics=()))
    assert not is_evaluated(cell.record, cell.subject, attack=AttackOptions())
    (cell.record / "predictions.parquet").unlink()
    assert not is_evaluated(cell.record, cell.subject, attack=AttackOptions(metrics=()))
    assert not evaluate_record(cell.record, cell.subject, attack=AttackOptions(metrics=())).reused
    assert main(arguments(cell, "--attacked", "30")) == 0
    assert stored(cell)["evaluation"]["metrics"]["asr"]["denominator"] == 30


@pytest.mark.parametrize("outcome", ["FAILURE", "UNADAPTABLE"])
def test_records_without_model_are_left_alone(cell, outcome, capsys):
    (cell.record / "fixed.onnx").unlink()
    text = json.dumps({"outcome": outcome, "reason": "too large"})
    (cell.record / "record.json").write_text(text)
    assert main(arguments(cell)) == 0
    assert "no fixed model" in capsys.readouterr().out
    assert (cell.record / "record.json").read_text() == text
    assert not (cell.record / "predictions.parquet").exists()


def test_mistakes_are_one_sentence(cell, capsys):
    def refused(words, *more):
        assert main(arguments(cell, *more)) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert words in error

    refused("at least one", "--attacked", "0")
    refused("device 'abacus'", "--device", "abacus")
    refused("predictions.parquet: is missing", "--repetitions", str(cell.record))
    other = cell.original.with_weights({"fc.weight": -cell.original.weights["fc.weight"]})
    other.save(cell.record / "fixed.onnx")
    refused("another fixed model")
    (cell.record / "fixed.onnx").unlink()
    refused("fixed.onnx: is missing")
    other.save(cell.subject / "model.onnx")
    cell.fixed.save(cell.record / "fixed.onnx")
    refused("has changed since it was prepared")
    (cell.record / "record.json").write_text('{"outcome": "FINE"}')
    refused("its outcome is 'FINE'")
    (cell.record / "record.json").write_text("{")
    refused("is damaged")
    (cell.record / "record.json").unlink()
    refused("run the fix first")


def test_the_models_are_left_as_they_are(cell):
    files = [cell.subject / "model.onnx", cell.record / "fixed.onnx"]
    before = [file.read_bytes() for file in files]
    evaluate_record(cell.record, cell.subject)
    assert [file.read_bytes() for file in files] == before
    assert Model.load(files[0]).hash == cell.original.hash
