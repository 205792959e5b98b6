"""The lock files: hashed, consistent, complete, and free of any machine's or registry's address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from lbcore.bootstrap import DEVELOP, RUN, TEST

REPOSITORY = Path(__file__).resolve().parent.parent
LEVELS = [RUN.lock, TEST.lock, DEVELOP.lock]
REQUIREMENT = re.compile(r"([a-z0-9-]+)==([^ ;\\]+)(?: ; [^\\]+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def parse(text: str) -> dict[str, str]:
    """Name -> version.  Raises ``ValueError`` for a line that is not a hashed requirement."""
    versions: dict[str, str] = {}
    joined = re.sub(r"\\\n\s*", "", text)
    for line in joined.splitlines():
        if line.startswith("#"):
            continue
        head, *hashes = line.split("--hash=")
        match = REQUIREMENT.fullmatch(head.strip())
        if match is None or not hashes:
            raise ValueError(f"not a hashed requirement: {line[:80]!r}")
        if not all(HASH.fullmatch("--hash=" + value.strip()) for value in hashes):
            raise ValueError(f"not a sha256: {line[:80]!r}")
        versions[match[1]] = match[2].strip()
    return versions


def read(name: str) -> dict[str, str]:
    """The versions of one lock file of the repository."""
    return parse((REPOSITORY / name).read_text(encoding="utf-8"))


def wanted(extra: str | None) -> set[str]:
    """The names that pyproject.toml asks for."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {re.split(r"[<>=!~\[ ;]", line)[0].lower() for line in lines}
    return names - {project["name"]}


@pytest.mark.parametrize(
    ("name", "extra"), [(RUN.lock, None), (TEST.lock, "test"), (DEVELOP.lock, "dev")]
)
def test_lock_holds_what_the_project_asks_for(name: str, extra: str | None) -> None:
    missing = wanted(extra) - set(read(name))
    assert not missing, f"{name} lacks {missing}: run .ci/lock"


@pytest.mark.parametrize(("smaller", "larger"), [LEVELS[:2], LEVELS[1:]])
def test_each_lock_holds_the_one_before_it(smaller: str, larger: str) -> None:
    assert read(smaller).items() <= read(larger).items()


@pytest.mark.parametrize("name", LEVELS)
def test_lock_names_no_place(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert not re.search(r"://|index-url|find-links|file:|@ |^\s*-[ief]", text, re.MULTILINE)


@pytest.mark.parametrize(
    "text",
    [
        "click==8.0\n",
        "click>=8.0 --hash=sha256:" + "0" * 64,
        "click==8.0 --hash=md5:" + "0" * 32,
        "click @ file:///tmp/click.whl --hash=sha256:" + "0" * 64,
    ],
)
def test_parse_refuses_what_is_not_locked(text: str) -> None:
    with pytest.raises(ValueError, match="not a "):
        parse(text)
