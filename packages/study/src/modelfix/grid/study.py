"""The study file: which entrants run on which subjects, how often and within which limits.

A study file may come from anywhere: it is read as plain data, its names become folder names only
after a check, and whatever is wrong with it is one sentence.
"""

import difflib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from modelfix_core.errors import ModelfixError
from modelfix_core.job import Job
from modelfix_core.subject import CARD_FILE
from modelfix_core.subjects.catalogue import CATALOGUE, named
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from modelfix.catalogue import Catalogue
from modelfix.cells import Home, entrant_name

LARGEST = 1024**2  # bytes of a study file
GIB = 1024**3

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # of a folder


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entrant(_Part):
    """An approach with its configuration.

    Attributes
    ----------
    approach : str
        Its name or abbreviation.
    preset : str
    config : dict
        Options that differ from the preset.
    """

    approach: Name
    preset: Name = "default"
    config: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folders."""
        return entrant_name(self.approach, self.preset, self.config)

    def __hash__(self) -> int:
        return hash(self.name)


class Limits(_Part):
    """What ends a cell: `seconds` of fixing, `memory` in GiB; None is no limit."""

    seconds: float | None = Field(default=None, gt=0)
    memory: float | None = Field(default=None, gt=0)


class Resources(_Part):
    """What a cell takes of a machine: CPU `cores`, `gpus` (a part of one too), `memory` in GiB.

    Where `memory` is None it is what records say of the approach, or `DEFAULT_MEMORY`.
    """

    cores: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0)
    memory: float | None = Field(default=None, gt=0)


class Evaluation(_Part):
    """How fixed models are evaluated.

    Attributes
    ----------
    attack : bool
        Measure adversarial robustness.
    attacked : int
        Inputs that the attack tries.
    study : bool
        Also ``asr_study``, for tables beside published values.
    """

    attack: bool = True
    attacked: int = Field(default=1000, ge=1)
    study: bool = False


def _entrant(entry: Any) -> Any:
    return {"approach": entry} if isinstance(entry, str) else entry


class Study(_Part):
    """A grid of cells.

    Attributes
    ----------
    name : str
    summary : str
        One sentence.
    subjects : list of str
        Named subjects, or own ones that are prepared.
    entrants : list of Entrant
        In the file also the name of an approach alone.
    repetitions : int
    seed : int
        The first of all draws.
    device : str
    corrupted : {"points", "relative"}
    limits : Limits
    resources : Resources
    evaluation : Evaluation
    """

    name: Name
    summary: str = ""
    subjects: list[Name] = Field(min_length=1, max_length=1000)
    entrants: list[Annotated[Entrant, BeforeValidator(_entrant)]] = Field(
        min_length=1, max_length=1000
    )
    repetitions: int = Field(default=1, ge=1, le=1000)
    seed: int = 0
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:[0-9]+)?)$")
    corrupted: Literal["points", "relative"] = "points"
    limits: Limits = Limits()
    resources: Resources = Resources()
    evaluation: Evaluation = Evaluation()

    @property
    def gpus(self) -> float:
        """GPUs of a cell: at least one where the device is one."""
        return self.resources.gpus or float(self.device.startswith("cuda"))

    def job(self, home: Home, subject: str, entrant: Entrant, repetition: int) -> Job:
        """Return the job of one cell."""
        memory = self.limits.memory
        return Job(
            approach=entrant.approach,
            preset=entrant.preset,
            config=entrant.config,
            subject=home.subject(subject),
            record=home.record(subject, entrant.name, repetition),
            repetition=repetition,
            seed=self.seed,
            device=self.device,
            seconds=self.limits.seconds,
            memory=None if memory is None else int(memory * GIB),
            corrupted=self.corrupted,
        )


def load(path: Path, home: Home, catalogue: Catalogue | None = None) -> Study:
    """Read a study file and resolve its names; approaches by abbreviation get their full name.

    Raises
    ------
    ModelfixError
        If the file cannot be read, has an unknown entry, or names what does not exist.
    """
    try:
        study = Study.model_validate(_read(path))
    except ValidationError as error:
        raise ModelfixError(f"{path}: {_explain(error)}") from None
    try:
        return _resolve(study, home, catalogue or Catalogue())
    except ModelfixError as error:
        raise ModelfixError(f"{path}: {error}") from None


def dump(study: Study) -> str:
    """Return a study as the text of a study file."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Plain data only; nothing that stands for something else, no entry twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, f"the reference *{event.anchor} is not allowed", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ModelfixError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(content) > LARGEST:
        raise ModelfixError(f"{path}: is larger than 1 MiB; this is no study file.")
    try:
        data = yaml.load(content, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}" if mark else ""
        raise ModelfixError(f"{path}: is no valid study file: {error.problem}{where}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        reason = str(reason).splitlines()[0]
        raise ModelfixError(f"{path}: is no valid study file: {reason}.") from None
    if not isinstance(data, dict):
        raise ModelfixError(
            f"{path}: is no study file; expected entries {', '.join(Study.model_fields)}."
        )
    return data


def _explain(error: ValidationError) -> str:
    """Say what is wrong with the first wrong entry, and what may have been meant."""
    first = error.errors()[0]
    where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        wrong = str(first["loc"][-1])
        return f"{where}: there is no such entry; {_meant(wrong, _known(first['loc'][:-1]))}."
    if first["type"] == "string_pattern_mismatch" and "cuda" not in str(first["ctx"]):
        return (
            f"{where}: {first['input']!r} cannot be the name of a folder; use letters, digits, "
            "'-', '_' and '.', and no path."
        )
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _known(location: tuple) -> list[str]:
    """Return the entries that there are at a place of the study file."""
    parts: dict[str, type[BaseModel]] = {
        "entrants": Entrant,
        "limits": Limits,
        "resources": Resources,
        "evaluation": Evaluation,
    }
    return list((parts[location[0]] if location else Study).model_fields)


def _meant(wrong: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(wrong, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}" if close else f"there are {', '.join(known)}"


def _resolve(study: Study, home: Home, catalogue: Catalogue) -> Study:
    for subject in study.subjects:
        if not (home.subject(subject) / CARD_FILE).exists() and subject not in CATALOGUE:
            named(subject)  # raises, with what may have been meant
    entrants = []
    for entrant in study.entrants:
        info = catalogue.find(entrant.approach)
        if info.name in catalogue.installed:
            catalogue.registry.load(info.name)(entrant.preset, **entrant.config)
        entrants.append(entrant.model_copy(update={"approach": info.name}))
    for what, names in (
        ("subject", study.subjects),
        ("entrant", [entrant.name for entrant in entrants]),
    ):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ModelfixError(f"the {what} {twice} is named twice; name it once.")
    return study.model_copy(update={"entrants": entrants})
