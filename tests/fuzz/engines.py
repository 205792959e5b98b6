"""Three ways to drive the targets, and a command for long runs.

    python -m tests.fuzz.engines --inputs 10000000          plain Python, no dependency, one seed
    python -m tests.fuzz.engines --engine atheris --inputs 1000000 --target requests
    python -m tests.fuzz.engines --engine hypothesis --inputs 20000

*plain* mutates the corpus by a seed: fast, and the same inputs again for the same seed.  *atheris*
is libFuzzer: it sees which branches an input reaches and keeps what reaches new ones.  *hypothesis*
builds frames from their fields and shrinks what it finds.  An input that breaks a target is written
to ``corpus/<target>/`` under the hash of its bytes; the replay test runs it from then on.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import importlib
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

CORPUS: Final = Path(__file__).with_name("corpus")
INPUT_BYTES_MAX: Final = 4096
#: numbers at which decoders go wrong
EDGES: Final = (0, 1, 23, 24, 25, 127, 128, 255, 256, 999, 1000, 1001, 65535, 1 << 20, 1 << 31)
LAST: Final = 0xFFFFFFFF


def corpus_of(target: str) -> list[bytes]:
    """The kept inputs of a target."""
    paths = sorted((CORPUS / target).glob("*.bin"))
    return [path.read_bytes() for path in paths]


def keep(target: str, data: bytes) -> Path:
    """Write down an input that broke something."""
    path = CORPUS / target / f"found-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """An input made from kept ones by one to four changes."""
    data = bytearray(seeds[int(rng.random() * len(seeds))])
    for _ in range(1 + int(rng.random() * 4)):
        choice = int(rng.random() * 9)
        at = int(rng.random() * (len(data) + 1))
        if choice == 0 and data:
            data[at % len(data)] ^= 1 << int(rng.random() * 8)
        elif choice == 1 and data:
            data[at % len(data)] = int(rng.random() * 256)
        elif choice == 2:
            data[at:at] = rng.randbytes(1 + int(rng.random() * 30))
        elif choice == 3:
            del data[at : at + 1 + int(rng.random() * 30)]
        elif choice == 4:
            # a whole frame or a piece of one, again
            length = 24 if rng.random() < 0.5 else int(rng.random() * 60)
            data[at:at] = data[at : at + length]
        elif choice == 5:
            other = seeds[int(rng.random() * len(seeds))]
            data[at:] = other[int(rng.random() * (len(other) + 1)) :]
        elif choice == 6 and len(data) > 5:
            # a size, an id or a deadline
            value = EDGES[int(rng.random() * len(EDGES))] if rng.random() < 0.8 else LAST
            place = 1 + 4 * int(rng.random() * ((len(data) - 1) // 4))
            data[place : place + 4] = struct.pack("<I", value)
        elif choice == 7:
            del data[at:]
        elif data:
            # other pieces
            data[0] = int(rng.random() * 256) if rng.random() < 0.7 else int(rng.random() * 3)
    return bytes(data[:INPUT_BYTES_MAX])


def run_plain(targets: Sequence[str], inputs: int, seed: int) -> int:
    """Throw so many inputs at each of the targets in turn; returns how many broke something."""
    rng = random.Random(seed)
    findings = 0
    for name in targets:
        target, seeds = TARGETS[name], corpus_of(name) or [b""]
        for data in seeds:
            target(data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        for number in range(inputs):
            data = mutated(rng, seeds)
            try:
                target(data)
            except Exception as error:  # whatever it is, it is a finding
                findings += 1
                print(f"{name}: {type(error).__name__}: {error}; kept as {keep(name, data)}")
                if findings > 20:
                    return findings
            if number == inputs // 10:
                # what an interpreter needs to get going is no growth
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = time.perf_counter() - begun
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        print(
            f"{name}: {inputs:,} inputs in {seconds:.0f} s ({inputs / max(seconds, 1e-9):,.0f}/s), "
            f"{findings} findings, memory +{grown / 1024:.1f} MiB",
            flush=True,
        )
    return findings


def run_atheris(target: str, inputs: int, seed: int) -> None:
    """Guided by coverage; does not return.  Raises ``ImportError`` where it is not installed."""
    atheris = importlib.import_module("atheris")
    # once more, so that it sees the branches
    for name in [name for name in sys.modules if name.startswith(("lbcore", "tests.fuzz.targets"))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["lbcore.core"]):
        instrumented = importlib.import_module("tests.fuzz.targets").TARGETS

    def once(data: bytes) -> None:
        try:
            instrumented[target](data)
        except Exception:
            print("kept as", keep(target, data))
            raise

    folder = CORPUS / target
    arguments = [sys.argv[0], f"-atheris_runs={inputs}", f"-seed={seed}", "-max_len=4096"]
    # what libFuzzer likes goes into the first folder; it is much, and worth little here
    liked = tempfile.mkdtemp(prefix="lb-fuzz-")
    atexit.register(shutil.rmtree, liked, ignore_errors=True)
    kept = [str(folder)] if folder.exists() else []
    atheris.Setup([*arguments, "-reload=0", liked, *kept], once)
    atheris.Fuzz()


def run_hypothesis(targets: Sequence[str], inputs: int) -> None:
    """Frames by their fields; what breaks a target is shrunk."""
    from tests.fuzz.strategies import check_target

    for name in targets:
        check_target(name, inputs)
        print(f"{name}: {inputs:,} inputs of hypothesis, 0 findings")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.engines")
    parser.add_argument("--engine", choices=("plain", "atheris", "hypothesis"), default="plain")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    print(f"engine {options.engine}, seed {options.seed}", flush=True)
    if options.engine == "plain":
        return 1 if run_plain(targets, options.inputs, options.seed) else 0
    if options.engine == "hypothesis":
        run_hypothesis(targets, options.inputs)
        return 0
    run_atheris(targets[0], options.inputs, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
