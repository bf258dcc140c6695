"""The tools of the documentation: what counts as the same output, and the pages of approaches."""

import importlib.util

import pytest
from modelfix.catalogue import Catalogue


def tool(root, name):
    spec = importlib.util.spec_from_file_location(name, root / "docs" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def examples(root):
    return tool(root, "examples")


@pytest.fixture(scope="module")
def matrix(root):
    return tool(root, "matrix")


TABLE = [
    "outcome  accuracy  seconds",
    "FIXED      84.07%     12.3",
    "",
    "done in 3m12s, ab12cd34ef",
]


def test_times_hashes_and_widths_are_not_compared(examples):
    other = [
        "outcome  accuracy   seconds",
        "FIXED      84.07%    1234.5",
        "",
        "done in 4s, 99aa77bb55",
    ]
    assert examples.alike(TABLE, other)


@pytest.mark.parametrize(
    ("position", "line"),
    [
        (1, "FIXED      64.07%     12.3"),
        (1, "FAILURE    84.07%     12.3"),
        (0, "outcome  accuracy  RR  seconds"),
        (3, "done in 3m12s"),
    ],
)
def test_what_else_differs_is_found(examples, position, line):
    other = [*TABLE]
    other[position] = line
    assert not examples.alike(TABLE, other)
    assert not examples.alike(TABLE, TABLE[:-1])


def test_numbers_may_differ_a_little(examples):
    assert examples.alike(["84.07% of 1,500"], ["85.33% of 1,498"])


def test_a_block_of_a_page_is_commands_and_their_output(examples):
    comments = "<!-- environment: metrics -->\n<!-- varies -->\n\n"
    text = comments + "```console\n$ a \\\n>   b\nout\n$ c\n```\n"
    (block,) = examples.blocks(text)
    first, second = examples.commands(block.token.content)
    assert (block.environment, block.varies) == ("metrics", True)
    assert (first.script, first.shown) == ("a \\\n  b", ["out"])
    assert (second.script, second.shown) == ("c", [])
    assert text.splitlines()[block.lines][0] == "$ a \\"


def test_pages_hold_commands(examples):
    for page in examples.PAGES:
        assert any(b.token.info == "console" for b in examples.blocks(page.read_text())), page


def test_the_page_of_an_approach_has_its_metadata_options_and_readme(matrix):
    catalogue = Catalogue()
    pages = matrix.pages(
        {f"approaches/{name}.md": "# modelfix-x\n\nREADME of it\n" for name in catalogue.infos}
    )
    for name, info in catalogue.infos.items():
        page = pages[f"approaches/{name}.md"]
        assert page.startswith(f"# {info.title}\n")
        assert info.paper in page
        assert "README of it" in page
        assert "modelfix-x" not in page
        approach = catalogue.registry.load(name)
        assert all(f"| `{option}` |" in page for option in approach.Config.model_fields)
        assert all(f"`{preset}`" in page for preset in approach.presets)
        assert f"[{info.title}]({name}.md)" in pages["approaches/index.md"]
