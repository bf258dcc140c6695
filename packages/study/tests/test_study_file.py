"""Study files: what they may say, what is refused, and that they stay data."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from modelfix.catalogue import Catalogue
from modelfix.cells import Home
from modelfix.cli import main
from modelfix.grid.study import dump, load
from modelfix_core import ModelfixError
from modelfix_stats.study import ABBREVIATIONS, SUBJECTS

ROOT = Path(__file__).resolve().parents[3]
GOOD = {"name": "mine", "subjects": ["fashion-mini-lenet5"], "entrants": ["arachne"]}


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a study file of this text or these entries."""

    def read(content):
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (tmp_path / "s.yaml").write_text(text)
        return load(tmp_path / "s.yaml", Home(tmp_path))

    return read


def test_names_are_resolved_and_the_stored_copy_is_the_same_study(read):
    study = read({**GOOD, "entrants": ["AR", {"approach": "IR", "config": {"iterations": 5}}]})
    assert [entrant.approach for entrant in study.entrants] == ["arachne", "i-repair"]
    assert study.entrants[1].name.startswith("i-repair-")
    assert read(dump(study)) == study


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"repetition": 3}, "repetition: there is no such entry; did you mean repetitions."),
        ({"limits": {"second": 3}}, "limits.second: there is no such entry; did you mean seconds."),
        ({"entrants": [{"approach": "AR", "presett": "x"}]}, "did you mean preset."),
        ({"subjects": ["mnist-lenet"]}, "no subject 'mnist-lenet'; did you mean mnist-lenet5"),
        ({"entrants": ["arachn"]}, "there is no approach 'arachn'; did you mean arachne"),
        ({"entrants": [{"approach": "AR", "preset": "p"}]}, "arachne: has no preset 'p'"),
        ({"entrants": [{"approach": "AR", "config": {"x": 1}}]}, "arachne: has no option 'x'"),
        ({"entrants": ["AR", "arachne"]}, "the entrant arachne is named twice"),
        ({"repetitions": 0}, "repetitions: input should be greater than or equal to 1."),
        ({"device": "tpu"}, "device: "),
        ({"name": "../../tmp/x"}, "'../../tmp/x' cannot be the name of a folder"),
        ({"name": "/etc"}, "'/etc' cannot be the name of a folder"),
        ({"subjects": [".."]}, "'..' cannot be the name of a folder"),
        ({"subjects": ["a/../../b"]}, "cannot be the name of a folder"),
        ({"entrants": ["../arachne"]}, "cannot be the name of a folder"),
        ({"entrants": [{"approach": "AR", "preset": "../x"}]}, "cannot be the name of a folder"),
    ],
)
def test_mistakes_are_one_sentence(read, changes, sentence):
    with pytest.raises(ModelfixError) as caught:
        read({**GOOD, **changes})
    assert sentence in str(caught.value)
    assert "s.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("!!python/object/apply:os.system ['touch {spy}']", "no valid study file"),
        ("name: !!python/name:os.system", "no valid study file"),
        ("name: !!python/object/new:subprocess.Popen [['touch', '{spy}']]", "no valid study file"),
        (LAUGHS, "the reference *a is not allowed in line 2"),
        ("<<: {name: x}\nname: y\nname: z", "'name' stands there twice in line 3"),
        ("[" * 20_000, "nested too deeply"),
        ("name: \0", "no valid study file"),
        ("name: [", "no valid study file"),
        ("- a", "no study file; expected entries name,"),
        ("", "no study file"),
        ("x: " + "y" * 1024**2, "larger than 1 MiB"),
        ("name: !!int " + "9" * 5000, "no valid study file"),
    ],
)
def test_hostile_files_are_refused_and_run_nothing(read, text, sentence, tmp_path):
    spy = tmp_path / "spy"
    with pytest.raises(ModelfixError) as caught:
        read(text.replace("{spy}", str(spy)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not spy.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_missing_and_binary_files(read, tmp_path):
    with pytest.raises(ModelfixError, match="cannot be read"):
        load(tmp_path / "none.yaml", Home(tmp_path))
    (tmp_path / "b.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(ModelfixError, match="no valid study file"):
        load(tmp_path / "b.yaml", Home(tmp_path))


def test_shipped_studies(tmp_path):
    home = Home(tmp_path)
    smoke, mnist, icse = (
        load(ROOT / "studies" / f"{name}.yaml", home) for name in ("smoke", "mnist", "icse26")
    )
    infos = Catalogue().infos
    assert len({infos[entrant.approach].framework for entrant in smoke.entrants}) == 2
    for study in (mnist, icse):
        assert {entrant.approach for entrant in study.entrants} == set(ABBREVIATIONS)
        assert study.repetitions == 3
    assert set(icse.subjects) == set(SUBJECTS)
    assert {entrant.preset for entrant in icse.entrants} == {"study"}


def test_check_says_what_applies_and_how_long_it_takes_before_anything_is_there(
    tmp_path, monkeypatch, capsys
):
    import json

    arguments = ["study", "check", str(ROOT / "studies" / "icse26.yaml"), "--home", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["modelfix", *arguments, "--json"])
    assert main() == 0
    found = SimpleNamespace(**json.loads(capsys.readouterr().out))
    assert sum(row["cells"] for row in found.rows) == 16 * 5 * 3
    rows = {(row["subject"], row["entrant"]): row for row in found.rows}
    assert "dense" in rows["cifar10s-resnet18", "reassure-study"]["unfit"]
    apricot = rows["mnist-lenet5", "apricot-study"]
    assert (apricot["seconds"], apricot["source"]) == (49560, "the study's table 6, MNIST")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["modelfix", *arguments])
    assert main() == 0
    out = capsys.readouterr().out
    assert "240 cells, 0 complete" in out
    assert "UNADAPTABLE: " in out
