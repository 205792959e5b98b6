"""Both sides of the handshake: who has the key gets in, nobody else, whatever is sent."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import HEADER_BYTES, Kind, control_frame, decode_body
from lbcore.core.handshake import (
    HANDSHAKE_BYTES_MAX,
    Initiator,
    Responder,
    WrongProof,
    client_ticket,
    is_ticket,
    resumed_number,
    role_key,
)
from tests.core import wire_spec

SECRET = bytes(range(32))
KEYS = {role: role_key(SECRET, role) for role in ("client", "admin")}
NONCES = (b"i" * 16, b"r" * 16)


def sides(role: str = "client", key: bytes | None = None, **hello: Any) -> tuple[Any, Any]:
    """An initiator and a responder that have not met."""
    initiator = Initiator(key or KEYS[role], {"role": role, **hello}, NONCES[0])
    return initiator, Responder(KEYS, NONCES[1])


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The same bytes, cut at these places."""
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in pairwise(marks)]


@given(role=st.sampled_from(["client", "admin"]), cuts=st.lists(st.integers(0, 500), max_size=6))
def test_who_has_the_key_gets_in_wherever_the_stream_is_cut(role: str, cuts: list[int]) -> None:
    initiator, responder = sides(role, name="x" * 100)
    challenge = b"".join(map(responder.feed, in_pieces(initiator.greeting, cuts)))
    assert not responder.done
    # what follows the handshake in the same read is not lost
    proof = b"".join(map(initiator.feed, in_pieces(challenge, cuts)))
    assert initiator.done
    assert b"".join(map(responder.feed, in_pieces(proof, cuts))) == b""
    assert responder.done
    assert (responder.role, responder.hello["name"]) == (role, "x" * 100)
    assert initiator.rest == responder.rest == b""


def test_what_follows_the_last_frame_is_kept() -> None:
    initiator, responder = sides()
    proof = initiator.feed(responder.feed(initiator.greeting) + b"a welcome")
    assert initiator.rest == b"a welcome"
    responder.feed(proof + b"a request")
    assert responder.rest == b"a request"


def test_both_compute_what_the_page_says() -> None:
    initiator, responder = sides(name="demo")
    challenge = decode_body(responder.feed(initiator.greeting)[HEADER_BYTES:])
    hello, nonces = initiator.greeting[HEADER_BYTES:], NONCES[0] + NONCES[1]
    assert challenge["proof"] == wire_spec.proof(KEYS["client"], "responder", nonces, hello)


@pytest.mark.parametrize("key", [bytes(32), KEYS["admin"], SECRET, b""])
def test_each_finds_out_that_the_other_has_another_key(key: bytes) -> None:
    stranger = Initiator(key, {"role": "client"}, NONCES[0])
    _, responder = sides()
    challenge = responder.feed(stranger.greeting)
    with pytest.raises(WrongProof):
        stranger.feed(challenge)
    assert not stranger.done
    hello = stranger.greeting[HEADER_BYTES:]
    proof = wire_spec.proof(key, "initiator", NONCES[0] + NONCES[1], hello)
    with pytest.raises(WrongProof, match="the key of a client"):
        responder.feed(control_frame(Kind.PROOF, {"proof": proof}))
    assert not responder.done


def test_a_proof_is_good_for_one_connection_and_one_direction() -> None:
    initiator, responder = sides()
    challenge = responder.feed(initiator.greeting)
    proof = initiator.feed(challenge)
    again = Responder(KEYS, b"R" * 16)
    again.feed(initiator.greeting)
    with pytest.raises(WrongProof):
        again.feed(proof)
    # the other side's own proof, sent back to it
    mirror = Responder(KEYS, NONCES[1])
    shown = decode_body(mirror.feed(initiator.greeting)[HEADER_BYTES:])["proof"]
    with pytest.raises(WrongProof):
        mirror.feed(control_frame(Kind.PROOF, {"proof": shown}))


@pytest.mark.parametrize("change", [{"role": "admin"}, {"name": "other"}, {"resume": 1}, {}])
def test_all_that_was_said_is_proven(change: dict[str, Any]) -> None:
    """Somebody in between changes the greeting, and passes everything else on."""
    said = {"role": "client", "name": "me"}
    initiator = Initiator(KEYS["client"], said, NONCES[0])
    changed = Initiator(KEYS["client"], {**said, **change}, NONCES[0])
    responder = Responder({"client": KEYS["client"], "admin": KEYS["client"]}, NONCES[1])
    challenge = responder.feed(changed.greeting)
    if not change:
        assert initiator.feed(challenge)
        return
    with pytest.raises(WrongProof):
        initiator.feed(challenge)


def test_the_binding_is_proven() -> None:
    for bindings, fit in [((b"a", b"a"), True), ((b"a", b"b"), False), ((b"", b"b"), False)]:
        initiator = Initiator(KEYS["client"], {"role": "client"}, NONCES[0], bindings[0])
        responder = Responder(KEYS, NONCES[1], bindings[1])
        challenge = responder.feed(initiator.greeting)
        if fit:
            responder.feed(initiator.feed(challenge))
            assert responder.done
        else:
            with pytest.raises(WrongProof):
                initiator.feed(challenge)


def test_a_refusal_has_its_reason() -> None:
    initiator, _ = sides()
    with pytest.raises(ProtocolError, match="too many connections"):
        initiator.feed(control_frame(Kind.GOODBYE, "too many connections"))


def test_too_much_is_seen_before_it_is_there() -> None:
    _, responder = sides()
    header = (HANDSHAKE_BYTES_MAX + 1).to_bytes(4, "little") + bytes([Kind.HELLO])
    with pytest.raises(ProtocolError, match="the limit is"):
        responder.feed(header + bytes(19))
    _, responder = sides()
    with pytest.raises(ProtocolError, match="no HELLO"):
        responder.feed(b"GET /")


HOSTILE = st.one_of(
    st.binary(max_size=300),
    st.builds(
        control_frame,
        st.sampled_from([Kind.HELLO, Kind.CHALLENGE, Kind.PROOF, Kind.GOODBYE]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 9) | st.binary(max_size=40) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["lb", "role", "nonce", "proof", "x"]), inner, max_size=4
                )
            ),
        ),
    ),
)


@given(reads=st.lists(HOSTILE, max_size=4), greeted=st.booleans())
def test_nobody_gets_in_by_chance(reads: list[bytes], greeted: bool) -> None:
    initiator, responder = sides()
    if greeted:
        responder.feed(initiator.greeting)
    for side in (initiator, responder):
        try:
            for data in reads:
                side.feed(data)
        except ProtocolError:
            pass
        assert not side.done
        assert len(side.rest) <= 4 * (HANDSHAKE_BYTES_MAX + HEADER_BYTES)


def test_a_ticket_is_for_one_number_of_one_system() -> None:
    ticket = client_ticket(SECRET, 7)
    assert is_ticket(SECRET, 7, ticket)
    for secret, number, shown in [
        (SECRET, 8, ticket),
        (bytes(32), 7, ticket),
        (SECRET, 7, ticket[:-1]),
        (SECRET, 7, b""),
        (SECRET, 7, ticket.hex()),
        (SECRET, 0, client_ticket(SECRET, 0)),
        (SECRET, -1, ticket),
        (SECRET, 1 << 32, ticket),
        (SECRET, "7", ticket),
        (SECRET, True, client_ticket(SECRET, 1)),
    ]:
        assert not is_ticket(secret, number, shown), (number, shown)
    assert resumed_number(SECRET, {"resume": {"client": 7, "ticket": ticket}}) == 7
    wrong: list[object] = [None, 7, [], {}, {"client": 7}, {"client": 8, "ticket": ticket}]
    for resume in wrong:
        assert resumed_number(SECRET, {"resume": resume}) == 0
    assert resumed_number(SECRET, {}) == 0


def test_keys_of_roles_differ() -> None:
    keys = {role_key(SECRET, owner) for owner in ("client", "admin", "worker")}
    assert len(keys) == 3
    assert all(len(key) == 32 for key in keys)
    assert role_key(SECRET, "client") == wire_spec.key_of(SECRET, "client")
