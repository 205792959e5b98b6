"""Sends work to the system of ``topology.yaml``, in the four ways there are.

From the folder that has lb.py; the second line with the Python that has lb's libraries, which is
the one in .venv where lb.py has made that folder:

    python lb.py up -d -c examples/topology.yaml
    .venv/bin/python -m examples.client
    python lb.py down -c examples/topology.yaml
"""

from __future__ import annotations

import sys
from collections import Counter

from lbcore import BrokerUnavailable, Client, TaskError


def main(port: int = 8000) -> int:
    """Use every way once; returns the exit code."""
    try:
        client = Client("127.0.0.1", port)
    except BrokerUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    with client:
        call(client)
        submit(client)
        map_many(client)
        stream(client)
    return 0


def call(client: Client) -> None:
    """One request: send, wait, get the result or the exception."""
    print("\n".join(client.call("mandelbrot", height=24)))
    try:
        client.call("checkout", orders=[{"item": "tea", "price": 4.5}], discount=2)
    except TaskError as error:
        print(f"the task raised {error.type_name}: {error}")


def submit(client: Client) -> None:
    """Several requests in flight; each future is a ``concurrent.futures.Future``."""
    futures = [client.submit("fetch", f"page-{number}") for number in range(6)]
    print([future.result(timeout=30) for future in futures])


def map_many(client: Client) -> None:
    """The same task for many values; the results come in the order of the values."""
    limits = (10, 1_000, 100_000)
    for limit, count in zip(limits, client.map("primes", limits), strict=True):
        print(f"{count:,} primes below {limit:,}")


def stream(client: Client) -> None:
    """Many requests of any kind, each answer as soon as it is there: who did how much?"""
    calls = [("sort", {"size": 5_000, "seed": seed}) for seed in range(200)]
    shares = Counter(reply.worker for reply in client.stream(calls) if reply.error() is None)
    print(dict(sorted(shares.items())))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
