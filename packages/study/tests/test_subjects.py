"""`modelfix subjects`: the state of every subject, as a table and as JSON."""

import json

import pytest
from modelfix.cli import app
from modelfix_core.subjects import CATALOGUE
from modelfix_testing import tiny_subject
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.delenv("MODELFIX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def listed(home, *options: str) -> str:
    result = CliRunner().invoke(app, ["subjects", "--home", str(home), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_has_the_state_of_all_and_ones_own(tmp_path):
    tiny_subject(tmp_path / "subjects")
    rows = {row["name"]: row for row in json.loads(listed(tmp_path, "--json"))}
    assert rows.keys() == {*CATALOGUE, "tiny-lenet5"}
    assert rows["tiny-lenet5"]["state"] == "ready"
    assert rows["fashion-mini-lenet5"]["state"] == "can be prepared"
    assert rows["cifar10-vgg16"]["state"] == "needs download"
    assert rows["utkface-facenet"]["state"] == "needs manual download"
    assert "UTKFace.tar.gz" in rows["utkface-facenet"]["how"]


def test_the_table_says_what_to_fetch(tmp_path):
    text = listed(tmp_path)
    assert all(name in text for name in CATALOGUE)
    assert "ILSVRC2012_img_train.tar" in text
    assert "Prepared subjects are kept in" in text
