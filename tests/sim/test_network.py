"""Simulated connections: order, pieces, ends, cuts, and what the other side learns of them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from lbcore.sim.network import KEEPALIVE_S, End, connect, swizzle
from lbcore.sim.world import Process, World


class Peer(Process):
    """Writes down what it gets."""

    __slots__ = ("ended_at", "got", "reads")

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.got = b""
        self.reads = 0
        self.ended_at: float | None = None

    def hold(self, end: End) -> None:
        end.on_data = self._take
        end.on_end = self._note_end

    def _take(self, data: bytes) -> None:
        self.got += data
        self.reads += 1

    def _note_end(self) -> None:
        assert self.ended_at is None, "it ends twice"
        self.ended_at = self.world.now


class Pair:
    """Two processes and a connection."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.left, self.right = Peer(self.world, "left"), Peer(self.world, "right")
        self.near, self.far = connect(self.world, self.left, self.right, "a pair")
        self.left.hold(self.near)
        self.right.hold(self.far)

    def run(self, seconds: float = 1.0) -> None:
        self.world.run(self.world.now + seconds)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_arrives_in_order(seed: int) -> None:
    pair = Pair(seed)
    for number in range(100):
        pair.near.write(b"%3d" % number)
        pair.run(0.0001 * pair.world.random.random())
    pair.run()
    assert pair.right.got == b"".join(b"%3d" % number for number in range(100))
    assert 1 < pair.right.reads < 100


def test_an_end_comes_after_what_was_written() -> None:
    pair = Pair()
    pair.near.write(b"last words")
    pair.near.close()
    assert pair.far.has_ended
    pair.run()
    assert pair.right.got == b"last words"
    assert pair.right.ended_at is not None
    assert pair.left.ended_at is None


def test_a_connection_in_a_backlog_waits_for_a_process() -> None:
    world = World(1)
    left, right = Peer(world, "left"), Peer(world, "right")
    near, far = connect(world, left, None, "early")
    near.write(b"hello")
    world.run(world.now + 1.0)
    right.hold(far)
    far.attach(right)
    world.run(world.now + 1.0)
    assert right.got == b"hello"


def test_a_cut_leaves_a_prefix_of_any_length_and_both_learn_of_it() -> None:
    lengths = set()
    for seed in range(60):
        pair = Pair(seed)
        pair.near.write(b"0123456789")
        pair.near.cut()
        pair.near.write(b"nobody")
        pair.run()
        assert b"0123456789".startswith(pair.right.got)
        lengths.add(len(pair.right.got))
        assert pair.left.ended_at is not None
        assert pair.right.ended_at is not None
    assert len(lengths) > 8
    assert {0, 10} <= lengths


def test_of_a_half_open_connection_one_side_learns_late() -> None:
    pair = Pair()
    began = pair.world.now
    pair.near.half_open()
    assert pair.far.write(b"into the void")
    pair.run(KEEPALIVE_S + 1.0)
    assert pair.left.got == pair.right.got == b""
    assert pair.left.ended_at is not None
    assert pair.left.ended_at < began + 0.1
    assert pair.right.ended_at is not None
    assert pair.right.ended_at >= began + KEEPALIVE_S


def test_a_clogged_end_gets_everything_later_and_in_order() -> None:
    pair = Pair()
    pair.far.clog(pair.world.now + 0.5)
    pair.near.write(b"one ")
    pair.run(0.4)
    pair.near.write(b"two")
    assert pair.right.got == b""
    pair.run()
    assert pair.right.got == b"one two"


def test_healing_lets_what_is_clogged_go() -> None:
    pair = Pair()
    pair.far.clog(pair.world.now + 500.0)
    pair.near.write(b"late")
    pair.far.heal()
    pair.run()
    assert pair.right.got == b"late"


def test_a_shredded_end_gets_tiny_pieces() -> None:
    pair = Pair()
    pair.far.shred(pair.world.now + 1.0)
    pair.near.write(bytes(range(200)))
    pair.run(2.0)
    assert pair.right.got == bytes(range(200))
    assert pair.right.reads > 5


def test_a_process_that_stands_still_reads_later() -> None:
    pair = Pair()
    pair.right.freeze(pair.world.now + 0.5)
    pair.near.write(b"hello")
    pair.run(0.4)
    assert pair.right.got == b""
    pair.run()
    assert pair.right.got == b"hello"


def test_a_side_that_does_not_read_leaves_it_there() -> None:
    pair = Pair()
    pair.far.reading = False
    pair.near.write(b"hello")
    pair.near.close()
    pair.run()
    assert pair.far.unread == 5
    assert pair.far.read() == b"hello"
    assert pair.right.ended_at is None
    pair.far.resume()
    pair.run()
    assert pair.right.ended_at is not None


def test_writing_to_one_who_is_known_to_be_gone_fails_sometimes() -> None:
    pair = Pair()
    pair.far.close()
    assert {pair.near.write(b"x") for _ in range(50)} == {True, False}
    pair.run()
    assert not pair.near.write(b"x")


def test_swizzled_links_are_let_go_in_another_order() -> None:
    pairs = [Pair(seed) for seed in range(6)]
    world = pairs[0].world
    ends = [connect(world, Peer(world, "a"), Peer(world, "b"), "x")[1] for _ in pairs]
    swizzle(world, Random(3), ends, 1.0)
    world.run(world.now + 0.6)
    order = sorted(range(len(ends)), key=lambda number: ends[number].clogged_until)
    assert all(end.clogged_until > 0.0 for end in ends)
    assert order != sorted(order)


def test_the_clock_leaps_and_everything_due_is_late() -> None:
    world = World(1)
    seen: list[Any] = []
    begin = world.now
    world.at(begin + 1.0, lambda: seen.append(world.now - begin))
    world.at(begin + 9.0, lambda: seen.append(world.now - begin))
    world.leap(5.0)
    world.run(begin + 20.0)
    assert seen == [5.0, 9.0]


def test_a_dead_process_does_nothing_more() -> None:
    world = World(1)
    seen: list[Any] = []
    peer = Peer(world, "peer")
    peer.later(1.0, seen.append, "alive")
    peer.later(3.0, seen.append, "dead")
    world.run(world.now + 2.0)
    peer.alive = False
    world.run(world.now + 2.0)
    assert seen == ["alive"]
