"""A task's result as one msgpack value.

Called by the worker for every finished task.  Knows no library outside the standard one: numpy's
and others' values are recognised by what they can do.  Never looks into a result that msgpack can
carry as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec


class _CannotEncode(TypeError):
    """A part of the result has no form in msgpack; says which type."""


def encode_result(value: Any, task: str = "") -> bytes:
    """The msgpack bytes of a task's result.

    Besides what msgpack has (None, bool, int, float, str, bytes, lists and tuples, maps), it takes
    sets, dataclasses, msgspec structs, enums, dates, UUIDs, decimals, deques and other sequences,
    mappings and paths, and everything with ``tolist()`` or ``item()``, such as numpy's values.
    Raises ``TypeError`` for anything else, with the offending type and the task in its message.
    """
    try:
        return _encode(value)
    except _CannotEncode as error:
        reason = str(error)
    except OverflowError:
        reason = "an integer of more than 64 bits; return it as text"
    except RecursionError:
        reason = "a value that contains itself, or is nested too deeply"
    except UnicodeEncodeError:
        reason = "text with a lone surrogate, which UTF-8 cannot carry"
    except Exception as error:  # properties and hooks of the user's own classes run in there
        reason = f"a value that failed to encode: {type(error).__name__}: {error}"
    raise TypeError(f"{_owner(task)} returned {reason}")


def _owner(task: str) -> str:
    return f"task `{task}`" if task else "the task"


def _simplify(value: Any) -> Any:
    """What msgspec calls for a type it does not know: the same value in types that it does."""
    for method in ("tolist", "item"):
        convert = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            simple = convert()
            if type(simple) is not type(value):
                return simple
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Sequence, AbstractSet, ValuesView)):
        return list(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise _CannotEncode(_complaint(value))


def _complaint(value: Any) -> str:
    cls = type(value)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
    hint = {
        "coroutine": "declare the task with `async def`, or await it",
        "generator": "return a list",
    }.get(cls.__name__, "return numbers, text, bytes, lists, maps or a dataclass")
    return f"an object of type `{name}`, which cannot be sent; {hint}"


_encode = msgspec.msgpack.Encoder(enc_hook=_simplify).encode
