"""Reads the name of a policy: one that is built in, or a class of the user's own."""

from __future__ import annotations

from .problems import KeyPath, Problems
from .readers import MODULE, Choice, has_strange_characters


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
