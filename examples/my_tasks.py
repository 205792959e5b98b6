"""Tasks of your own: an example to copy from.

A task is a function with ``@task``.  The workers of ``topology.yaml`` beside this file have the
tasks below besides the built-in ones; ``client.py`` sends them work.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass

from lbcore import task


@task
def word_count(text: str, top: int = 5) -> dict[str, int]:
    """Count the words of a text, and return the most frequent."""
    # The annotations are checked before this line runs: here `text` is text.
    return dict(Counter(text.lower().split()).most_common(top))


@task(aliases=("fractal",), weight=0.05)
def mandelbrot(width: int = 78, height: int = 32, depth: int = 500) -> list[str]:
    """Draw the Mandelbrot set in characters; pure computing."""
    # The weight says: expect 0.05 s, until it is known better.
    rows = []
    for row in range(height):
        line = ""
        for column in range(width):
            start = complex(3.0 * column / width - 2.2, 2.4 * row / height - 1.2)
            value, steps = 0j, 0
            while abs(value) <= 2.0 and steps < depth:
                value = value * value + start
                steps += 1
            line += " .:-=+*#%@"[steps.bit_length()] if steps < depth else "@"
        rows.append(line)
    return rows


@task(weight=0.1)
def fetch(url: str, seconds: float = 0.1) -> str:
    """Wait as a download would: blocked, but without using the CPU."""
    # With `concurrency: 4` a worker runs four of these at once, each in a thread of its own.
    time.sleep(seconds)
    print("fetched", url, "in", threading.current_thread().name)  # goes to the worker's log
    return f"content of {url}"


@task(weight=0.1)
async def fetch_all(urls: list[str], seconds: float = 0.1) -> list[str]:
    """Wait for many things at once, on the worker's event loop."""

    async def fetch_one(url: str) -> str:
        await asyncio.sleep(seconds)
        return f"content of {url}"

    return await asyncio.gather(*(fetch_one(url) for url in urls))


@dataclass
class Order:
    """What a client sends as ``{"item": "tea", "price": 4.5}``."""

    item: str
    price: float
    count: int = 1


@dataclass
class Receipt:
    """What a client gets as ``{"items": 1, "total": 4.5}``."""

    items: int
    total: float


@task(name="checkout", idempotent=False)
def check_out(orders: list[Order], discount: float = 0.0) -> Receipt:
    """Add up orders; is never run twice for one request."""
    # A dataclass arrives built and checked; with a wrong one this line is never reached.
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"the discount must be in [0, 1), not {discount}")  # the client sees this
    total = sum(order.price * order.count for order in orders) * (1.0 - discount)
    return Receipt(items=sum(order.count for order in orders), total=round(total, 2))
