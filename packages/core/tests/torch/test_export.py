import numpy as np
import pytest
import torch
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.torch import export, predict
from torch import nn


def test_batchnorm_and_metadata_are_kept(network_of):
    module, model = network_of("resnet8")
    kept = sum(node.op_type == "BatchNormalization" for node in model.proto().graph.node)
    assert kept == sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    assert model.labels == [f"c{k}" for k in range(10)]
    assert model.metadata["modelfix.origin"] == "test"


def test_weights_are_bit_equal(network):
    module, model = network
    state = module.state_dict()
    for name, array in model.weights.items():
        assert array.tobytes() == state[name].numpy().tobytes()


def test_equal_weights_do_not_share_one_initializer():
    """Fresh BatchNorms have equal values; the exporter stores these once."""
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        *(nn.Flatten(), nn.Linear(4 * 4 * 4, 3)),
    ).eval()
    model = export(module, (3, 8, 8))
    assert {"1.running_mean", "3.running_mean", "1.weight", "3.weight"} <= set(model.weights)
    changed = model.with_weights({"1.weight": np.full(4, 7)})
    np.testing.assert_array_equal(changed.weights["3.weight"], np.ones(4))


def test_saved_model_loads_and_agrees(network_of, images, tmp_path):
    module, model = network_of("vgg")
    model.save(tmp_path / "model.onnx")
    x = images(model, 5)
    loaded = Model.load(tmp_path / "model.onnx")
    np.testing.assert_allclose(loaded.predict(x), predict(module, x), atol=1e-4)


def test_training_mode_is_refused():
    with pytest.raises(ModelfixError, match="eval"):
        export(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))


def test_what_cannot_be_exported_is_said():
    class Sorted(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x.flatten(2))

    with pytest.raises(ModelfixError, match="cannot be exported"):
        export(Sorted().eval(), (3, 4, 4))


def test_a_module_with_a_traced_decision_disagrees():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.fc(x.flatten(1)) * self.calls

    with pytest.raises(ModelfixError, match="disagree"):
        export(Decides().eval(), (1, 2, 2))


def test_a_dense_layer_without_bias_is_a_layer():
    model = export(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).eval(), (1, 2, 2))
    assert [(layer.name, layer.kind) for layer in model.layers()] == [("1", "dense")]
    assert [node.op_type for node in model.proto().graph.node] == ["Flatten", "Gemm"]
