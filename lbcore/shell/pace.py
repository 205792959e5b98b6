"""How fast a frame that a client has begun has to come in.

A frame is whole within ``FRAME_S``, or at least ``BYTES_PER_S`` of it come; else its connection is
closed: it would hold a place, and what has come of the frame, for ever.
"""

from __future__ import annotations

from typing import Final

FRAME_S: Final = 5.0
BYTES_PER_S: Final = 1024
#: how often it is looked
CHECK_S: Final = 1.0


class Pace:
    """Watches the unfinished frame of one connection."""

    __slots__ = ("_mark",)

    def __init__(self) -> None:
        #: which frame, how much of it, when
        self._mark: tuple[int, int, float] | None = None

    def is_stuck(self, progress: tuple[int, int] | None, now: float) -> bool:
        """Take a look; ``progress`` as ``FrameBuffer`` has it, or None when nobody is to blame."""
        if progress is None:
            self._mark = None
            return False
        frame, count = progress
        if self._mark is None or self._mark[0] != frame:
            self._mark = (frame, count, now)
            return False
        _, before, since = self._mark
        if now - since < FRAME_S:
            return False
        self._mark = (frame, count, now)
        return count - before < FRAME_S * BYTES_PER_S

    def forget(self) -> None:
        """We did not run for a while: nobody was slow but ourselves."""
        self._mark = None
