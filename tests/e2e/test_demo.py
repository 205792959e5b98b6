"""``demo``: the whole of lb in a few seconds, and nothing left of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.conftest import Start
from tests.e2e.running import MARK, survivors


def test_the_demo_shows_it_all_and_leaves_nothing(system: Start, tmp_path: Path) -> None:
    lb = system(start=False)
    folder = tmp_path / "temporary"
    folder.mkdir()
    # a broker of the user's own, and settings for it, are none of its business
    settings = {"TMPDIR": str(folder), "LB_BROKER__PORT": "8000"}
    begin = time.monotonic()
    out = lb.cli("demo", environment=settings).stdout
    assert time.monotonic() - begin < 15
    assert {"worker-1", "worker-2", "worker-3"} <= set(re.findall(r"worker-\d", out))
    assert "would be done soonest" in out
    assert "nothing is left running" in out
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in lb.folder.iterdir()) == ["config.yaml"]
    assert not survivors(MARK, lb.mark)
