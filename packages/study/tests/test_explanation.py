import json
import shutil

import numpy as np
import pytest
from modelfix import tables
from modelfix.cli import main
from modelfix.explanation import Explanation
from modelfix.pictures import CELLS, SHOWN, Group, Tile, _pooled, contact_sheet, draw_all
from modelfix_core import ModelfixError
from PIL import Image


def test_blame_and_change_are_those_of_the_models(make_record):
    found = Explanation(make_record())
    (part,) = found.blamed(10)
    weight = found.original.weights[found.original.layer(part.layer).weight]
    after = found.fixed.weights[found.original.layer(part.layer).weight]
    assert (part.rank, part.index, part.score) == (1, "6, 3", 2.5)
    assert (part.before, part.after) == (weight[6, 3], after[6, 3])
    (change,) = found.changes
    assert (change.layer, change.changed) == (part.layer, 1)
    assert change.largest == pytest.approx(abs(after[6, 3] - weight[6, 3]))
    bias = found.original.weights[found.original.layer(part.layer).bias]
    norm = np.sqrt((weight**2).sum() + (bias**2).sum())
    assert change.relative == pytest.approx(change.largest / norm, rel=1e-5)
    assert found.new_nodes == 0


def test_everything_is_printed_and_drawn(make_record, capsys):
    folder = make_record()
    found = Explanation(folder)
    drawn = draw_all(found, folder / "explanation")
    tables.explanation(found, 2, drawn)
    out = capsys.readouterr().out
    for text in ("Blamed weights: 1", "6, 3", "Changed layers", "Failures that look alike"):
        assert text in out
    assert "(3 rows, the first 2)" in out
    assert [path.name for path in drawn] == ["blame.png", "inputs.png", "clusters.png"]
    for path in drawn:
        assert str(path) in out
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, "an empty picture"


@pytest.mark.parametrize("kind", ["neuron", "layer"])
def test_neurons_and_layers(make_record, capsys, kind):
    folder = make_record(kind=kind, evaluated=False)
    found = Explanation(folder)
    drawn = draw_all(found, folder / "explanation")
    tables.explanation(found, 5, drawn)
    assert f"Blamed {kind}s: 1" in capsys.readouterr().out
    assert [path.name for path in drawn] == ["blame.png", "clusters.png"]  # nothing was evaluated


def test_without_a_fixed_model(make_record, capsys):
    folder = make_record(unadaptable=True)
    found = Explanation(folder)
    tables.explanation(found, 5, draw_all(found, folder / "explanation"))
    out = capsys.readouterr().out
    assert "UNADAPTABLE" in out
    assert "it has no square layer" in out
    assert "no fixed model" in out


def test_command_as_json(make_record, capsys, monkeypatch):
    folder = make_record()
    monkeypatch.setattr("sys.argv", ["modelfix", "explain", str(folder), "--json", "--no-pictures"])
    assert main() == 0
    content = json.loads(capsys.readouterr().out)
    assert content["blamed"][0]["index"] == "6, 3"
    assert content["evidence"][0]["rows"][0]["cluster"] == 0
    assert content["pictures"] == []


def test_a_moved_home_is_found(make_record, tmp_path):
    folder = make_record()
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "home", moved)
    again = moved / folder.relative_to(tmp_path / "home")
    assert Explanation(again).subject.folder.parent == moved / "subjects"


def test_damage_is_one_sentence(make_record):
    folder = make_record()
    (folder / "localisation.parquet").write_bytes(b"no")
    with pytest.raises(ModelfixError, match=r"localisation\.parquet: is damaged"):
        Explanation(folder)
    with pytest.raises(ModelfixError, match=r"record\.json: is missing"):
        Explanation(folder.parent)


def test_contact_sheet_takes_colour_grey_and_floats(tmp_path):
    grey = Tile(np.full((1, 4, 4), 200, np.uint8), ["a grey one"])
    colour = Tile(np.full((3, 5, 4), 0.5, np.float32), ["a colour", "with two lines"])
    path = tmp_path / "sheet.png"
    contact_sheet(
        [Group("many", [grey] * (SHOWN + 3)), Group("few", [colour]), Group("none", [])], path
    )
    with Image.open(path) as image:
        assert image.width > SHOWN * 100


def test_pooling_keeps_the_largest_value():
    matrix = np.zeros((1000, 3))
    matrix[517, 1] = 7
    pooled = _pooled(matrix)
    assert pooled.shape == (CELLS, 3)
    assert pooled.max() == 7
    assert (pooled > 0).sum() == 1
