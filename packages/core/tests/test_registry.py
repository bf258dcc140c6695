from importlib.metadata import EntryPoint

import pytest
from modelfix_core import ModelfixError
from modelfix_core.registry import GROUP, Registry


@pytest.fixture
def point(tmp_path, monkeypatch):
    """Return a function that makes an entry point of a module written for the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, body, module):
        (tmp_path / f"{module}.py").write_text(body)
        return EntryPoint(name, f"{module}:Found", GROUP)

    return make


GOOD = """
from modelfix_core import *
class Found(Approach):
    info = ApproachInfo(
        "good", "GD", "Good", Category.LAYER, Framework.NONE, "p", "s.", frozenset()
    )
    class Config(ApproachConfig):
        pass
    def check(self, task): ...
    def candidates(self, task): yield from ()
"""


def test_finds_by_name_and_abbreviation(point):
    registry = Registry([point("good", GOOD, "plugin_good")])
    assert registry.names() == ["good"]
    assert registry.load("good").info.title == "Good"
    assert registry.load("gd") is registry.load("good")


def test_misspelt_name_suggests(point):
    registry = Registry([point("arachne", GOOD, "plugin_suggest")])
    with pytest.raises(ModelfixError, match="did you mean arachne"):
        registry.load("arachnee")
    with pytest.raises(ModelfixError, match="there are arachne"):
        registry.load("xyz")


def test_name_clash_names_both(point):
    registry = Registry([point("good", GOOD, "plugin_one"), point("good", GOOD, "plugin_two")])
    with pytest.raises(ModelfixError, match=r"provided twice.*plugin_one.*and.*plugin_two"):
        registry.load("good")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('boom')", "boom"),
        ("import no_such_library", "no_such_library"),
        ("Found = 3", "not a subclass"),
        ("", "AttributeError"),
    ],
)
def test_broken_plugin_is_reported_and_harms_nobody(point, body, reason):
    name = f"plugin_broken_{abs(hash(body))}"
    registry = Registry([point("bad", body, name), point("good", GOOD, f"{name}_good")])
    infos, broken = registry.infos()
    assert [info.name for info in infos] == ["good"]
    assert [b.name for b in broken] == ["bad"]
    assert reason in broken[0].reason
    with pytest.raises(ModelfixError, match=reason):
        registry.load("bad")
