"""Run the commands of the tutorials and compare what they print with what the pages say.

    nox -s docs-examples                    all pages
    nox -s docs-examples -- pitfalls        pages by name
    nox -s docs-examples -- --update        write what the commands print into the pages

In a page,

- a block with a title (```python title="split.py") is written to that file;
- a block `console` is run: lines ``$ command``, continued by ``> ...``, each with what the
  command prints to stdout. It has to end with exit code 0;
- ``<!-- environment: metrics -->`` runs the next block with the Python of another environment;
- ``<!-- varies -->``: what the next block prints is shown, but not compared.

Every page has a folder of its own, with the default subject prepared in it. Times and hashes are
not compared, other numbers have to be near those of the page: a model that is trained on another
processor is another model.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = Path(__file__).parents[1]
STATE = DOCS.parent / ".modelfix"
SUBJECT = Path("results", "subjects", "fashion-mini-lenet5")  # prepared once, beforehand
PAGES = [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "pitfalls.md"]

TITLE = re.compile(r'title="([^"]+)"')
ENVIRONMENT = re.compile(r"<!-- environment: (\S+) -->")
VARIES = "<!-- varies -->"
MACHINE = re.compile(
    r"\b\d+:\d\d:\d\d\b|\b\d+h\d+m(\d+s)?\b|\b\d+m\d+s\b"
    r"|\b\d+(\.\d+)? ?(ms|s|seconds|min|minutes|h)\b"
    r"|\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{8,}\b"  # hashes
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


class Shell:
    """Runs the commands of a page, one after the other, in its folder or where they changed to."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.here = folder
        self.environ = {
            **os.environ,
            "COLUMNS": "100",
            "MODELFIX_HOME": str(folder / "results"),
            "NO_COLOR": "1",
            "REPOSITORY": str(DOCS.parent),
        }

    def run(self, script: str, environment: str) -> list[str]:
        """Run a command and return the lines that it prints."""
        binaries = STATE / "environments" / environment / "bin"
        environ = {**self.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        moved = self.folder / ".here"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail\ntrap 'pwd > \"{moved}\"' EXIT\n{script}"],
            cwd=self.here,
            env=environ,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"$ {script}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
        self.here = Path(moved.read_text().strip())
        return [line.rstrip() for line in done.stdout.replace(f"{self.folder}/", "").splitlines()]


def essence(lines: list[str]) -> list[list[str]]:
    """Return the words and numbers of every line without what depends on the machine."""
    found, end = [], 0  # of the column of seconds, whose numbers stand to the right
    for line in lines:
        start = line.rfind(" ", 0, end) + 1
        if end and re.fullmatch(r"[\d.]+", line[start:end]):
            line = f"{line[:start]}TIME{line[end:]}"
        elif heading := TIMES.search(line):
            end = heading.end()
        found.append(TOKEN.findall(MACHINE.sub("TIME", line)))
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


@dataclass
class Block:
    """A fenced block of a page, with what the comments before it say."""

    token: Token
    environment: str = "modelfix"
    varies: bool = False

    @property
    def lines(self) -> slice:
        """Its content, in the lines of the page."""
        start, end = self.token.map or (0, 0)
        return slice(start + 1, end - 1)


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found, said = [], ""
    for token in MarkdownIt().parse(text):
        if token.type == "html_block":
            said += token.content
        elif token.type == "fence":
            match = ENVIRONMENT.search(said)
            found.append(Block(token, match[1] if match else "modelfix", VARIES in said))
            said = ""
    return found


def check(page: Path, update: bool) -> int:
    """Run the blocks of a page; return how many commands print something else than it shows."""
    name = page.relative_to(DOCS).with_suffix("").as_posix()
    folder = STATE / "examples" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS.parent / SUBJECT, folder / SUBJECT)
    shell = Shell(folder)
    text, differing, outputs = page.read_text(), 0, []
    for block in blocks(text):
        if title := TITLE.search(block.token.info):
            path = shell.here / title[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.token.content)
        if block.token.info.split()[:1] == ["console"]:
            written: list[str] = []
            for command in commands(block.token.content):
                print(command.text, flush=True)
                printed = shell.run(command.script, block.environment)
                written += [*command.text.splitlines(), *printed]
                if not block.varies and not alike(command.shown, printed):
                    differing += 1
                    print(*difflib.unified_diff(command.shown, printed, name, "printed"), sep="\n")
            outputs.append((block.lines, written))
    if update:
        lines = text.splitlines()
        for place, written in reversed(outputs):
            lines[place] = written
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
