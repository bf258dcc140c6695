"""What MkDocs does not do by itself: generated pages, links into the repository, no outside host.

A hook of ``mkdocs.yml``. Pages of the site are

- the Markdown files of ``docs/``,
- README, CONTRIBUTING, CHANGELOG and the packages' READMEs, where they lie,
- a page per approach and the matrix, from the metadata (`matrix`),
- the reference, one page per module.

A link that is right in the repository is right on the site: `on_page_markdown` turns it into one to
the page made of its target, or into plain text where the target is code.
"""

import re
import sys
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import matrix  # noqa: E402

PLAIN = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PACKAGES = ["core", "metrics", "stats", "study", "testing"]
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.DOTALL | re.MULTILINE)
# What a browser loads when it shows the page; links that a reader may follow are not among it.
LOADED = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>|@import"
)


def pages() -> dict[str, str]:
    """Return the repository's path of every page that is made of a file outside of ``docs/``."""
    found = dict(PLAIN)
    for name in PACKAGES:
        found[f"packages/{name}/README.md"] = f"packages/{name}.md"
    for readme in sorted(ROOT.glob("packages/approaches-*/*/README.md")):
        found[readme.relative_to(ROOT).as_posix()] = f"approaches/{readme.parent.name}.md"
    return found


SOURCES = pages()


@cache
def modules() -> dict[str, list[str]]:
    """Return the dotted names of the public modules of every package that has a reference."""
    found = {}
    for name in PACKAGES:
        source = ROOT / "packages" / name / "src"
        parts = [path.relative_to(source).with_suffix("").parts for path in source.rglob("*.py")]
        public = [p for p in parts if p[-1] == "__init__" or not any(w[0] == "_" for w in p)]
        found[name] = sorted(".".join(p).removesuffix(".__init__") for p in public)
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation by the pages that nobody lists by hand."""
    found = {
        "Approaches": [
            {f"{category.title()} level": [f"approaches/{info.name}.md" for info in infos]}
            for category, infos in matrix.by_category().items()
        ],
        "Reference": [
            {names[0]: [f"packages/{package}.md", *_named(names)]}
            for package, names in modules().items()
        ],
        "Subjects": _below("subjects"),
        "Evidence": _below("evidence"),
    }
    _complete(config.nav or [], found)
    return config


def _named(names: list[str]) -> list[dict[str, str]]:
    return [{name.partition(".")[2] or "package": f"reference/{name}.md"} for name in names]


def _below(folder: str) -> list[str]:
    paths = sorted((ROOT / "docs" / folder).glob("*.md"))
    return [f"{folder}/{path.name}" for path in paths if path.name != "README.md"]


def _complete(entries: list, found: dict[str, list]) -> None:
    for entry in entries:
        for name, content in entry.items() if isinstance(entry, dict) else ():
            if isinstance(content, list):
                _complete(content, found)
                content += found.get(name, [])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of something else than a file of ``docs/``."""
    made = {page: (ROOT / source).read_text() for source, page in SOURCES.items()}
    made |= matrix.pages(made)
    for names in modules().values():
        made |= {f"reference/{name}.md": f"# {name}\n\n::: {name}\n" for name in names}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links into the repository lead to the pages of the site."""
    source = repository_path(page.file.src_uri)

    def link(match: re.Match) -> str:
        text, target = match["text"], match["target"]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        there = (ROOT / source.parent / path).resolve()
        if not there.is_relative_to(ROOT) or not there.exists():
            return match[0]  # of the site alone, or broken: MkDocs says so
        found = page_of(there)
        if found is None:
            return text[1:-1]
        up = "../" * page.file.src_uri.count("/")
        return f"{text}({up}{found}{'#' + anchor if anchor else ''})"

    pieces, end = [], 0
    for code in CODE.finditer(markdown):
        pieces += [LINK.sub(link, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, LINK.sub(link, markdown[end:])])


def repository_path(page: str) -> Path:
    """Return the path in the repository of the file that a page is made of."""
    for source, made in SOURCES.items():
        if made == page:
            return Path(source)
    return Path("docs") / page


def page_of(there: Path) -> str | None:
    """Return the page or image of the site that shows a path of the repository."""
    if there.is_dir():
        there = there / "README.md"
    path = there.relative_to(ROOT).as_posix()
    if path in SOURCES:
        return SOURCES[path]
    inside = path.startswith("docs/") and there.exists() and there.suffix in {".md", ".png"}
    return path.removeprefix("docs/") if inside else None


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that would load something from another host."""
    for path in Path(config.site_dir).rglob("*.html"):
        found = LOADED.search(path.read_text())
        if found:
            raise PluginError(f"{path}: loads something from outside: {found[0]}")
