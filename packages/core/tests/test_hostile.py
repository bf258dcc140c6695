"""Files of strangers: one clear sentence, no code is run, nothing is read or written elsewhere."""

import contextlib
import io
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelfix_core import Dataset, Model, ModelfixError, foreign
from modelfix_core.approach import Outcome
from modelfix_core.job import Job
from modelfix_core.record import Entrant, Record
from modelfix_core.subject import SubjectCard
from modelfix_core.subjects.own import prepare_own
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SHAPE = (1, 4, 4)


def refused(read, *arguments, **options):
    """Return the one sentence with which `read` refuses."""
    with pytest.raises(ModelfixError) as error:
        read(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


class Trap:
    """Pickled, it leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def trap(tmp_path):
    """An object that betrays unpickling; checked when the test ends."""
    sprung = tmp_path / "sprung"
    yield Trap(sprung)
    assert not sprung.exists(), "something was unpickled"


@pytest.fixture
def proto():
    """A dense layer on images of 4 x 4 pixels."""
    rng = np.random.default_rng(0)
    weights = {"weight": rng.normal(size=(3, 16)), "bias": np.zeros(3)}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"], "f"),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["z"], "g", transB=1),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


@pytest.fixture
def images(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (90, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(90) % 3)
    return tmp_path / "images.npz"


# -- models ----------------------------------------------------------------------------------------

# Loads every file of a folder; a crash of a library would take this process along, not the tests.
LOADING = """
import resource, sys
from pathlib import Path
from modelfix_core import Model, ModelfixError
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        Model.load(path)
    except ModelfixError as error:
        assert "\\n" not in str(error), path
"""


def test_damaged_models(proto, tmp_path):
    """Flipped, cut, doubled and spliced bytes; fixed seeds, so that a failure comes back."""
    whole = np.frombuffer(proto.SerializeToString(), np.uint8)
    (tmp_path / "models").mkdir()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        content = whole.copy()
        start, stop = np.sort(rng.integers(0, len(content), 2))
        match seed % 4:
            case 0:
                places = rng.integers(0, len(content), rng.integers(1, 8))
                content[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
            case 1:
                content = content[:stop]
            case 2:
                content = np.concatenate([content[:stop], content[start:]])
            case 3:
                content = np.delete(content, slice(start, min(stop, start + 40)))
        (tmp_path / "models" / f"{seed:03}.onnx").write_bytes(content.tobytes())
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path / "models")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=400))
def test_what_is_no_model(tmp_path, content):
    path = tmp_path / "any.onnx"
    path.write_bytes(content)
    for read in (Model.load, foreign.read_onnx):
        assert str(path) in refused(read, path)


def outside(name, location):
    """Return a tensor whose values lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_constant_that_refers_to_another_folder(proto, tmp_path, location):
    """Not only initializers have external data."""
    (tmp_path / "secret").write_bytes(np.ones(3, np.float32).tobytes())
    (tmp_path / "inner").mkdir()
    end = proto.graph.output[0].name
    value = outside("value", location)
    proto.graph.node.append(helper.make_node("Constant", [], ["taken"], "c", value=value))
    proto.graph.node.append(helper.make_node("Add", [end, "taken"], ["sum"], "a"))
    proto.graph.output[0].name = "sum"
    path = tmp_path / "inner" / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    for read in (Model.load, foreign.read_onnx):
        assert "outside the model's folder" in refused(read, path)


def test_code_in_an_operator(proto, tmp_path):
    """Operators of other domains are where runtimes keep code."""
    proto.graph.node[0].domain = "ai.onnx.contrib"
    proto.graph.node[0].op_type = "PyOp"
    proto.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "PyOp" in refused(Model.load, path)


def test_weights_that_claim_to_be_huge(proto, tmp_path):
    for tensor in proto.graph.initializer:
        tensor.dims[0] = 2**40
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    refused(Model.load, path)


@pytest.mark.parametrize("name", ["m.pkl", "m.pickle", "m.joblib"])
def test_pickled_models(name, trap, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(trap))
    assert "nothing is unpickled here" in refused(foreign.kind_of, tmp_path / name)
    (tmp_path / "m.onnx").write_bytes(pickle.dumps(trap))
    refused(Model.load, tmp_path / "m.onnx")


def test_labels_in_a_model_that_are_no_list(proto, tmp_path, images):
    """Metadata are a stranger's too."""
    for text in ("{", "3", '{"a": 1}', "[1, 2, 3]", '["a", "a", "b"]'):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        changed.metadata_props.add(key="modelfix.labels", value=text)
        path = tmp_path / "m.onnx"
        path.write_bytes(changed.SerializeToString())
        assert "m.onnx" in refused(prepare_own, "mine", path, images, tmp_path / "root")


# -- data ------------------------------------------------------------------------------------------


def npz(path, **members):
    """Write an NPZ by hand: members are arrays, or bytes as they are."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if not isinstance(content, bytes):
                stream = io.BytesIO()
                np.save(stream, content, allow_pickle=True)
                content = stream.getvalue()
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("where", ["x", "y", "group", "split", "classes"])
def test_pickled_objects_in_an_npz(where, trap, tmp_path):
    y = np.arange(60) % 3
    arrays = {"x": np.zeros((60, 4, 4), np.uint8), "y": y, "group": y % 2, where: [trap] * 60}
    path = npz(tmp_path / "d.npz", **{k: np.array(v, dtype=None) for k, v in arrays.items()})
    assert "pickled objects" in refused(Dataset.whole, path)


def test_a_pickle_called_npy_or_npz(trap, tmp_path, images):
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(trap))
    labels = tmp_path / "y.npy"
    np.save(labels, np.arange(60) % 3)
    refused(Dataset.whole, tmp_path / "x.npz")
    refused(Dataset.whole, tmp_path / "x.npy", labels=labels)
    np.save(tmp_path / "good.npy", np.zeros((60, 4, 4), np.uint8))
    refused(Dataset.whole, tmp_path / "good.npy", labels=tmp_path / "x.npy")


def test_names_in_an_archive_lead_nowhere(tmp_path):
    """Members called ../evil are read as arrays at most and never unpacked."""
    (tmp_path / "inner").mkdir()
    y = np.arange(60) % 3
    members = {"x": np.zeros((60, 4, 4), np.uint8), "y": y, "../evil": y, "/tmp/evil": y}
    path = npz(tmp_path / "inner" / "d.npz", **members)
    before = sorted(tmp_path.rglob("*"))
    with contextlib.suppress(ModelfixError):
        Dataset.whole(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (60, 4, -4), }",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 4, 4), }",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (60, 4000000, 4000000), }",
        b"__import__('os').system('touch sprung')",
        b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (60,), }",
        b"(" * 5000,
    ],
)
def test_headers_of_arrays(header, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    length = len(header).to_bytes(2, "little")
    x = b"\x93NUMPY\x01\x00" + length + header + bytes(960)
    refused(Dataset.whole, npz(tmp_path / "d.npz", x=x, y=np.arange(60) % 3))
    assert not (tmp_path / "sprung").exists()


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.sampled_from(["npz", "npy", "parquet", "csv"]))
def test_what_are_no_data(tmp_path, content, kind):
    np.save(tmp_path / "x.npy", np.zeros((6, 4, 4), np.uint8))
    path = tmp_path / f"labels.{kind}"
    path.write_bytes(content)
    if kind in ("npy", "csv"):
        refused(Dataset.whole, tmp_path / "x.npy", labels=path)
    else:
        refused(Dataset.whole, path)


def test_images_outside_of_the_data_are_not_read(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    inner = tmp_path / "inner"
    inner.mkdir()
    for where in ("../secret.png", str(tmp_path / "secret.png")):
        table = pa.table({"image": [{"bytes": None, "path": where}] * 3, "label": [0, 1, 2]})
        pq.write_table(table, inner / "d.parquet")
        assert "outside" in refused(Dataset.whole, inner / "d.parquet")
        (tmp_path / "labels.csv").write_text(f"file,label\n{where},0\n")
        assert "outside" in refused(Dataset.whole, inner, labels=tmp_path / "labels.csv")


def test_bombs(tmp_path):
    """A small PNG that would be a gigantic image is refused before it is decoded."""
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    Image.new("1", (20_000, 20_000)).save(folder / "0.png")
    assert "0.png" in refused(Dataset.whole, tmp_path / "images")


# -- subjects, jobs, records -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a/b", "..", ".", "", "a\nb", "-rf"])
def test_names_of_subjects_stay_in_the_folder(name, proto, images, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(proto.SerializeToString())
    before = sorted(tmp_path.rglob("*"))
    assert "cannot be the name" in refused(prepare_own, name, model, images, tmp_path / "root")
    assert sorted(tmp_path.rglob("*")) == before


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3)
    ),
    max_leaves=8,
)
KEYS = (
    "cell",
    "entrant",
    "subject",
    "outcome",
    "repetition",
    "format",
    "name",
    "approach",
    "record",
)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(KEYS), anything) | anything)
def test_json_of_any_content(tmp_path, content):
    for file, read in (
        ("record.json", lambda: Record.load(tmp_path)),
        ("subject.json", lambda: SubjectCard.load(tmp_path)),
        ("job.json", lambda: Job.load(tmp_path / "job.json")),
    ):
        (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
        assert file in refused(read)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"cell": ' + b"9" * 10_000 + b"}", b"null"]
)
def test_json_that_is_none(content, tmp_path):
    for file, read in (
        ("record.json", lambda: Record.load(tmp_path)),
        ("subject.json", lambda: SubjectCard.load(tmp_path)),
        ("job.json", lambda: Job.load(tmp_path / "job.json")),
    ):
        (tmp_path / file).write_bytes(content)
        assert file in refused(read)


@pytest.mark.parametrize("subject", ["../elsewhere", "/etc", "a/b", "", ".", "..", "a\n"])
def test_record_that_names_a_folder_elsewhere(tmp_path, subject):
    entrant = Entrant(
        approach="arachne", abbreviation="AR", category="neuron", preset="default", config={},
        version="0",
    )  # fmt: skip
    record = Record(
        cell="0", entrant=entrant, subject="mine", repetition=1, seed=0, outcome=Outcome.FAILURE
    )
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    (tmp_path / "record.json").write_text(
        record.model_dump_json().replace('"mine"', json.dumps(subject))
    )
    with pytest.raises(ModelfixError, match=r"is no record that this version reads \(subject"):
        Record.load(tmp_path)
