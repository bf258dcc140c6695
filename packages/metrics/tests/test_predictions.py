import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from modelfix_core.errors import ModelfixError
from modelfix_metrics import Predictions, metrics_from_predictions
from modelfix_metrics.predictions import COLUMNS, inputs_hash


@pytest.fixture
def predictions(linear, random_split):
    rng = np.random.default_rng(0)
    old, new = (linear(rng.normal(size=(3, 4))) for _ in range(2))
    return Predictions.of(old, new, random_split(groups=2), classes=["a", "b", "c"])


def test_a_file_gives_back_what_was_saved(predictions, tmp_path):
    path = tmp_path / "predictions.parquet"
    predictions.save(path)
    again = Predictions.load(path)
    for name in ("ids", "y", "group", "before", "after"):
        assert np.array_equal(getattr(again, name), getattr(predictions, name))
    for name in ("original", "fixed", "split", "classes", "inputs"):
        assert getattr(again, name) == getattr(predictions, name)
    schema = pq.read_schema(path)
    assert tuple(schema.names) == COLUMNS
    assert schema.field("logits_after").type == pa.list_(pa.float32(), 3)
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.parquet"]


def test_values_are_the_same_from_arrays_table_and_file(predictions, tmp_path):
    path = tmp_path / "predictions.parquet"
    predictions.save(path)
    expected = [value.as_dict() for value in metrics_from_predictions(predictions)]
    for source in (predictions.to_table(), path, str(path)):
        assert [value.as_dict() for value in metrics_from_predictions(source)] == expected


def test_a_slice_of_a_table_is_refused_by_its_hash(predictions):
    with pytest.raises(ModelfixError, match="different inputs"):
        Predictions.from_table(predictions.to_table().slice(1))
    shuffled = predictions.to_table().take(np.arange(len(predictions))[::-1].copy())
    with pytest.raises(ModelfixError, match="different inputs"):
        Predictions.from_table(shuffled)


def test_other_inputs_are_refused_by_hash(predictions, random_split):
    other = random_split(seed=1)
    with pytest.raises(ModelfixError, match="those of a friend are about different inputs"):
        predictions.require_same_inputs(inputs_hash(other.ids, other.y), "those of a friend")
    predictions.require_same_inputs(predictions.inputs, "themselves")


def test_groups_may_be_absent_but_not_partly(predictions, linear, random_split):
    model = linear(np.eye(3, 4))
    table = Predictions.of(model, model, random_split()).to_table()
    assert table["group"].null_count == len(table)
    assert Predictions.from_table(table).group is None
    column = pa.array([None, *predictions.group[1:]], pa.int64())
    partly = predictions.to_table().set_column(2, "group", column)
    with pytest.raises(ModelfixError, match="1 of 60 inputs have no group"):
        Predictions.from_table(partly)


def test_damaged_files_are_named(tmp_path, predictions):
    path = tmp_path / "predictions.parquet"
    with pytest.raises(ModelfixError, match=r"predictions\.parquet: is missing"):
        Predictions.load(path)
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(ModelfixError, match=r"predictions\.parquet: is not a readable"):
        Predictions.load(path)
    pq.write_table(predictions.to_table().drop_columns("label"), path)
    with pytest.raises(ModelfixError, match="is not a table of predictions"):
        Predictions.load(path)


def test_models_and_classes_must_fit(linear, random_split):
    three, two = linear(np.eye(3, 4)), linear(np.eye(2, 4))
    with pytest.raises(ModelfixError, match="predicts 2 classes where 3"):
        Predictions.of(three, two, random_split())
    with pytest.raises(ModelfixError, match="predicts 3 classes where 2"):
        Predictions.of(three, three, random_split(), classes=["a", "b"])
    with pytest.raises(ModelfixError, match="empty"):
        Predictions.of(three, three, random_split().select(slice(0, 0)))
