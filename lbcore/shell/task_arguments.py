"""The arguments of a task: a request's body in, checked positional and keyword arguments out.

A task's signature is its contract.  From it and its annotations one decoder is built, so that the
usual request is decoded and checked in C in one step; whatever that step refuses is looked at once
more, slowly, to say exactly what is wrong.  Called by ``Task`` in ``tasks.py`` and by nobody else.
Never calls the task's function, and never reports an error that the function raised itself.

On the wire: an empty body is no arguments; a msgpack map is keyword arguments; a msgpack array
``[positional, keywords]`` is both.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from lbcore.core.errors import BadArguments

from .task_signatures import resolved_hints

Bound = tuple[tuple[Any, ...], dict[str, Any]]

#: first byte of every ``[positional, keywords]`` body: a msgpack array of two
PAIR: Final = 0x92
#: text that came from a client is cut to this in a message
NAME_CHARACTERS_MAX: Final = 40
MESSAGE_CHARACTERS_MAX: Final = 300
PROBLEMS_MAX: Final = 5

#: default values that a struct can hold by itself; any other is handed out by a factory, so that
#: the function gets the very object it would get from Python
_PLAIN: Final = (bool, int, float, str, bytes, type(None))
#: annotations whose inner parts msgspec builds itself; a foreign class in there has its own error
_OPAQUE: Final = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.NamedTupleType,
    msgspec.inspect.TypedDictType,
)
_BY_POSITION: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: what msgspec raises for bytes that a peer made up
_UNDECODABLE: Final = (msgspec.DecodeError, RecursionError, TypeError, ValueError, OverflowError)

_SHAPE: Final = "arguments must be a map, or an array of [positional list, keyword map]"
_values_of = msgspec.structs.astuple
_decode_names = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_pair = msgspec.msgpack.Decoder(tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]).decode


class ArgumentError(BadArguments):
    """The binding of arguments failed; the task did not start.

    A class of its own so that a ``BadArguments`` which the task itself raised (by calling another
    task, say) is told apart: that one is the task's failure.
    """

    @property
    def kind(self) -> str:
        """On the wire and in logs it is a plain ``BadArguments``."""
        return BadArguments.__name__


class ArgumentBinder:
    """Decodes and checks the bodies of requests for one function."""

    __slots__ = (
        "_by_name",
        "_by_position",
        "_decode_named",
        "_decode_positional",
        "_decoders",
        "_keyword_names",
        "_named_rest",
        "_parameters",
        "_rest",
        "_split",
        "_task",
        "needs_arguments",
    )

    def __init__(self, task: str, function: Callable[..., Any]) -> None:
        self._task = task
        self._parameters = inspect.signature(function).parameters
        parameters = list(self._parameters.values())
        kinds = {parameter.kind: parameter.name for parameter in parameters}
        #: names of ``*args`` and ``**kwargs``, empty when the function has none
        self._rest = kinds.get(inspect.Parameter.VAR_POSITIONAL, "")
        self._named_rest = kinds.get(inspect.Parameter.VAR_KEYWORD, "")
        self._by_position = [item.name for item in parameters if item.kind in _BY_POSITION]
        self._by_name = {item.name for item in parameters if item.kind in _BY_NAME}
        hints = _checkable_hints(function, parameters)
        self._decoders = {
            name: msgspec.msgpack.Decoder(hint).decode for name, hint in hints.items()
        }
        #: whether a call without any argument is an error
        self.needs_arguments = any(map(_is_required, parameters))
        self._keyword_names = [
            item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        #: how many values of the named struct go by position; None when all do
        self._split = len(parameters) - len(self._keyword_names) if self._keyword_names else None
        self._decode_named = _named_decoder(parameters, hints)
        self._decode_positional = _positional_decoder(parameters, hints)

    def bind(self, body: bytes) -> Bound:
        """The arguments of one request, as the function takes them.

        Raises ``ArgumentError`` when they do not fit the signature or are not msgpack.
        """
        if not body:
            return self._bind_empty()
        try:
            if body[0] == PAIR:
                return _values_of(self._decode_positional(body)[0]), {}
            values = _values_of(self._decode_named(body))
        except _UNDECODABLE:
            return self._bind_slowly(body)
        split = self._split
        if split is None:
            return values, {}
        return values[:split], dict(zip(self._keyword_names, values[split:], strict=True))

    def _bind_empty(self) -> Bound:
        if self.needs_arguments:
            raise self._error(self._mismatches((), {}))
        return (), {}

    def _bind_slowly(self, body: bytes) -> Bound:
        """Every shape that the two decoders do not cover, and every error."""
        positional, named = self._split_body(body)
        problems = self._mismatches(positional, named)
        if problems:
            raise self._error(problems)
        split = len(self._by_position)
        values = [
            self._decode(name, name, raw, problems)
            for name, raw in zip(self._by_position, positional, strict=False)
        ]
        values += [
            self._decode(self._rest, f"{self._rest}[{index}]", raw, problems)
            for index, raw in enumerate(positional[split:])
        ]
        keywords = {
            name: self._decode(
                name if name in self._by_name else self._named_rest, _clip(name), raw, problems
            )
            for name, raw in named.items()
        }
        if problems:
            raise self._error(problems)
        return tuple(values), keywords

    def _split_body(self, body: bytes) -> tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]:
        lead = body[0]
        try:
            if 0x80 <= lead <= 0x8F or lead in (0xDE, 0xDF):
                return [], _decode_names(body)
            if 0x90 <= lead <= 0x9F or lead in (0xDC, 0xDD):
                return _decode_pair(body)
        except msgspec.ValidationError as error:
            reason = "argument names must be text" if "`key`" in str(error) else _SHAPE
            raise self._error([reason]) from None
        except _UNDECODABLE as error:
            raise self._error([f"the arguments are not valid msgpack: {error}"]) from None
        raise self._error([_SHAPE])

    def _decode(self, name: str, shown: str, raw: msgspec.Raw, problems: list[str]) -> Any:
        try:
            return self._decoders[name](raw)
        except msgspec.ValidationError as error:
            self._note(problems, _type_problem(shown, str(error)))
        except _UNDECODABLE as error:
            self._note(problems, f"{shown}: not valid msgpack: {error}")
        return None

    def _mismatches(self, positional: Iterable[Any], named: Mapping[str, Any]) -> list[str]:
        """What is wrong with the number and the names of the arguments, by Python's own rules."""
        given = len(list(positional))
        most = len(self._by_position)
        taken = set(self._by_position[:given])
        problems: list[str] = []
        if given > most and not self._rest:
            most_text = f"at most {most} argument{'s' * (most > 1)}" if most else "no arguments"
            problems.append(f"takes {most_text} by position, got {given}")
        for name in named:
            if name in self._by_name:
                if name in taken:
                    self._note(problems, f"{_clip(name)}: given twice, by position and by name")
            elif not self._named_rest:
                self._note(problems, self._unknown(name, sorted(self._by_name - taken)))
        problems.extend(
            f"missing argument `{item.name}`"
            for item in self._parameters.values()
            if _is_required(item)
            and item.name not in taken
            and not (item.name in named and item.name in self._by_name)
        )
        return problems

    def _unknown(self, name: str, known: list[str]) -> str:
        if name in self._parameters and self._parameters[name].kind not in _VARIADIC:
            return f"`{name}` can only be given by position"
        if not self._parameters:
            return f"unknown argument `{_clip(name)}`; it takes none"
        import difflib

        near = difflib.get_close_matches(name[:NAME_CHARACTERS_MAX], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"it takes {self._signature_names()}"
        return f"unknown argument `{_clip(name)}` ({hint})"

    def _signature_names(self) -> str:
        return ", ".join(f"`{name}`" for name in self._parameters)

    def _note(self, problems: list[str], problem: str) -> None:
        """Add a problem.  Enough is enough: a request may hold a million mistakes."""
        if len(problems) >= PROBLEMS_MAX:
            raise self._error([*problems, "and more"]) from None
        problems.append(problem)

    def _error(self, problems: Iterable[str]) -> ArgumentError:
        return ArgumentError(f"{self._task}: {'; '.join(problems)}")


def _checkable_hints(
    function: Callable[..., Any], parameters: Iterable[inspect.Parameter]
) -> dict[str, Any]:
    """The type that each parameter's value is checked against; ``Any`` where msgspec has no say."""
    resolved = resolved_hints(function, extras=True)
    hints: dict[str, Any] = {}
    for parameter in parameters:
        hint = resolved.get(parameter.name, Any)
        # What Python hands over by default may also be sent, as in ``size: int = None``.
        hint = typing.Optional[hint] if parameter.default is None else hint  # noqa: UP045
        hints[parameter.name] = hint if _is_checkable(hint) else Any
    return hints


def _is_checkable(hint: Any) -> bool:
    try:
        msgspec.msgpack.Decoder(hint)
        return not _has_foreign_class(msgspec.inspect.type_info(hint))
    except Exception:  # building a decoder runs the hooks of the user's own classes
        return False


def _has_foreign_class(info: Any) -> bool:
    if isinstance(info, msgspec.inspect.CustomType):
        return True
    if isinstance(info, _OPAQUE):
        return False
    if isinstance(info, tuple):
        return any(map(_has_foreign_class, info))
    if isinstance(info, msgspec.inspect.Type):
        return any(_has_foreign_class(getattr(info, name)) for name in info.__struct_fields__)
    return False


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in _VARIADIC


def _refuse(_body: bytes) -> Any:
    """In place of a decoder for signatures that only the slow way can bind."""
    raise msgspec.DecodeError


def _named_decoder(
    parameters: list[inspect.Parameter], hints: Mapping[str, Any]
) -> Callable[[bytes], Any]:
    if any(parameter.kind not in _BY_NAME for parameter in parameters):
        return _refuse
    arguments = _arguments_struct(parameters, hints, array_like=False)
    return msgspec.msgpack.Decoder(arguments).decode


def _positional_decoder(
    parameters: list[inspect.Parameter], hints: Mapping[str, Any]
) -> Callable[[bytes], Any]:
    kinds = {parameter.kind for parameter in parameters}
    named_only = [
        parameter
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and _is_required(parameter)
    ]
    if named_only or inspect.Parameter.VAR_POSITIONAL in kinds:
        return _refuse
    by_position = [parameter for parameter in parameters if parameter.kind in _BY_POSITION]
    arguments = _arguments_struct(by_position, hints, array_like=True)
    nothing = _arguments_struct([], hints, array_like=False)
    return msgspec.msgpack.Decoder(tuple[arguments, nothing]).decode  # type: ignore[valid-type]


def _arguments_struct(
    parameters: Iterable[inspect.Parameter], hints: Mapping[str, Any], *, array_like: bool
) -> type[msgspec.Struct]:
    """A struct with one field for each parameter, in their order."""
    fields: list[tuple[str, Any, Any]] = []
    names: dict[str, str] = {}
    for index, parameter in enumerate(parameters):
        # A parameter may have a name that a struct's field cannot have.
        field = f"argument_{index}"
        names[field] = parameter.name
        fields.append((field, hints[parameter.name], _field_default(parameter.default)))
    return msgspec.defstruct(
        "Arguments",
        fields,
        rename=names,
        array_like=array_like,
        forbid_unknown_fields=True,
        gc=False,
        kw_only=not array_like,
    )


def _field_default(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return msgspec.field()
    if type(default) in _PLAIN:
        return msgspec.field(default=default)
    return msgspec.field(default_factory=lambda: default)


def _type_problem(shown: str, message: str) -> str:
    """``Expected `int`, got `str` - at `$[3]``` as ``items[3]: expected `int`, got `str```."""
    message, _, path = message.partition(" - at ")
    inside = path.rpartition("`$")[2].removesuffix("`")
    where = f"{shown}{inside}" if not path.startswith("`key`") else f"a key of {shown}{inside}"
    return _clip(f"{where}: {message[:1].lower()}{message[1:]}", MESSAGE_CHARACTERS_MAX)


def _clip(text: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """Client text made harmless for a line of a message: printable, and not too long."""
    if len(text) > characters_max:
        text = text[: characters_max - 3] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]
