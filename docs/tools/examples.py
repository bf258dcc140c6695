"""Run the commands of the tutorials and compare what they print with what the pages say.

    nox -s docs-examples                    all pages
    nox -s docs-examples -- pitfalls        pages by name
    nox -s docs-examples -- --update        write what the commands print into the pages

In a page,

- a block with a title (```python title="split.py") is written to that file;
- a block `console` is run: lines ``$ command``, continued by ``> ...``, each with what the
  command prints to stdout. It has to end with exit code 0;
- ``<!-- environment: metrics -->`` runs the next block with the Python of another environment.

Every page has an empty folder of its own. Times and hashes are not compared, other numbers have to
be near those of the page: a model that is trained on another processor is another model.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = Path(__file__).parents[1]
STATE = DOCS.parent / ".modelfix"
PAGES = [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "pitfalls.md"]

TITLE = re.compile(r'title="([^"]+)"')
ENVIRONMENT = re.compile(r"<!-- environment: (\S+) -->")
MACHINE = re.compile(
    r"\b\d+h\d+m(\d+s)?\b|\b\d+m\d+s\b|\b\d+(\.\d+)? ?(ms|s|seconds|min|minutes|h)\b"
    r"|\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{8,}\b"
)
TIMES = re.compile(r"\b(seconds|time)\b")
TOKEN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[^\s\d]+")
NEAR = (2.0, 0.15)  # how far numbers may be apart: absolutely, and as a share of the larger


@dataclass
class Command:
    """One command of a page and the output that the page shows."""

    text: str
    shown: list[str]

    @property
    def script(self) -> str:
        """What a shell runs: the command without its prompts."""
        first, *rest = self.text.splitlines()
        return "\n".join([first.removeprefix("$ "), *(line[2:] for line in rest)])


def commands(block: str) -> list[Command]:
    """Return the commands of a block `console`."""
    found: list[Command] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Command(line, []))
        elif line.startswith("> ") and not found[-1].shown:
            found[-1].text += "\n" + line
        else:
            found[-1].shown.append(line)
    return found


def run(script: str, folder: Path, environment: str) -> list[str]:
    """Run a command in the folder of a page and return the lines that it prints."""
    path = STATE / "environments" / environment / "bin"
    environ = {
        **os.environ,
        "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environ, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"$ {script}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    lines = done.stdout.replace(f"{folder}/", "").splitlines()
    return [line.rstrip() for line in lines]


def essence(lines: list[str]) -> list[list[str]]:
    """Return the words and numbers of every line without what depends on the machine."""
    column, found = None, []
    for line in lines:
        masked = MACHINE.sub("TIME", line)
        if column is not None:
            masked = re.sub(rf"(?<=^.{{{column - 9}}})[\d. ]{{9}}(?!\d)", " TIME", masked)
        heading = TIMES.search(line)
        if heading:
            column = heading.end()
        found.append(TOKEN.findall(masked))
    return found


def alike(shown: list[str], printed: list[str]) -> bool:
    """Tell whether a command prints what the page shows, up to the machine it runs on."""
    expected, found = essence(shown), essence(printed)
    return len(expected) == len(found) and all(
        len(a) == len(b) and all(map(_near, a, b)) for a, b in zip(expected, found, strict=True)
    )


def _near(a: str, b: str) -> bool:
    try:
        x, y = (float(text.replace(",", "")) for text in (a, b))
    except ValueError:
        return a == b
    absolute, share = NEAR
    return abs(x - y) <= absolute + share * max(x, y)


def blocks(text: str) -> Iterator[tuple[Token, str]]:
    """Yield the fenced blocks of a page, each with the environment that it runs in."""
    environment = "modelfix"
    for token in MarkdownIt().parse(text):
        if token.type == "html_block" and (match := ENVIRONMENT.search(token.content)):
            environment = match[1]
        elif token.type == "fence":
            yield token, environment
            environment = "modelfix"


def check(page: Path, update: bool) -> int:
    """Run the blocks of a page; return how many commands print something else than it shows."""
    name = page.relative_to(DOCS).with_suffix("").as_posix()
    folder = STATE / "examples" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = page.read_text()
    lines, shift, differing = text.splitlines(), 0, 0
    for token, environment in blocks(text):
        if title := TITLE.search(token.info):
            path = folder / title[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(token.content)
        if token.info.split()[:1] != ["console"]:
            continue
        written: list[str] = []
        for command in commands(token.content):
            print(command.text, flush=True)
            printed = run(command.script, folder, environment)
            if not alike(command.shown, printed):
                differing += 1
                print(*difflib.unified_diff(command.shown, printed, name, "printed"), sep="\n")
            written += [*command.text.splitlines(), *printed]
        start, end = token.map or (0, 0)
        lines[start + 1 + shift : end - 1 + shift] = written
        shift += len(written) - (end - start - 2)
    if update:
        page.write_text("\n".join(lines) + "\n")
    return differing


def main() -> None:
    """Check the pages named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the output into the pages")
    parser.add_argument("pages", nargs="*", choices=[[], *(page.stem for page in PAGES)])
    asked = parser.parse_args()
    chosen = [page for page in PAGES if not asked.pages or page.stem in asked.pages]
    differing = sum(check(page, asked.update) for page in chosen)
    if differing and not asked.update:
        sys.exit(f"{differing} commands print something else; see above, or run with --update")


if __name__ == "__main__":
    main()
