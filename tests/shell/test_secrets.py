"""Secrets, pointers and key files: who finds a key, and which files are not trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lbcore.core.handshake import role_key
from lbcore.core.topology import Address
from lbcore.shell.secrets import (
    SECRET_NAME,
    Credentials,
    Key,
    SecretError,
    key_file_text,
    make_secret,
    publish,
    read_private,
    read_secret,
    runtime_folder,
    withdraw,
    write_private,
)

ADDRESS = Address(host="127.0.0.1", port=8000)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pointers of these tests are nobody else's."""
    monkeypatch.delenv("LB_KEY_FILE", raising=False)
    monkeypatch.setenv("LB_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def system(folder: Path, address: Address = ADDRESS, *, tls: bool = False) -> bytes:
    """What a supervisor leaves for its clients."""
    folder.mkdir(exist_ok=True)
    secret = make_secret(folder)
    publish(address, folder / SECRET_NAME, tls=tls)
    return secret


def test_files_are_private_whatever_the_umask(tmp_path: Path, own_folder: Path) -> None:
    before = os.umask(0)
    try:
        system(tmp_path / "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / SECRET_NAME).stat().st_mode & 0o777 == 0o600
    assert own_folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in own_folder.iterdir()} == {0o600}


def test_a_secret_is_new_for_each_run_unless_it_is_kept(tmp_path: Path) -> None:
    secret = make_secret(tmp_path)
    assert len(secret) == 32
    assert read_secret(tmp_path / SECRET_NAME) == secret
    assert make_secret(tmp_path, keep=True) == secret
    assert make_secret(tmp_path) != secret
    (tmp_path / SECRET_NAME).chmod(0o644)
    assert make_secret(tmp_path, keep=True) not in (b"", secret), "others could have read that"
    (tmp_path / SECRET_NAME).write_bytes(b"short")
    with pytest.raises(SecretError, match="no secret of lb"):
        read_secret(tmp_path / SECRET_NAME)


def test_what_others_could_have_read_or_put_there_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        read_private(path)
    write_private(path, b"x")
    assert read_private(path) == b"x"
    for mode in (0o604, 0o640, 0o620, 0o666):
        path.chmod(mode)
        with pytest.raises(SecretError, match="others may read"):
            read_private(path)
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(SecretError, match="it is a link"):
        read_private(tmp_path / "link")
    with pytest.raises(SecretError, match="is no file"):
        read_private(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SecretError, match="is no file"):
        read_private(tmp_path / "pipe")
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".new")] == []


def test_a_client_finds_the_key_by_the_address(tmp_path: Path) -> None:
    secret = system(tmp_path / "a")
    assert Credentials().find(ADDRESS) == Key("client", role_key(secret, "client"))
    assert Credentials(role="admin").find(ADDRESS) == Key("admin", role_key(secret, "admin"))
    for other in (Address(host="127.0.0.1", port=8001), Address(path="/x"), Address(host="::1")):
        with pytest.raises(SecretError, match="no key for it"):
            Credentials().find(other)
    unix = Address(path="/a/b.sock")
    second = system(tmp_path / "b", unix)
    assert Credentials().find(unix).key == role_key(second, "client")


def test_a_system_on_all_addresses_is_found_by_any(tmp_path: Path) -> None:
    secret = system(tmp_path / "a", Address(host="0.0.0.0", port=8000), tls=True)
    assert Credentials().find(ADDRESS) == Key("client", role_key(secret, "client"), tls=True)
    six = system(tmp_path / "b", Address(host="::", port=9000))
    assert Credentials().find(Address(host="::1", port=9000)).key == role_key(six, "client")


def test_the_pointer_is_that_of_the_last_and_goes_with_it(tmp_path: Path, own_folder: Path) -> None:
    first = system(tmp_path / "first")
    second = system(tmp_path / "second")
    withdraw(tmp_path / "first" / SECRET_NAME)
    assert Credentials().find(ADDRESS).key == role_key(second, "client") != first
    withdraw(tmp_path / "second" / SECRET_NAME)
    assert list(own_folder.iterdir()) == []
    with pytest.raises(SecretError, match="no key for it"):
        Credentials().find(ADDRESS)
    # nothing there is no error
    own_folder.rmdir()
    withdraw(tmp_path / "second" / SECRET_NAME)


def test_a_pointer_to_nothing_says_so(tmp_path: Path) -> None:
    system(tmp_path / "a")
    (tmp_path / "a" / SECRET_NAME).unlink()
    with pytest.raises(SecretError, match=r"a/secret is gone"):
        Credentials().find(ADDRESS)


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path, own_folder: Path) -> None:
    system(tmp_path / "a")
    own_folder.chmod(0o777)
    with pytest.raises(SecretError, match="others may read"):
        Credentials().find(ADDRESS)
    with pytest.raises(SecretError, match="others may read"):
        publish(ADDRESS, tmp_path / "a" / SECRET_NAME, tls=False)


def test_the_secret_of_the_topology_counts_first_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = system(tmp_path / "mine")
    other = system(tmp_path / "other")
    path = tmp_path / "mine" / SECRET_NAME
    assert Credentials(secret=path).find(ADDRESS).key == role_key(mine, "client")
    (tmp_path / "k").write_text(key_file_text(bytes(32), "client", tls=False))
    (tmp_path / "k").chmod(0o600)
    monkeypatch.setenv("LB_KEY_FILE", str(tmp_path / "k"))
    assert Credentials(secret=path).find(ADDRESS).key == role_key(mine, "client")
    path.unlink()
    assert Credentials(secret=path).find(ADDRESS).key == role_key(bytes(32), "client")
    monkeypatch.delenv("LB_KEY_FILE")
    assert Credentials(secret=path).find(ADDRESS).key == role_key(other, "client")


def test_key_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file(text: str) -> str:
        write_private(tmp_path / "k", text.encode())
        return str(tmp_path / "k")

    def find(text: str, role: str = "client") -> Key:
        return Credentials(key_file=file(text), role=role).find(ADDRESS)

    client, admin = (key_file_text(bytes(32), role, tls=True) for role in ("client", "admin"))
    assert find(client) == Key("client", role_key(bytes(32), "client"), tls=True)
    assert find(admin, "admin") == find(admin) == Key("admin", role_key(bytes(32), "admin"), True)
    with pytest.raises(SecretError, match="has the key of a client"):
        find(client, "admin")
    for text in ("", "{}", '{"role": "client", "key": "xx"}', "\x00"):
        with pytest.raises(SecretError, match="is no key file of lb"):
            find(text)
    with pytest.raises(SecretError, match="there is no key file"):
        Credentials(key_file=str(tmp_path / "none")).find(ADDRESS)
    monkeypatch.setenv("LB_KEY_FILE", file(client))
    assert Credentials().find(ADDRESS).key == role_key(bytes(32), "client")


def test_where_pointers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("HOME", "/nowhere")
    assert runtime_folder() == tmp_path / "run"
    monkeypatch.delenv("LB_RUNTIME_DIR")
    assert runtime_folder() == Path("/run/user/7/lb")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_folder() == Path("/nowhere/.cache/lb/run")


def test_a_key_is_not_shown_by_accident() -> None:
    assert "73" not in repr(Key("client", b"s" * 32))
