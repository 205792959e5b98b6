"""Reads YAML text into plain values and remembers the line of every one of them.

Plain data only: no tag makes an object.  Text from anywhere may be given to it: nesting, aliases
and the number of values are bounded, so that a small file cannot become a large one.  A key that is
written twice is a mistake and is reported with both lines.  Scalars mean what they look like:
``no`` and ``on`` are texts, ``010`` is not eight, ``12:30`` is not a number of seconds.

Called by ``config_file.py`` for the file and for the values of overrides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from lbcore.core.problems import KeyPath, Origin, Problem, show, spell_path

#: values in one file, after aliases are followed; 4,096 workers with every key need half of it
VALUES_MAX: Final = 100_000
DEPTH_MAX: Final = 20
KEY_CHARS_MAX: Final = 256

LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

TAG_PREFIX: Final = "tag:yaml.org,2002:"
PLAIN_TAGS: Final = (None, "!", *(TAG_PREFIX + name for name in ("str", "seq", "map")))

INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9](?:_?\d){0,17})", re.ASCII)
DECIMAL: Final = re.compile(
    r"[-+]?(?:\d{1,18}\.\d{0,18}|\.\d{1,18}|\d{1,18}(?=[eE]))(?:[eE][-+]?\d{1,3})?", re.ASCII
)
WORDS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(slots=True)
class Document:
    """The values of one YAML text, where each was written, and what is wrong with the text."""

    value: Any = None
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_yaml(text: str, source: str) -> Document:
    """Read one YAML document; ``source`` is how its problems name the file.  Raises nothing.

    A document that is not readable as a whole has the value None and at least one problem.
    """
    reader = _Reader(source, text.splitlines())
    document = Document()
    try:
        control = FORBIDDEN.search(text)
        if control is not None:
            line = text.count("\n", 0, control.start()) + 1
            raise _Unreadable(line, f"found the control character {control[0]!a}; remove it")
        root = reader.compose(yaml.parse(text, Loader=LOADER))
        if root is not None:
            document.value = reader.construct(root, (), 0)
    except _Unreadable as error:
        reader.note(error.line, error.path, str(error))
    except yaml.MarkedYAMLError as error:
        reader.note_syntax(error)
    except yaml.YAMLError as error:
        reader.note(None, (), f"not readable as YAML: {str(error).splitlines()[0]}")
    document.origins = reader.origins
    document.problems = reader.problems
    return document


def read_scalar(text: str) -> object:
    """What an unquoted scalar means: nothing, a truth value, a number, or the text itself."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if DECIMAL.fullmatch(text):
        return float(text)
    return text


class _Unreadable(Exception):
    """The text cannot be read on; one problem says why."""

    def __init__(self, line: int, message: str, path: KeyPath = ()) -> None:
        super().__init__(message)
        self.line = line
        self.path = path


class _Node:
    """A scalar, a list of nodes, or a list of (key, line of the key, node)."""

    __slots__ = ("is_open", "items", "line", "pairs", "text", "value")

    def __init__(self, line: int) -> None:
        self.line = line
        self.value: object = None
        self.text: str | None = None
        self.items: list[_Node] | None = None
        self.pairs: list[tuple[str, int, _Node]] | None = None
        #: still being read: an alias to it would contain itself
        self.is_open = True


class _Reader:
    """Two steps: events to nodes (syntax, duplicate keys), nodes to values (aliases, merges)."""

    def __init__(self, source: str, lines: list[str]) -> None:
        self.source = source
        self.lines = lines
        self.problems: list[Problem] = []
        self.origins: dict[KeyPath, Origin] = {}
        self.anchors: dict[str, _Node] = {}
        self.value_count = 0

    def note(self, line: int | None, path: KeyPath, message: str) -> None:
        """Note a problem of the text itself."""
        self.problems.append(Problem(Origin(self.source, line), spell_path(path), message))

    def compose(self, events: Iterator[Event]) -> _Node | None:
        """The node tree of the only document; None for a text with no value at all."""
        root: _Node | None = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    message = "a second YAML document starts here; one file holds one topology"
                    raise _Unreadable(_line(event), message)
                root = self._node(next(events), events, ())
        return root

    def _node(self, event: Event, events: Iterator[Event], path: KeyPath) -> _Node:
        line = _line(event)
        if len(path) > DEPTH_MAX:
            raise _Unreadable(line, f"nested more than {DEPTH_MAX} levels deep", path[:2])
        if isinstance(event, AliasEvent):
            target = self.anchors.get(str(event.anchor))
            if target is None:
                raise _Unreadable(line, f"*{event.anchor} has no anchor &{event.anchor}", path)
            if target.is_open:
                raise _Unreadable(line, f"*{event.anchor} contains itself", path)
            return target
        node = _Node(line)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = node
        self._check_tag(event, path)
        if isinstance(event, ScalarEvent):
            node.text = event.value
            is_plain = event.implicit[0] and event.tag is None
            node.value = read_scalar(event.value) if is_plain else event.value
        elif isinstance(event, SequenceStartEvent):
            self._items(node, events, path)
        elif isinstance(event, MappingStartEvent):
            self._pairs(node, events, path)
        node.is_open = False
        return node

    def _items(self, node: _Node, events: Iterator[Event], path: KeyPath) -> None:
        node.items = []
        for event in events:
            if isinstance(event, CollectionEndEvent):
                return
            node.items.append(self._node(event, events, (*path, len(node.items))))

    def _pairs(self, node: _Node, events: Iterator[Event], path: KeyPath) -> None:
        node.pairs = []
        first_lines: dict[str, int] = {}
        for event in events:
            if isinstance(event, CollectionEndEvent):
                return
            line = _line(event)
            key_node = self._node(event, events, (*path, "?"))
            key = key_node.text
            if key is None or len(key) > KEY_CHARS_MAX:
                raise _Unreadable(
                    line, f"a key is a text of at most {KEY_CHARS_MAX} characters", path
                )
            value = self._node(next(events), events, (*path, key))
            if key in first_lines and key != "<<":
                where = f"{self.source}:{first_lines[key]}"
                self.note(line, (*path, key), f"this key is already given at {where}; remove one")
                continue
            first_lines[key] = line
            node.pairs.append((key, line, value))

    def _check_tag(self, event: Event, path: KeyPath) -> None:
        tag = getattr(event, "tag", None)
        if tag not in PLAIN_TAGS:
            spelled = show(str(tag).replace(TAG_PREFIX, "!!"))
            message = f"found the tag {spelled}; only plain values are read, remove it"
            raise _Unreadable(_line(event), message, path)

    def construct(self, node: _Node, path: KeyPath, line: int) -> Any:
        """The plain value of a node; notes where it and everything in it was written."""
        self._count(1, node.line)
        if len(path) > DEPTH_MAX:
            message = f"nested more than {DEPTH_MAX} levels deep, with aliases followed"
            raise _Unreadable(node.line, message, path[:2])
        self.origins[path] = Origin(self.source, line or node.line, node.text)
        if node.items is not None:
            return [
                self.construct(item, (*path, index), item.line)
                for index, item in enumerate(node.items)
            ]
        if node.pairs is not None:
            mapping: dict[str, Any] = {}
            self._fill(mapping, node, path, 0)
            return mapping
        return node.value

    def _fill(self, mapping: dict[str, Any], node: _Node, path: KeyPath, depth: int) -> None:
        """Construct the pairs of a mapping; those of a merge (``<<: *base``) fill the gaps."""
        merged: list[tuple[int, _Node]] = []
        for key, line, value in node.pairs or ():
            if key == "<<":
                merged += [(line, base) for base in (value.items or [value])]
            elif key not in mapping:
                mapping[key] = self.construct(value, (*path, key), line)
        for line, base in merged:
            if base.pairs is None or depth > DEPTH_MAX:
                raise _Unreadable(line, "`<<` merges mappings only, such as <<: *base", path)
            self._count(1 + len(base.pairs), line)
            self._fill(mapping, base, path, depth + 1)

    def _count(self, values: int, line: int) -> None:
        self.value_count += values
        if self.value_count > VALUES_MAX:
            message = f"more than {VALUES_MAX} values, with aliases followed; make it smaller"
            raise _Unreadable(line, message)

    def note_syntax(self, error: yaml.MarkedYAMLError) -> None:
        """Say in one line what the parser met, where, and what usually helps."""
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else max(1, min(mark.line + 1, len(self.lines)))
        message = f"not valid YAML: {error.problem or error.context}"
        context_line = None if error.context_mark is None else error.context_mark.line + 1
        if error.context and context_line is not None and context_line != line:
            message += f" ({error.context} of line {context_line})"
        advice = self._syntax_advice(line, str(error.problem))
        self.note(line, (), message + (f"; {advice}" if advice else ""))

    def _syntax_advice(self, line: int | None, problem: str) -> str:
        text = self.lines[line - 1] if line and self.lines else ""
        indent = text[: len(text) - len(text.lstrip())]
        if "\t" in indent:
            return "indent with spaces, not with tabs"
        if "mapping values are not allowed" in problem:
            return 'put a value with ": " in it in quotes, or check the indentation'
        if "cannot start any token" in problem:
            return "put the value in quotes"
        if "did not find expected" in problem or "expected <block end>" in problem:
            return "check the indentation and brackets up to here"
        return ""


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1 if event.start_mark is not None else 1
