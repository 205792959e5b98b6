"""Addresses that other machines can reach, and the TLS that they need."""

from __future__ import annotations

import pytest

from lbcore.core.config import build_topology
from lbcore.core.topology import Tls, Topology
from tests.core.test_config import SOURCE, bad


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "[::]", "128.0.0.1"])
def test_an_address_that_others_reach_needs_tls(host: str) -> None:
    assert "other machines can reach" in bad({"broker": {"host": host}})["broker.host"]
    files = {"cert": "lb.crt", "key": "/elsewhere/lb.key"}
    made = build_topology(
        {"broker": {"host": host, "tls": files}},
        {},
        source=SOURCE,
        cores=1,
        file_exists=lambda _: True,
    )
    assert isinstance(made, Topology)
    assert made.broker.host == host.strip("[]")
    assert made.tls == Tls(cert="/home-of/lb/lb.crt", key="/elsewhere/lb.key")


@pytest.mark.parametrize("host", ["example.org", "127.0.0.256", "127.1", "", "1", "0.0.0.0:80"])
def test_no_address_at_all(host: str) -> None:
    assert "expected an address of this machine" in bad({"broker": {"host": host}})["broker.host"]


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "example.org", "127.1"])
def test_workers_stay_on_this_machine(host: str) -> None:
    problems = bad({"workers": [{"host": host}]})
    assert "lb binds loopback addresses only" in problems["workers[0].host"]


def test_tls_has_two_files_that_exist() -> None:
    def found(tls: object, **more: object) -> dict[str, str]:
        return bad({"broker": {"tls": tls, **more}})

    files = {"cert": "lb.crt", "key": "lb.key"}
    assert "expected an existing file" in found(files)["broker.tls.cert"]
    assert "expected an existing file" in found(files)["broker.tls.key"]
    assert "`key` is not there" in found({"cert": "lb.crt"})["broker.tls"]
    assert "as in {cert: FILE, key: FILE}" in found(True)["broker.tls"]
    assert "did you mean `cert`?" in found({**files, "certt": "x"})["broker.tls.certt"]
    assert "needs no TLS" in found(files, path="run/x.sock")["broker.tls"]
    # what is wrong with the files is all that is said, not that there are none
    assert "broker.host" not in found({}, host="0.0.0.0")
