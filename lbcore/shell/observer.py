"""What a supervisor shows to whoever started it; ``cli/`` decides how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .state import SystemState


class Observer(Protocol):
    """Whoever watches for a person: a terminal, or the ``up -d`` that waits."""

    def show_ready(self, state: SystemState) -> None:
        """Everything runs for the first time."""

    def show_note(self, level: str, text: str) -> None:
        """Something happened that is also in the log."""

    def show_stats(self, state: SystemState, stats: Mapping[str, Any]) -> None:
        """The broker's figures of the last second."""

    def is_gone(self) -> bool:
        """Whether the terminal was closed."""

    def release(self) -> None:
        """In a fork: close what the observer holds."""
