"""What the broker keeps of one client."""

from __future__ import annotations

from .frames import FrameBuffer


class ClientRecord:
    """One client, connected or *away*: its connection broke and it may come back."""

    __slots__ = (
        "accepted",
        "away_until",
        "buffer",
        "in_flight",
        "kept",
        "kept_bytes",
        "known",
        "known_until",
        "name",
        "number",
        "paused",
        "rights",
    )

    def __init__(self, number: int, name: str, buffer: FrameBuffer, rights: str = "client") -> None:
        self.number = number
        self.name = name
        self.buffer = buffer
        #: what it may ask for: "client" or "admin"
        self.rights = rights
        #: requests accepted and not yet answered
        self.in_flight = 0
        self.accepted = 0
        #: it does not take its answers: nothing of it is started until it does
        self.paused = False
        #: answers that came while it was away, whole frames
        self.kept: list[bytes] = []
        self.kept_bytes = 0
        #: ids that were here when it came back: it sends them again, which means nothing
        self.known: set[int] = set()
        #: when it counts as gone if it is away, and when ``known`` is dropped if it is not
        self.away_until = self.known_until = 0.0
