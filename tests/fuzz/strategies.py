"""Streams of frames that are nearly right, for hypothesis."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbcore.core.frames import REQUEST_HEADER, Kind
from tests.fuzz.targets import CLIENT, LIMIT, TARGETS

_encode = msgspec.msgpack.Encoder().encode

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
bodies = st.one_of(st.just(b""), st.binary(max_size=60), values.map(_encode))
kinds = st.one_of(st.sampled_from([int(kind) for kind in Kind]), st.integers(0, 255))


def ids_of(client: int) -> st.SearchStrategy[int]:
    """Ids of a client, and of nobody."""
    own = st.integers(0, 8).map(lambda low: client << 32 | low)
    return st.one_of(own, st.integers(0, (1 << 64) - 1))


@st.composite
def frames(draw: st.DrawFn, client: int = CLIENT, tasks: tuple[int, ...] = (0, 3, 4)) -> bytes:
    """One frame, whose size may lie."""
    body = draw(bodies)
    size = draw(
        st.one_of(
            st.just(len(body)),
            st.sampled_from([0, len(body) + 1, LIMIT, LIMIT + 1, 0x7FFFFFFF, 0xFFFFFFFF]),
        )
    )
    header = REQUEST_HEADER.pack(
        size,
        draw(kinds),
        draw(st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 255])),
        draw(st.sampled_from([*tasks, 65535])),
        draw(ids_of(client)),
        draw(st.sampled_from([0, 0, 1, 0xFFFFFFFF])),
        draw(st.sampled_from([0, 0, 1, 0xFF, 0xFFFFFFFF])),
    )
    return header + body


def streams_of(*numbers: Any) -> st.SearchStrategy[bytes]:
    """Some frames, the last of them perhaps cut; the first byte is for ``pieces``."""
    return st.builds(
        lambda step, parts, end: bytes([step]) + b"".join(parts)[: -end or None],
        st.one_of(st.sampled_from([0, 1, 23, 24, 25]), st.integers(0, 255)),
        st.lists(frames(*numbers), max_size=6),
        st.integers(0, 30),
    )


streams = streams_of()


def check_target(name: str, examples: int) -> None:
    """Throw so many streams, and plain noise, at a target."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.one_of(streams, bodies, st.binary(max_size=200)))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
