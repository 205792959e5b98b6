"""The tasks of the simulation: how long each takes, what it does to its worker, its retries."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple


class Deed(IntEnum):
    """What running a task does."""

    #: takes its time and returns its argument
    ECHO = 0
    #: raises
    FAIL = 1
    #: kills its worker, every time
    KILL = 2
    #: kills its worker the first time that it runs, in each second request
    FLAKY = 3
    #: never returns by itself
    HANG = 4


class Profile(NamedTuple):
    """One task."""

    name: str
    #: mean seconds on an idle worker of speed 1
    service_s: float
    deed: Deed = Deed.ECHO
    idempotent: bool = True
    #: takes so little that many run between two events of the simulation
    tiny: bool = False
    max_attempts: int = 0

    def describe(self) -> dict[str, Any]:
        """What a worker says of it in its greeting."""
        spec: dict[str, Any] = {"name": self.name, "aliases": [], "cost": self.service_s}
        spec["idempotent"] = self.idempotent
        if self.max_attempts:
            spec["max_attempts"] = self.max_attempts
        return spec


PROFILES: Final = (
    Profile("tiny", 4e-6, tiny=True),
    Profile("small", 20e-6, tiny=True),
    Profile("short", 1e-3),
    Profile("medium", 10e-3),
    Profile("long", 0.3),
    Profile("once", 2e-3, idempotent=False),
    Profile("once_tiny", 20e-6, idempotent=False),
    Profile("fail", 1e-4, Deed.FAIL),
    Profile("poison", 1e-3, Deed.KILL),
    Profile("poison_once", 1e-3, Deed.KILL, idempotent=False),
    Profile("poison_twice", 1e-3, Deed.KILL, max_attempts=2),
    Profile("flaky", 1e-3, Deed.FLAKY),
    Profile("hang", 1.0, Deed.HANG),
    Profile("hang_once", 1.0, Deed.HANG, idempotent=False),
)

BY_NAME: Final = {profile.name: profile for profile in PROFILES}
#: profile by place, and its place by name: the oracles keep one byte for a task
PLACES: Final = {profile.name: place for place, profile in enumerate(PROFILES)}
