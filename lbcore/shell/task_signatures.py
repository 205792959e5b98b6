"""What a function's signature says: its annotations as types, and its text for people.

Called by ``task_arguments`` and ``tasks``.  Annotations and defaults are the user's own code, so
nothing here fails on them: what cannot be evaluated is shown as it was written, or left out.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Final

DEFAULT_CHARACTERS_MAX: Final = 24

#: the modules and classes before a name, such as ``collections.abc.``; what is quoted stays
_QUALIFIER: Final = re.compile(r"""('[^']*'|"[^"]*")|(?:[\w<>]+\.)+(?=\w)""")


def resolved_hints(function: Callable[..., Any], *, extras: bool) -> dict[str, Any]:
    """The annotations of ``function`` that can be evaluated; those that cannot are left out.

    One bad annotation (a name imported only for the type checker) costs only its own check.
    """
    unwrapped = inspect.unwrap(function)
    try:
        annotations = dict(inspect.get_annotations(unwrapped))
    except Exception:  # annotations are arbitrary code on Python 3.14
        return {}
    hints: dict[str, Any] = {}
    for name, annotation in annotations.items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        scope = getattr(unwrapped, "__globals__", {})
        try:
            hints.update(typing.get_type_hints(holder, scope, include_extras=extras))
        except Exception:  # a string annotation can raise anything; no check is the fallback
            continue
    return hints


class _Verbatim(str):
    """Text that ``inspect.Signature`` prints without quotes."""

    def __repr__(self) -> str:
        return str(self)


def signature_text(function: Callable[..., Any]) -> str:
    """The parameters as a person would write them: ``(size: int = 10000)``."""
    signature = inspect.signature(function)
    hints = resolved_hints(function, extras=False)

    def shown(name: str, annotation: Any) -> Any:
        if annotation is inspect.Parameter.empty:
            return annotation
        annotation = hints.get(name, annotation)
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        return _Verbatim(_QUALIFIER.sub(lambda match: match[1] or "", text))

    parameters = [
        parameter.replace(
            annotation=shown(parameter.name, parameter.annotation),
            default=_shown_default(parameter.default),
        )
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters))


def _shown_default(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return default
    try:
        text = repr(default)
    except Exception:  # a default's class is the user's own
        text = "..."
    return _Verbatim(text if len(text) <= DEFAULT_CHARACTERS_MAX else "...")


def summary_of(function: Callable[..., Any]) -> str:
    """The first paragraph of the docstring, on one line."""
    paragraph = (inspect.getdoc(function) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())
