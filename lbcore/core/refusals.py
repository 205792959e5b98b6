"""How many refusals are told of in the log, and how fast wrong proofs are answered.

Pure: the time is handed in.  Whoever floods a socket with garbage must not fill the disk with lines
about it, nor get an answer to more than a few guesses a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

#: so many lines at once, and a second, tell of connections that were refused
LINES_PER_S: Final = 10
#: so many wrong proofs of one peer are answered at once, and a second
PROOFS_PER_S: Final = 5
#: no wrong proof waits longer for its answer
PROOF_WAIT_MAX_S: Final = 10.0
#: peers that are remembered; beyond it the one forgotten is the one that failed longest ago
PEERS_MAX: Final = 1024


class Allowance:
    """So many a second, and as many at once after a quiet second."""

    __slots__ = ("_at", "_left", "_per_s")

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Take one; how long to wait for it.  Each taken one makes the next wait longer."""
        if now > self._at:
            self._left = min(float(self._per_s), self._left + (now - self._at) * self._per_s)
            self._at = now
        self._left -= 1.0
        return max(0.0, -self._left / self._per_s)

    def take(self, now: float) -> bool:
        """Take one if it is there at once; False, and nothing taken, if not."""
        if self.wait_s(now) <= 0.0:
            return True
        self._left += 1.0
        return False


class RefusalLog:
    """Tells of each refused connection, and of a flood of them how many there were."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._allowance = Allowance(LINES_PER_S)
        self._untold = 0

    def note(self, text: str, now: float) -> None:
        """One connection was refused."""
        if self._allowance.take(now):
            self.flush()
            self._write(text)
        else:
            self._untold += 1

    def flush(self) -> None:
        """Tell of what was not told; for a moment at which there is time for it."""
        if self._untold:
            self._write(f"{self._untold} more connections were refused since the line above")
            self._untold = 0


class ProofThrottle:
    """How long each wrong proof of a peer waits for its answer."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, Allowance] = OrderedDict()

    def wait_s(self, peer: str, now: float) -> float:
        """One more wrong proof; seconds until it may be answered."""
        allowance = self._peers.pop(peer, None) or Allowance(PROOFS_PER_S)
        self._peers[peer] = allowance
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)
        return min(PROOF_WAIT_MAX_S, allowance.wait_s(now))
