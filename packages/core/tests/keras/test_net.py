import subprocess
import sys

import numpy as np
import pytest
from modelfix_core import ModelfixError, Split
from modelfix_core.keras import load, predict

tf = pytest.importorskip("tensorflow")


def test_importing_the_bridge_does_not_import_torch_and_is_quiet():
    code = "import modelfix_core.keras, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert done.stderr == ""


def test_importing_the_approach_contract_does_not_import_tensorflow():
    code = "import modelfix_core, sys; print('tensorflow' in sys.modules or 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_set_weights_weights_and_reset(built):
    model = built["vgg"]
    net, rng = load(model), np.random.default_rng(0)
    new = {
        name: rng.normal(size=model.weights[name].shape).astype(np.float32)
        for name in ("features.0.weight", "classifier.0.weight", "norms.1.running_mean")
    }
    net.set_weights(new)
    found = net.weights()
    assert found.keys() == new.keys()
    assert all(found[name].tobytes() == new[name].tobytes() for name in new)
    net.reset()
    assert net.weights() == {}


def test_set_weights_refuses_what_does_not_fit(built):
    net = load(built["lenet5"])
    with pytest.raises(ModelfixError, match=r"no weight named .fc9\.weight"):
        net.set_weights({"fc9.weight": np.zeros(3)})
    with pytest.raises(ModelfixError, match=r"\[10, 84\], not \[84, 10\]"):
        net.set_weights({"fc3.weight": np.zeros((84, 10))})


def test_changed_weights_give_the_same_in_onnxruntime(built, images):
    model = built["densenet"]
    net, x, rng = load(model), images(model), np.random.default_rng(0)
    changed = {
        name: (array + rng.normal(0, 0.1, array.shape)).astype(np.float32)
        for name, array in model.weights.items()
        if not name.endswith("running_var")
    }
    net.set_weights(changed)
    expected = model.with_weights(net.weights()).predict(x)
    np.testing.assert_allclose(predict(net, x), expected, atol=1e-4)


def test_predict_takes_splits_of_bytes(built):
    model = built["lenet5"]
    x = np.random.default_rng(0).integers(0, 256, (30, 1, 28, 28)).astype(np.uint8)
    split = Split(x, np.zeros(30, np.int64))
    np.testing.assert_allclose(
        predict(load(model), split, batch_size=8), model.predict(split), atol=1e-5
    )


def test_activations_have_the_axes_of_the_file(torch_like, images):
    net, x = load(torch_like), images(torch_like, 4)
    names = [layer.name for layer in torch_like.layers()]
    tensors = [layer.output for layer in torch_like.layers()]
    expected = torch_like.activations(x, tensors)
    found = net.activations(x, names)
    assert list(found) == names
    for name, tensor in zip(names, tensors, strict=True):
        np.testing.assert_allclose(found[name].numpy(), expected[tensor], atol=1e-4)


def test_gradients_flow_to_images_and_weights(torch_like, images):
    net, x = load(torch_like), tf.constant(images(torch_like, 8))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(
            tf.square(net.activations(x, [torch_like.output_name])[torch_like.output_name])
        )
    to_images, *to_weights = tape.gradient(loss, [x, *net.keras.trainable_variables])
    assert np.abs(to_images.numpy()).max() > 0
    assert all(np.abs(np.asarray(gradient)).max() > 0 for gradient in to_weights)


def test_gradients_at_layers_are_each_images_own(built, images):
    model = built["resnet"]
    net, x = load(model), images(model, 5)
    whole = net.gradients(x, ["stem", "fc"], batch_size=2)
    assert whole["stem"].shape == (5, 8, 16, 16)
    np.testing.assert_allclose(whole["fc"], 1.0)  # of the sum of the logits at the logits
    alone = net.gradients(x[3:4], ["stem"])["stem"]
    np.testing.assert_allclose(whole["stem"][3:4], alone, atol=1e-5)


def test_weight_gradients_are_the_slope_of_the_loss(built, images):
    model = built["lenet5"]
    net, x = load(model), images(model, 30)
    y = np.random.default_rng(0).integers(0, 10, 30)
    gradient = net.weight_gradients(x, y, ["conv2.weight", "fc1.weight"], batch_size=8)

    def loss(weights):
        logits = model.with_weights(weights).predict(x).astype(np.float64)
        return (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(30), y]).sum()

    for name, slope in gradient.items():
        place = np.unravel_index(np.abs(slope).argmax(), slope.shape)
        up, down = model.weights[name].copy(), model.weights[name].copy()
        up[place] += 1e-2
        down[place] -= 1e-2
        measured = (loss({name: up}) - loss({name: down})) / 2e-2
        assert slope[place] == pytest.approx(measured, rel=0.05)


def test_prefix_and_suffix_are_the_whole(built, images):
    model = built["densenet"]
    net, x = load(model), images(model)
    kept = net.prefix("transition0.conv", x, batch_size=6)
    assert kept.shape == (20, 16, 16, 8)
    logits = net.suffix("transition0.conv")(kept, training=False).numpy()
    np.testing.assert_allclose(logits, model.predict(x), atol=1e-4)


def test_a_suffix_inside_a_block_is_refused(built):
    with pytest.raises(ModelfixError, match=r"do not depend on .block1\.conv1"):
        load(built["resnet"]).suffix("block1.conv1")


def test_training_lowers_the_loss_and_moves_batchnorm_statistics(built, images):
    model = built["vgg"]
    net, x = load(model), images(model, 64)
    y = np.random.default_rng(0).integers(0, 5, 64)
    import keras

    net.keras.compile(
        keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    losses = net.keras.fit(x, y, batch_size=32, epochs=6, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < losses[0]
    changed = net.weights()
    assert set(changed) == set(model.weights)
    fixed = model.with_weights(changed)
    np.testing.assert_allclose(predict(net, x), fixed.predict(x), atol=1e-4)


def test_training_is_reproducible_without_a_global_seed(built, images):
    import keras

    model = built["vgg"]
    x, y = images(model, 32), np.random.default_rng(0).integers(0, 5, 32)

    def trained():
        net = load(model)
        net.keras.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        net.keras.fit(x, y, batch_size=16, epochs=2, verbose=0, shuffle=False)
        return net.weights()

    first, second = trained(), trained()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
