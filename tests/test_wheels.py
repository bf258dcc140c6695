"""What is published: every member, in one version, with its licence, and extras that can be had."""

import re
import subprocess
import tomllib
import zipfile
from email.parser import Parser

import pytest
from modelfix import __version__
from modelfix.catalogue import Catalogue
from modelfix.environments import clean_environ, find_uv
from modelfix.workspace import Workspace, bounds
from modelfix_core import Category, Framework

WORKSPACE = Workspace.find()
EXTRAS = {
    "model": (Category.MODEL, {Framework.TORCH, Framework.NONE}),
    "layer": (Category.LAYER, {Framework.TORCH, Framework.NONE}),
    "neuron-torch": (Category.NEURON, {Framework.TORCH, Framework.NONE}),
    "neuron-tensorflow": (Category.NEURON, {Framework.TENSORFLOW}),
}


@pytest.fixture(scope="module")
def wheels(root, tmp_path_factory):
    """The wheel of every member, by distribution, opened."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [find_uv(), "build", "--quiet", "--all-packages", "--wheel", "--out-dir", str(folder)],
        cwd=root, env=clean_environ(), check=True,
    )  # fmt: skip
    found = {}
    for path in folder.glob("*.whl"):
        wheel = zipfile.ZipFile(path)
        (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(name).decode())
        found[metadata["Name"]] = (wheel, metadata)
    return found


def test_every_member_has_a_wheel_with_its_licence(root, wheels):
    assert wheels.keys() == {member.distribution for member in WORKSPACE.members}
    licence = (root / "LICENSE").read_bytes()
    for name, (wheel, metadata) in wheels.items():
        (inside,) = [n for n in wheel.namelist() if n.endswith(".dist-info/licenses/LICENSE")]
        assert wheel.read(inside) == licence, name
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata.get_payload().startswith(f"# {name}"), "the README is the description"


def test_members_have_one_version_and_the_changelog_knows_it(root, wheels):
    for name, (_, metadata) in wheels.items():
        assert metadata["Version"] == __version__, name
    newest = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.M)
    assert newest.group(1) == __version__


def test_wheels_hold_code_and_data_and_no_tests(wheels):
    for name, (wheel, _) in wheels.items():
        tops = {entry.split("/")[0] for entry in wheel.namelist()}
        package = name.replace("-", "_")
        assert tops == {package, f"{package}-{__version__}.dist-info"}, name
        assert not [entry for entry in wheel.namelist() if entry.endswith((".pyc", ".so"))]
    command, _ = wheels["modelfix"]
    assert "modelfix/catalogue.json" in command.namelist()
    assert "modelfix/templates/approach/copier.yml" in command.namelist()


def test_an_extra_names_the_approaches_of_one_category_and_no_two_frameworks(root):
    with (root / "packages" / "study" / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["optional-dependencies"]
    infos = Catalogue().infos
    for extra, (category, frameworks) in EXTRAS.items():
        expected = {
            f"modelfix-{member.name}{bounds(__version__)}"
            for member in WORKSPACE.approaches
            if infos[member.name].category == category
            and infos[member.name].framework in frameworks
        }
        assert set(stated[extra]) == expected, extra
