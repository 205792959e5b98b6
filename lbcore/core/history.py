"""What workers have begun and must not begin again, as the broker may read it.

Before a worker begins a request of a task that must not run twice it writes the id where it
outlives both processes (``shell/shared.py``).  The core is handed the side that reads.
"""

from __future__ import annotations

from typing import Final, Protocol


class History(Protocol):
    """The ids of what must not run twice and was begun, of all workers."""

    @property
    def began_at(self) -> float:
        """Nothing that happened before this moment (monotonic) is known."""
        ...

    def find(self, request_id: int, /) -> int | None:
        """The number of the worker that began the request; None when it is not written.

        A negative number stands for a worker that the fleet has no longer.
        """
        ...

    def overwritten_since(self, moment: float, /) -> bool:
        """Whether anything written since that moment (monotonic) may be gone again."""
        ...


class _NoHistory:
    """Nothing is known of what was begun: whatever is asked for may have run."""

    began_at = 0.0

    def find(self, request_id: int) -> int | None:
        """Nowhere."""
        return None

    def overwritten_since(self, moment: float) -> bool:
        """It may have been."""
        return True


NO_HISTORY: Final[History] = _NoHistory()
