import numpy as np
from modelfix_core.checkpoint import read_checkpoint, write_checkpoint


def test_what_was_written_is_read_by_the_same_run_only(tmp_path):
    path = tmp_path / "run" / "state.npz"
    assert read_checkpoint(path, "mine") is None
    arrays = {"allow_pickle": np.arange(6.0).reshape(2, 3), "1.step": np.array(4)}
    write_checkpoint(path, "mine", {"epoch": 4, "values": [0.5, None]}, arrays)
    header, found = read_checkpoint(path, "mine")
    assert header == {"epoch": 4, "values": [0.5, None]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert read_checkpoint(path, "another") is None
    assert [p.name for p in path.parent.iterdir()] == ["state.npz"]
