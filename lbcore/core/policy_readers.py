"""Reads what the ``policy`` section takes: a policy's name, switches, and a number or auto."""

from __future__ import annotations

from .problems import KeyPath, Problems
from .readers import MODULE, Choice, Whole, has_strange_characters, is_whole

#: stands for "as many as it takes"
AUTO = -1


class PolicyName(Choice):
    """One of the policies that are built in, or a class in a module or a file."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.expected += ", or a class of yours, such as my_policies.py:MyPolicy"

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        if not isinstance(value, str) or ":" not in value:
            return super().read(problems, path, value)
        module, _, name = value.strip().rpartition(":")
        is_file = module.endswith(".py") and not has_strange_characters(module)
        if (
            name.isidentifier()
            and not module.startswith("~")
            and (is_file or MODULE.fullmatch(module))
        ):
            return f"{module}:{name}"
        problems.refuse(path, self.expected, value)
        return None


class Switch:
    """On or off."""

    expected = "true or false"

    def read(self, problems: Problems, path: KeyPath, value: object) -> bool | None:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("on", "off", "yes", "no", "true", "false"):
            return value.lower() in ("on", "yes", "true")
        problems.refuse(path, self.expected, value)
        return None


class WholeOrAuto(Whole):
    """A whole number, or the word auto, which is read as -1."""

    def __init__(self, noun: str, low: int, high: int) -> None:
        super().__init__(noun, low, high)
        self.expected += ", or auto"

    def read(self, problems: Problems, path: KeyPath, value: object) -> int | None:
        if value == "auto" or (value == AUTO and is_whole(value)):
            return AUTO
        return super().read(problems, path, value)
