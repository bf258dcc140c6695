import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from modelfix_core import profile
from modelfix_core.approach import Outcome
from modelfix_core.dataset import Dataset, Split
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.model import Model
from modelfix_core.record import Entrant, Record
from modelfix_core.seeds import generator
from modelfix_metrics import AttackOptions, Predictions, evaluate_record
from modelfix_metrics.aligning import AlignedTarget
from modelfix_metrics.attacks import Attack
from modelfix_metrics.combining import (
    METHODS,
    Dropout,
    Mixture,
    MoreConfident,
    Perturbation,
    alignment_weights,
)
from modelfix_metrics.fusing import PREFIX, fuse
from modelfix_metrics.post_processing import (
    Options,
    PostProcessing,
    describe,
    folder_of,
    main,
)

NO_ATTACK = Options(attack=AttackOptions(metrics=()))
RULES = (
    Mixture(),
    MoreConfident(),
    Mixture(original=1.7),
    Mixture(original=0.6, fixed=2.5),
    Mixture(weight=0.2),
    Mixture(weight=0.0),
    Mixture(weight=1.0),
)


@pytest.fixture
def run(cell, random_split):
    """The cell with a validation split and an evaluated record of core's."""
    validation = random_split(80, seed=5)
    # Each model is right where the other is wrong about as often.
    for start, model in enumerate((cell.original, cell.fixed)):
        validation.y[start::2] = model.predict(validation)[start::2].argmax(axis=1)
    validation.y[:8] = (validation.y[:8] + 1) % 3
    splits = {"validation": validation, "test": cell.test}
    Dataset(splits, ["a", "b", "c"], None, "colour").save(cell.subject)
    path = cell.subject / "subject.json"
    card = {**json.loads(path.read_text()), "splits": {"validation": 80, "test": 200}}
    path.write_text(json.dumps(card))
    Record(
        cell="cell",
        entrant=Entrant(
            approach="approach", abbreviation="AP", category="neuron", preset="default",
            config={"size": 1}, version="1",
        ),
        subject="toy",
        repetition=2,
        seed=0,
        outcome=Outcome.FIXED,
        seconds={"fixing": 4.0, "total": 5.0},
        hashes={"original": cell.original.hash, "fixed": cell.fixed.hash},
    ).save(cell.record)  # fmt: skip
    evaluate_record(cell.record, cell.subject, attack=AttackOptions(metrics=()))
    cell.validation = validation
    return cell


# -- the fused graph -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_graph_computes_the_rule(cell, rule):
    fused = fuse(cell.original, cell.fixed, rule)
    before, after = (model.predict(cell.test) for model in (cell.original, cell.fixed))
    expected = rule.combine(before, after)
    found = fused.predict(cell.test)
    clear = rule.margin(before, after) > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-4)
    assert (found.argmax(1) == expected.argmax(1))[clear].all()
    assert fused.input_shape == cell.original.input_shape


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_the_graph_is_standard_in_every_opset(cell, tmp_path, opset):
    models = []
    for model in (cell.original, cell.fixed):
        proto = model.proto()
        proto.opset_import[0].version = opset
        models.append(Model(proto))
    for rule in RULES:
        fuse(*models, rule).save(tmp_path / "fused.onnx")
        again = Model.load(tmp_path / "fused.onnx")
        assert again.predict(cell.test).shape == (200, 3)


def test_what_both_compute_alike_is_computed_once(linear):
    steps = [("Sub", [[[0.5]]], False), ("Relu", None, False)]
    weight = np.arange(12).reshape(3, 4) / 10
    original = linear(weight, before=steps)
    fixed = original.with_weights({"fc.weight": -weight})
    fused = fuse(original, fixed, Mixture())
    kinds = [node.op_type for node in fused.proto().graph.node]
    assert kinds.count("Relu") == kinds.count("Sub") - 1 == kinds.count("Flatten") == 1
    assert kinds.count("Gemm") == 2
    assert [name for name in fused.weights if name.startswith(PREFIX)] == [PREFIX + "fc.weight"]
    same = fuse(original, original, Mixture())
    assert [n.op_type for n in same.proto().graph.node].count("Gemm") == 1


def test_probabilities_are_combined_by_their_logarithm(linear, random_split):
    weight = np.random.default_rng(0).normal(size=(3, 4))
    after = [("Softmax", None, False), ("Identity", None, False)]
    original, fixed = (linear(w, after=after) for w in (weight, -weight))
    data = random_split(30)
    p, q = original.predict(data), fixed.predict(data)
    fused = fuse(original, fixed, Mixture(), (True, True))
    np.testing.assert_allclose(np.exp(fused.predict(data)), (p + q) / 2, atol=1e-6)


def test_graphs_that_cannot_stand_together_are_refused(cell, linear):
    other = cell.fixed.proto()
    other.opset_import[0].version = 19
    assert profile.opset_of(cell.original.proto()) == 17
    with pytest.raises(Unadaptable, match="opset 17 and the fixed one 19"):
        fuse(cell.original, Model(other), Mixture())
    with pytest.raises(Unadaptable, match="differ in input shape or classes"):
        fuse(cell.original, linear(np.ones((2, 4))), Mixture())


# -- UP and UD beside a straightforward computation ------------------------------------------------


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def straightforward(passes):
    """Return r from a list of (p, q) of every pass, by the formulas of the specification."""
    means, uncertainties = [], []
    for model in range(2):
        p = np.stack([pair[model] for pair in passes])
        means.append(p.mean(axis=0))
        uncertainties.append(((p**2).mean(axis=0) - means[-1] ** 2).sum(axis=1))
    w_o, w_n = alignment_weights(*uncertainties)
    return w_o[:, None] * means[0] + w_n[:, None] * means[1], uncertainties


@pytest.mark.parametrize("shared", [True, False])
def test_perturbation_is_that_of_the_specification(cell, shared):
    rule = Perturbation(samples=4, noise=0.2, shared=shared)
    found = AlignedTarget(cell.original, cell.fixed, rule, 7).align(cell.test)
    names = ("both", "both") if shared else ("original", "fixed")
    sources = [
        [
            generator(7, sample=int(i), stage="post-processing", step=0, model=name)
            for i in cell.test.ids
        ]
        for name in names
    ]
    if shared:
        sources[1] = sources[0]
    passes = []
    for _ in range(4):
        noise = [
            np.stack([rng.standard_normal((1, 2, 2), np.float32) for rng in source])
            for source in (sources[:1] if shared else sources)
        ]
        images = [np.clip(cell.test.images() + 0.2 * e, 0, 1).astype(np.float32) for e in noise]
        passes.append(
            (
                softmax(cell.original.predict(images[0])),
                softmax(cell.fixed.predict(images[-1])),
            )
        )
    r, (u_o, u_n) = straightforward(passes)
    np.testing.assert_allclose(np.exp(found.log_r), r, atol=1e-5)
    np.testing.assert_allclose(found.original, u_o, atol=1e-5)
    np.testing.assert_allclose(found.fixed, u_n, atol=1e-5)


def test_noise_after_the_normalisation_is_scaled_back(linear, random_split):
    weight = np.random.default_rng(3).normal(size=(3, 4))
    plain = linear(weight)
    scaled = linear(weight / 4, before=[("Mul", [[[4.0]]], False)])
    data = random_split(20)
    unscaled, shrunk = (
        AlignedTarget(m, m, Perturbation(noise=noise, space="model"), 1).align(data).log_r
        for m, noise in ((plain, 0.1), (scaled, 0.4))
    )
    np.testing.assert_allclose(unscaled, shrunk, atol=1e-4)


def test_dropout_is_that_of_the_specification(cell):
    rule = Dropout(samples=5, rate=0.3)
    found = AlignedTarget(cell.original, cell.fixed, rule, 2).align(cell.test)
    x = cell.test.images().reshape(-1, 4)
    weights = [(m.weights["fc.weight"], m.weights["fc.bias"]) for m in (cell.original, cell.fixed)]
    sources = [
        [
            generator(2, sample=int(i), stage="post-processing", step=0, model=name)
            for i in cell.test.ids
        ]
        for name in ("original", "fixed")
    ]
    passes = []
    for _ in range(5):
        masks = [np.stack([r.random(4, np.float32) >= 0.3 for r in source]) for source in sources]
        passes.append(
            tuple(
                softmax(x * mask / 0.7 @ w.T + b)
                for mask, (w, b) in zip(masks, weights, strict=True)
            )
        )
    r, _ = straightforward(passes)
    np.testing.assert_allclose(np.exp(found.log_r), r, atol=1e-5)


@pytest.mark.parametrize("rule", [Perturbation(noise=0), Dropout(rate=0)], ids=str)
def test_without_noise_the_weights_are_a_quarter_and_three(cell, rule):
    found = AlignedTarget(cell.original, cell.fixed, rule, 0).align(cell.test)
    p, q = (softmax(model.predict(cell.test)) for model in (cell.original, cell.fixed))
    np.testing.assert_allclose(np.exp(found.log_r), 0.25 * p + 0.75 * q, atol=1e-5)
    assert found.at_floor() == {"original": 1, "fixed": 1, "both": 1}


@pytest.mark.parametrize("rule", [Perturbation(), Dropout()], ids=str)
def test_draws_follow_the_seed_and_the_input_alone(cell, rule):
    first = AlignedTarget(cell.original, cell.fixed, rule, 3).align(cell.test).log_r
    part = np.arange(50, 150, 3)
    again = AlignedTarget(cell.original, cell.fixed, rule, 3).align(cell.test.select(part)).log_r
    np.testing.assert_allclose(first[part], again, atol=1e-5)
    other = AlignedTarget(cell.original, cell.fixed, rule, 4).align(cell.test).log_r
    assert np.abs(first - other).max() > 1e-6


@pytest.mark.parametrize("fresh", [False, True])
def test_the_attack_on_an_aligned_pair_repeats(cell, fresh):
    def attack():
        target = AlignedTarget(cell.original, cell.fixed, Dropout(), 3, fresh=fresh)
        order = np.arange(len(cell.test))
        found = target.attack(Attack("asr", 0.2), cell.test, order[:40], order, 9)
        return found.wrong

    wrong = attack()
    assert wrong.any()
    assert (wrong == attack()).all()


def test_dropout_needs_the_layer(cell, linear):
    with pytest.raises(Unadaptable, match="no dense layer 'head' for UD; it has fc"):
        AlignedTarget(cell.original, cell.fixed, Dropout(layer="head"), 0)


# -- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_record(run, method):
    processing = PostProcessing(run.record, run.subject)
    options = replace(NO_ATTACK, perturbation=Perturbation(samples=2), dropout=Dropout(samples=2))
    folder, reused = processing.apply(method, options)
    assert not reused
    assert folder == folder_of(run.record, options.name(method))
    record = Record.load(folder)
    assert record.outcome is Outcome.FIXED
    assert record.entrant.approach == f"approach+{method}"
    assert record.entrant.config["size"] == 1
    assert record.seconds["fixing"] > 4
    assert record.hashes["original"] == run.original.hash
    stored = Predictions.load(folder / "predictions.parquet")
    fixed = Predictions.load(run.record / "predictions.parquet")
    np.testing.assert_array_equal(stored.before, fixed.before)
    metrics = record.evaluation["metrics"]
    assert metrics["accuracy"]["value"] == stored.right_after.mean()
    if method not in ("up", "ud"):
        assert (fixed.right_before & ~stored.right_after).sum() <= (
            fixed.right_before & ~fixed.right_after
        ).sum()
        assert Model.load(folder / "fixed.onnx").hash == record.hashes["fixed"] == stored.fixed
    else:
        assert not (folder / "fixed.onnx").exists()
        assert "floor" in describe(record)
    assert processing.apply(method, options) == (folder, True)
    assert not list(folder.parent.glob("*.partial"))


def test_settings_of_a_users_own_have_a_folder_of_their_own(run):
    assert Options().name("up") == "up"
    named = Options(perturbation=Perturbation(noise=0.05)).name("up")
    assert named.startswith("up-")
    assert Options(seed=1).name("ud").startswith("ud-")
    assert Options(seed=1).name("sv") == "sv"


def test_attacked_as_one(run):
    options = Options(attacked=30, attack=AttackOptions(), dropout=Dropout(samples=3))
    processing = PostProcessing(run.record, run.subject)
    for method in ("sv", "ud"):
        record = Record.load(processing.apply(method, options)[0])
        asr = record.evaluation["metrics"]["asr"]
        assert asr["status"] == "OK"
        assert asr["denominator"] == 30
        assert record.evaluation["original"]["asr"]["denominator"] == 30
    assert asr["details"]["draws"] == "fixed"
    assert asr["definition"] == "asr/1"
    eot = Record.load(processing.apply("ud", replace(options, fresh=True))[0])
    assert eot.evaluation["metrics"]["asr"]["definition"] == "asr/1:eot"


def test_the_test_split_decides_nothing(run):
    """What is fitted stays the same whatever the test images and labels are."""
    before = {
        m: Record.load(PostProcessing(run.record, run.subject).apply(m, NO_ATTACK)[0])
        for m in ("us", "us-labelled", "us-weight")
    }
    other = Split(1 - run.test.x, (run.test.y + 1) % 3, run.test.group, run.test.ids)
    Dataset({"validation": run.validation, "test": other}, ["a", "b", "c"], None, "colour").save(
        run.subject
    )
    for folder in run.record.parent.parent.glob("*+*"):
        shutil.rmtree(folder)
    evaluate_record(run.record, run.subject, attack=AttackOptions(metrics=()))
    for method, record in before.items():
        again = Record.load(PostProcessing(run.record, run.subject).apply(method, NO_ATTACK)[0])
        assert again.provenance["post_processing"] == record.provenance["post_processing"]
        assert again.validation_accuracy == record.validation_accuracy


def test_what_cannot_be_adapted_is_a_record_that_says_so(run):
    options = replace(NO_ATTACK, dropout=Dropout(layer="head"))
    folder, _ = PostProcessing(run.record, run.subject).apply("ud", options)
    record = Record.load(folder)
    assert record.outcome is Outcome.UNADAPTABLE
    assert "no dense layer 'head'" in record.reason
    assert record.evaluation is None


# -- bad input -------------------------------------------------------------------------------------


def change(run, **values):
    path = run.record / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def foreign(run):
    p = Predictions.load(run.record / "predictions.parquet")
    replace(p, fixed="0" * 64).save(run.record / "predictions.parquet")


def other_inputs(run):
    p = Predictions.load(run.record / "predictions.parquet")
    replace(p, ids=p.ids[::-1].copy()).save(run.record / "predictions.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run.record / "predictions.parquet").unlink(), "evaluate the record first"),
        (lambda run: truncate(run.record / "predictions.parquet"), "not a readable Parquet file"),
        (lambda run: truncate(run.record / "record.json"), r"record\.json: is damaged"),
        (lambda run: truncate(run.record / "fixed.onnx"), "is not an ONNX file"),
        (lambda run: (run.record / "fixed.onnx").unlink(), "is missing; run the fix again"),
        (lambda run: shutil.rmtree(run.record), r"record\.json: is missing"),
        (foreign, "predictions of another fixed model"),
        (other_inputs, "are about different inputs"),
        (lambda run: change(run, outcome="CORRUPTED", reason="it fell"), "CORRUPTED .it fell."),
        (lambda run: change(run, hashes={"original": "0" * 64}), "another original model"),
        (lambda run: change(run, hashes={"fixed": "0" * 64}), "another fixed model"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(run, capsys, damage, message):
    damage(run)
    with pytest.raises(ModelfixError, match=message):
        PostProcessing(run.record, run.subject)
    assert main(["--record", str(run.record), "--subject", str(run.subject)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not list(run.record.parent.parent.glob("*+*"))


def test_post_processing_is_not_repeated_on_itself(run):
    folder, _ = PostProcessing(run.record, run.subject).apply("sv", NO_ATTACK)
    with pytest.raises(ModelfixError, match="was post-processed already"):
        PostProcessing(folder, run.subject)


def test_a_damaged_record_of_a_method_is_made_again(run):
    processing = PostProcessing(run.record, run.subject)
    folder, _ = processing.apply("us", NO_ATTACK)
    truncate(folder / "predictions.parquet")
    assert processing.apply("us", NO_ATTACK) == (folder, False)
    assert processing.apply("us", NO_ATTACK) == (folder, True)


def test_command(run, capsys):
    arguments = ["--record", str(run.record), "--subject", str(run.subject), "--no-attack"]
    assert main([*arguments, "--method", "sv", "--method", "us"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [str(folder_of(run.record, name)) for name in ("sv", "us")]
    assert main([*arguments, "--method", "sv"]) == 0
    assert capsys.readouterr().out.endswith("\treused\n")
    assert main([*arguments, "--method", "up", "--noise=-1"]) == 2
    assert "noise is -1.0" in capsys.readouterr().err
