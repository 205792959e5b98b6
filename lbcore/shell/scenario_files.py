"""Scenarios as YAML files: those that come with lb, by name, and a user's own, by path."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from lbcore.core.errors import LBError

from .yaml_reader import read_yaml

FOLDER: Final = Path(__file__).resolve().parent.parent / "lab" / "scenarios"


class ScenarioFileError(LBError):
    """A scenario cannot be read; the message says which, and what to do."""

    exit_code = 2


def scenario_names() -> list[str]:
    """The scenarios that come with lb, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def scenario_path(name: str) -> Path:
    """The file of a scenario: of that name, or at that path.  Raises ``ScenarioFileError``."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = scenario_names()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
        raise ScenarioFileError(f"there is no scenario {name!r}{hint}")
    return FOLDER / f"{name}.yaml"


def load_scenario(name: str) -> Any:
    """What the file of a scenario holds.  Raises ``ScenarioFileError``."""
    path = scenario_path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ScenarioFileError(f"cannot read scenario {name}: {reason}") from None
    document = read_yaml(text, str(path))
    if document.problems:
        raise ScenarioFileError(f"{document.problems[0]}")
    return document.value
