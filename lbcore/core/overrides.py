"""Values from outside the YAML file: ``LB_BROKER__PORT=8001`` and ``--set broker.port=8001``.

Pure: puts such values into the mapping that the file holds, before ``config.py`` checks the whole.
So an override is checked like any other value, and its problems name the variable or the flag.  The
short forms of the YAML (``workers: 4``, ``policy: random``) are opened only as far as an override
needs it.  Called by ``shell/config_file.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .config import DEFAULT_WORKERS, default_worker_name
from .problems import KeyPath, Origin, Problem, nearest_name, show
from .readers import is_mapping, is_whole
from .schema import (
    SECTIONS,
    SHORT_WORKERS_KEYS,
    TOPOLOGY_KEYS,
    WORKER_KEYS,
    WORKERS_MAX,
)

PREFIX: Final = "LB_"
#: variables of this prefix that are not overrides; docs/topology.md explains them.  Workers have
#: LB_PROC_NAME, and a task may well run ``lb``
OTHER_VARIABLES: Final = (
    "LB_CONFIG",
    "LB_KEY_FILE",
    "LB_NO_VENV",
    "LB_PROC_NAME",
    "LB_RUNTIME_DIR",
)

INDEX: Final = re.compile(r"[0-9]{1,6}")
PATH_PART: Final = re.compile(r"\.?(?:\[([0-9]{1,6})\]|([^.\[\]]+))")
#: a socket is a path, or a host and a port: an override of one replaces the file's other
REPLACED_KEYS: Final[Mapping[str | int, tuple[str, ...]]] = {
    "host": ("path",),
    "port": ("path",),
    "path": ("host", "port"),
}


@dataclass(frozen=True, slots=True)
class Override:
    """One value for one key, from a variable or a flag."""

    #: the variable's name, or the flag with its key
    source: str
    #: the parts of the key as they were typed: ``("workers", "worker-1", "weight")``
    parts: tuple[str, ...]
    value: object
    #: scalars of the value as they were written, by their path inside the value
    written: Mapping[KeyPath, str | None]
    is_variable: bool = False


class _Refused(Exception):
    """An override whose key does not exist here; the text says what to do."""


def variable_parts(name: str) -> tuple[str, ...]:
    """The key that an ``LB_*`` variable means; two underscores separate its parts."""
    parts = name.removeprefix(PREFIX).split("__")
    lowered = [part.lower() for part in parts]
    if lowered[0] == "workers" and lowered[2:3] == ["env"] and len(parts) > 3:
        # the names of environment variables keep their case, and may hold two underscores
        return (*lowered[:3], "__".join(parts[3:]))
    return tuple(lowered)


def path_parts(text: str) -> tuple[str, ...] | None:
    """The parts of ``workers[0].weight``; None when it is not written like a key path."""
    parts: list[str] = []
    position = 0
    while position < len(text):
        match = PATH_PART.match(text, position)
        if match is None or (position == 0) == text.startswith((".", "["), position):
            return None
        parts.append(match[1] or match[2])
        position = match.end()
    return tuple(parts) or None


def apply_overrides(
    document: dict[str, Any], origins: dict[KeyPath, Origin], overrides: Iterable[Override]
) -> list[Problem]:
    """Put every override into ``document`` in turn, and its origin into ``origins``.

    Returns a problem, with the nearest valid key, for each one whose key does not exist.
    """
    problems: list[Problem] = []
    for override in overrides:
        try:
            path = _resolve(document, origins, override)
        except _Refused as refusal:
            problems.append(Problem(Origin(override.source), "", str(refusal)))
            continue
        if path:
            _set(document, origins, path, override)
    return problems


def _resolve(
    document: dict[str, Any], origins: dict[KeyPath, Origin], override: Override
) -> KeyPath:
    """The key path in the document that an override means.  Raises ``_Refused``.

    Empty when the section is written in a way that ``config.py`` will refuse anyhow.
    """
    section, rest = override.parts[0], override.parts[1:]
    if section == "workers" and rest:
        return _resolve_worker(document, origins, override)
    if not rest and section in TOPOLOGY_KEYS:
        return (section,)
    keys = SECTIONS.get(section, {})
    if len(rest) == 1 and rest[0] in keys:
        return (section, rest[0])
    raise _unknown(override, (section,), keys if len(rest) == 1 else ())


def _resolve_worker(
    document: dict[str, Any], origins: dict[KeyPath, Origin], override: Override
) -> KeyPath:
    rest = override.parts[1:]
    workers = document.get("workers", DEFAULT_WORKERS)
    if len(rest) == 1 and rest[0] in SHORT_WORKERS_KEYS:
        if isinstance(workers, (list, tuple)):
            replacing = _spell(("workers",), override)
            raise _Refused(
                f"`workers` is a list here and has no `{rest[0]}`; {replacing}=4 replaces the list"
            )
        if _is_count(workers):
            _open(document, origins, "workers", {"count": workers}, "count")
        return ("workers", rest[0])
    entries = _listed_workers(document, origins)
    if entries is None:
        return ()
    index, used = _find_worker(entries, rest, override)
    keys = rest[used:]
    if len(keys) == 2 and keys[0] == "env":
        return ("workers", index, *keys)
    if len(keys) > 1 or (keys and keys[0] not in WORKER_KEYS):
        chosen = ("workers", *rest[:used])
        raise _unknown(override, chosen, WORKER_KEYS if len(keys) == 1 else ())
    return ("workers", index, *keys)


def _listed_workers(document: dict[str, Any], origins: dict[KeyPath, Origin]) -> list[Any] | None:
    """``workers`` as a list of mappings, opened from its short forms; None when it is unusable."""
    workers = document.get("workers", DEFAULT_WORKERS)
    entries: list[Any]
    if isinstance(workers, (list, tuple)) and workers:
        entries = [dict(entry) if is_mapping(entry) else entry for entry in workers]
        document["workers"] = entries
        return entries
    short: Mapping[Any, Any] = workers if is_mapping(workers) else {"count": workers}
    if not _is_count(short.get("count")):
        return None
    entries = []
    shared = [path for path in origins if path[:1] == ("workers",) and len(path) > 1]
    for index in range(short["count"]):
        entries.append({"name": default_worker_name(index)})
        for key, value in short.items():
            if key != "count":
                entries[index][key] = dict(value) if is_mapping(value) else value
        origins.update({("workers", index, *path[1:]): origins[path] for path in shared})
    document["workers"] = entries
    return entries


def _find_worker(entries: list[Any], rest: tuple[str, ...], override: Override) -> tuple[int, int]:
    """Which worker the parts after ``workers`` mean, and how many of them name it."""
    names: dict[str, int] = {}
    for position, entry in enumerate(entries):
        names.setdefault(_name(entry, position), position)
    # a name may hold dots, which also separate the parts
    for used in range(len(rest), 0, -1):
        index = names.get(".".join(rest[:used]))
        if index is None and override.is_variable:
            # a variable's name has no `-` and no case
            folded = {_fold(name): names[name] for name in reversed(names)}
            index = folded.get(_fold(".".join(rest[:used])))
        if index is not None:
            return index, used
    if INDEX.fullmatch(rest[0]):
        if int(rest[0]) < len(entries):
            return int(rest[0]), 1
        raise _Refused(f"there is no workers[{rest[0]}]; they are 0 to {len(entries) - 1}")
    nearest = nearest_name(rest[0], names)
    first = next(iter(names))
    hint = f"did you mean {show(nearest)}?" if nearest else f"the first is {show(first)}"
    raise _Refused(f"there is no worker {show(rest[0])}; {hint}")


def _set(
    document: dict[str, Any], origins: dict[KeyPath, Origin], path: KeyPath, override: Override
) -> None:
    """Store a value, making the sections around it where the file has none."""
    container: Any = document
    for depth, part in enumerate(path[:-1], start=1):
        inner = container[part] if isinstance(part, int) else container.get(part)
        if part == "policy" and isinstance(inner, str):
            inner = _open(document, origins, "policy", {"name": inner}, "name")
        if inner is None:
            inner = container[part] = {}
            origins.setdefault(path[:depth], Origin(override.source))
        if not isinstance(inner, list if isinstance(path[depth], int) else dict):
            return  # config.py refuses the section as it is written
        container = inner
    container[path[-1]] = override.value
    for stale in [known for known in origins if known[: len(path)] == path]:
        del origins[stale]
    for inside, text in {(): None, **override.written}.items():
        origins[(*path, *inside)] = Origin(override.source, None, text)
    if path[0] == "broker" or (path[0] == "workers" and len(path) == 3):
        for other in REPLACED_KEYS.get(path[-1], ()):
            written = origins.get((*path[:-1], other))
            if written is None or written.line is not None:
                container.pop(other, None)


def _open(
    document: dict[str, Any],
    origins: dict[KeyPath, Origin],
    section: str,
    mapping: dict[str, Any],
    key: str,
) -> dict[str, Any]:
    """Replace a section's short form by the mapping that it stands for."""
    document[section] = mapping
    if (section,) in origins:
        origins[(section, key)] = origins[(section,)]
    return mapping


def _is_count(value: object) -> bool:
    return is_whole(value) and 1 <= value <= WORKERS_MAX


def _name(entry: object, index: int) -> str:
    name = entry.get("name") if is_mapping(entry) else None
    return name if isinstance(name, str) else default_worker_name(index)


def _fold(name: str) -> str:
    return re.sub(r"[.-]", "_", name.lower())


def _spell(parts: tuple[str, ...], override: Override) -> str:
    """A key as this kind of override writes it."""
    if override.is_variable:
        return PREFIX + "__".join(re.sub(r"[.-]", "_", part) for part in parts).upper()
    return ".".join(parts)


def _unknown(override: Override, chosen: tuple[str, ...], keys: Iterable[str]) -> _Refused:
    """The refusal of a key, with the nearest valid one of the ``chosen`` section or of all."""
    key = nearest_name(override.parts[-1], keys)
    if key is not None:
        return _Refused(f"no such key; did you mean {_spell((*chosen, key), override)}?")
    known: list[tuple[str, ...]] = [(name,) for name in TOPOLOGY_KEYS]
    known += [(section, name) for section, names in SECTIONS.items() for name in names]
    known += [("workers", name) for name in SHORT_WORKERS_KEYS]
    # the prefix that all variables share would make them all look alike
    prefix = PREFIX if override.is_variable else ""
    spelled = [_spell(parts, override).removeprefix(prefix) for parts in known]
    spelled += [name.removeprefix(PREFIX) for name in OTHER_VARIABLES if prefix]
    nearest = nearest_name(_spell(override.parts, override).removeprefix(prefix), spelled)
    if nearest is not None:
        return _Refused(f"no such key; did you mean {prefix}{nearest}?")
    example = _spell(("broker", "port"), override)
    advice = "unset it, or name a key" if override.is_variable else "name a key"
    return _Refused(f"the topology has no such key; {advice} as in {example}")
