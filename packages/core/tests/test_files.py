import errno
import os
from pathlib import Path

import pytest
from modelfix_core import ModelfixError
from modelfix_core.files import atomic_path, replace_folder, write_text


def test_failure_leaves_the_old_content_and_no_debris(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def half_written():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        half_written()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written"), (errno.EROFS, "cannot")],
)
def test_refusals_of_the_system_are_one_sentence(tmp_path, code, message):
    def refused():
        with atomic_path(tmp_path / "a.txt"):
            raise OSError(code, os.strerror(code))

    with pytest.raises(ModelfixError, match=rf"a\.txt.*{message}"):
        refused()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path):
    def full():
        with atomic_path(tmp_path / "a.txt"), Path("/dev/full").open("w") as device:
            device.write("x" * 10_000)

    with pytest.raises(ModelfixError, match="disk is full"):
        full()


def test_folder_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelfixError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "y")


def test_folders_are_replaced_whole(tmp_path):
    for name, content in (("new", "1"), ("old", "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(content)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "f").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
