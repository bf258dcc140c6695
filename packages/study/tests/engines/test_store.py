"""Records and subjects by way of a store."""

import pytest
from modelfix.cells import Home
from modelfix.grid.store import Store
from modelfix_core import ModelfixError


def make_record(home, text):
    folder = home.record("s", "e", 1)
    (folder / "evidence").mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(text)
    (folder / "evidence" / "a.parquet").write_text(text)
    return folder


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_records_go_to_the_store_and_come_back_whole(tmp_path):
    here, there = Home(tmp_path / "here"), Home(tmp_path / "there")
    url = f"file://{tmp_path / 'store'}"
    record = make_record(here, "first")
    (record / "fixed.onnx").write_text("old")
    there_record = there.record("s", "e", 1)
    Store(url, there).pull_record(there_record)  # nothing yet
    assert not there_record.exists()
    Store(url, here).push_record(record)
    Store(url, there).pull_record(there_record)
    assert content(there_record) == content(record)
    (record / "fixed.onnx").unlink()
    make_record(here, "second")
    Store(url, here).push_record(record)
    Store(url, there).pull_record(there_record)
    assert content(there_record) == content(record)
    assert "fixed.onnx" not in content(there_record)


def test_a_record_whose_card_is_not_there_yet_is_none(tmp_path):
    home = Home(tmp_path / "here")
    half = tmp_path / "store" / "runs" / "s" / "e" / "1"
    half.mkdir(parents=True)
    (half / "fixed.onnx").write_text("half")
    Store(f"file://{tmp_path / 'store'}", home).pull_record(home.record("s", "e", 1))
    assert not home.record("s", "e", 1).exists()


def test_wrong_stores_are_one_sentence(tmp_path):
    with pytest.raises(ModelfixError, match="nonsense://x cannot be opened"):
        Store("nonsense://x", Home(tmp_path))
