"""Every kept input again, and a short run of each engine."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from lbcore.core.frames import HEADER_BYTES, REQUEST_HEADER, SMALL_CHUNK_BYTES, FrameBuffer, Kind
from tests.fuzz import engines
from tests.fuzz.strategies import check_target
from tests.fuzz.targets import TARGETS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
KEPT = [
    (target, path.stem, path.read_bytes())
    for target in sorted(TARGETS)
    for path in sorted((engines.CORPUS / target).glob("*.bin"))
]
each_target = pytest.mark.parametrize("name", sorted(TARGETS))


@pytest.mark.parametrize(
    ("target", "data"),
    [pytest.param(target, data, id=f"{target}-{name}") for target, name, data in KEPT],
)
def test_a_kept_input_breaks_nothing(target: str, data: bytes) -> None:
    TARGETS[target](data)


def test_there_is_a_corpus_for_each_target_and_it_is_small() -> None:
    assert {target for target, _, _ in KEPT} == set(TARGETS)
    assert sum(len(data) for _, _, data in KEPT) < 200_000
    strangers = [path for path in engines.CORPUS.glob("*/*") if path.suffix != ".bin"]
    assert not strangers, "an engine left something here"


@each_target
def test_plain_mutations_of_the_corpus(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert engines.run_plain([name], 1500, seed=1) == 0, capsys.readouterr().out


@each_target
def test_streams_of_frames_that_are_nearly_right(name: str) -> None:
    check_target(name, 150)


@pytest.mark.parametrize("name", ["frame_buffer", "requests"])
def test_atheris_finds_nothing_either(name: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it is optional, and for this engine only")
    options = ["--engine=atheris", f"--target={name}", "--inputs=2000", "--seed=1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.engines", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Done 2000" in done.stderr


def test_a_finding_is_kept_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(data: bytes) -> None:
        assert len(data) % 7 != 3, "found"

    monkeypatch.setitem(TARGETS, "breaks", breaks)
    monkeypatch.setattr(engines, "CORPUS", tmp_path)
    assert engines.run_plain(["breaks"], 100_000, seed=3) == 21, "it ends when there are many"
    assert "AssertionError: found" in capsys.readouterr().out
    kept = engines.corpus_of("breaks")
    assert kept
    assert all(len(data) % 7 == 3 for data in kept)


def test_mutations_are_the_same_for_the_same_seed() -> None:
    seeds = engines.corpus_of("requests")
    one, other = (
        [engines.mutated(rng, seeds) for _ in range(50)] for rng in map(random.Random, (5, 5))
    )
    assert one == other


def test_a_frame_that_comes_byte_by_byte_takes_no_object_for_each() -> None:
    count = 200_000
    buffer = FrameBuffer(1 << 20)
    header = REQUEST_HEADER.pack(count, Kind.REQUEST, 0, 0, 1, 0, 0)
    tracemalloc.start()
    buffer.keep(header)
    for number in range(count - 1):
        assert buffer.join(bytes([number & 0xFF])) == b""
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * count + 10 * SMALL_CHUNK_BYTES
    whole = buffer.join(b"!")
    assert len(whole) == HEADER_BYTES + count
    assert whole[-2:] == bytes([count - 2 & 0xFF]) + b"!"
