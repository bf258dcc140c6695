"""The template of a new approach, and its place in a checkout."""

import ast
import shutil
import tomllib

import pytest
from modelfix import __version__
from modelfix.new_approach import EXTRA_OF, Bridge, Level, Plan, _plan, listed, render, settle
from modelfix.workspace import Workspace, bounds
from modelfix_core import ModelfixError

CHECKOUT = Workspace.find()
BOUNDS = bounds(__version__)


def plan(category=Level.NEURON, framework=Bridge.TORCH):
    return Plan("unheard-of", category, framework, "Unheard Of", "UHO")


@pytest.mark.parametrize("category", Level)
@pytest.mark.parametrize("framework", Bridge)
def test_the_template_is_complete(tmp_path, category, framework):
    folder = tmp_path / "made"
    render(plan(category, framework), folder)
    made = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    for part in ("approach", "localisation", "repair", "__init__"):
        assert f"src/modelfix_unheard_of/{part}.py" in made
    texts = {name: path.read_text() for name, path in made.items()}
    for name, text in texts.items():
        assert "{{" not in text, name
        assert max(map(len, text.splitlines())) <= 100 or name == "pyproject.toml", name
        if name.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["entry-points"]["modelfix.approaches"] == {
        "unheard-of": "modelfix_unheard_of:UnheardOf"
    }
    assert f"modelfix-core[{framework}]{BOUNDS}" in project["dependencies"]
    other = {"torch": "keras", "tensorflow": "torch"}[framework]
    assert f"modelfix_core.{other} " not in texts["src/modelfix_unheard_of/repair.py"]
    assert f"Category.{category.upper()}" in texts["src/modelfix_unheard_of/approach.py"]
    assert (folder / "LICENSE").read_text() == (CHECKOUT.root / "LICENSE").read_text()


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ModelfixError, match="exists already"):
        render(plan(), tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "abbreviation", "words"),
    [
        ("My", None, "lower-case letters"),
        ("../up", None, "cannot be the name"),
        ("core", None, "means something else"),
        ("arachne", None, "there is an approach 'arachne' already"),
        ("a-rachne", None, "Arachne has the abbreviation AR already"),
        ("new-one", "N{{1}}", "characters that a title cannot have"),
    ],
)
def test_names_that_cannot_be(name, abbreviation, words):
    with pytest.raises(ModelfixError, match=words):
        _plan(name, Level.NEURON, Bridge.TORCH, None, abbreviation)


@pytest.fixture
def root(tmp_path):
    """The files of this checkout that name approaches."""
    for pattern in ("pyproject.toml", "README.md", "packages/**/pyproject.toml"):
        for path in CHECKOUT.root.glob(pattern):
            target = tmp_path / path.relative_to(CHECKOUT.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


def test_its_place_in_a_checkout(root):
    folder = root / "packages" / "approaches-neuron" / "unheard-of"
    render(plan(), folder)
    settle(plan(), folder, root)
    (member,) = [m for m in Workspace(root).approaches if m.name == "unheard-of"]
    assert member.session == "fix-neuron-unheard-of"
    assert (root / "benchmarks" / "bench_unheard_of.py").exists()
    assert not (folder / "benchmarks").exists()

    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]
    assert contracts["uv"]["sources"]["modelfix-unheard-of"] == {"workspace": True}
    naming = [contracts["importlinter"]["root_packages"]]
    for contract in contracts["importlinter"]["contracts"]:
        naming += [value for value in contract.values() if isinstance(value, list)]
    for names in naming:
        assert ("modelfix_unheard_of" in names) == ("modelfix_apricot" in names)
        if "modelfix_apricot" in names:
            assert names == sorted(names)

    extras = tomllib.loads((root / "packages" / "study" / "pyproject.toml").read_text())
    naming = extras["project"]["optional-dependencies"]
    inside = {name for name, lines in naming.items() if f"modelfix-unheard-of{BOUNDS}" in lines}
    assert inside == {"neuron-torch"}
    row = "| [Unheard Of](packages/approaches-neuron/unheard-of) | UHO | neuron | PyTorch |"
    assert row in (root / "README.md").read_text()


def test_a_line_finds_its_place():
    text = 'x = [\n    "modelfix-b>=0.1,<0.2",\n    "modelfix-d>=0.1,<0.2",\n]\ny = 1'
    new = '    "modelfix-c>=0.1,<0.2",'
    assert listed(text, EXTRA_OF, {"modelfix-d"}, new) == text.replace(
        '\n    "modelfix-d', f'\n{new}\n    "modelfix-d'
    )
    assert listed(text, EXTRA_OF, {"modelfix-z"}, new) == text
