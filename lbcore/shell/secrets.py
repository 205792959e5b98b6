"""The files that say who may connect: a system's secret, the way to it, and keys for others.

The supervisor writes 32 random bytes to ``secret`` in its state folder, readable by its user only.
A *pointer* in a folder of that user leads from the broker's address to that file, so that a client
that knows nothing but an address finds its key.  A *key file* carries the key of one role to
somebody else, or to another machine.  ``docs/security.md`` tells users of all three.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from lbcore.core.errors import LBError
from lbcore.core.handshake import SECRET_BYTES, role_key
from lbcore.core.topology import Address

SECRET_NAME: Final = "secret"
#: the folder of the pointers, where it is not the usual one
FOLDER_VARIABLE: Final = "LB_RUNTIME_DIR"
#: a key file, for a client that is given none
KEY_VARIABLE: Final = "LB_KEY_FILE"
#: no file of this module is larger
_FILE_BYTES_MAX: Final = 16384
#: a broker that listens on these is reached at any address of the machine
_ANY_HOST: Final = ("0.0.0.0", "::")


class SecretError(LBError):
    """A file with a secret cannot be had, or others could read it."""

    exit_code = 3


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """What leads from an address to the secret of the system that listens there."""

    address: str
    #: absolute path of the secret
    secret: str
    #: whether the broker speaks TLS
    tls: bool = False


class KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    """The key of one role, in hex, to be given to somebody."""

    role: str
    key: str
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """What a client proves itself with."""

    role: str
    key: bytes
    #: whether to speak TLS
    tls: bool = False

    def __repr__(self) -> str:
        return f"Key({self.role!r}, ...)"


# ---- private files -------------------------------------------------------------------------------


def write_private(path: Path, data: bytes) -> None:
    """Replace a file by one that only its owner may read; a reader sees the old or the new one.

    Raises ``OSError``.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(fresh, flags, 0o600), "wb") as file:
        file.write(data)
    os.replace(fresh, path)


def read_private(path: Path | str) -> bytes:
    """The content of a file that nobody else may read, and that nobody else has put there.

    Raises ``SecretError``, and ``FileNotFoundError`` when there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise SecretError(f"cannot read {path}: {reason}") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise SecretError(f"{path} is no file")
        _check_private(path, facts)
        return os.read(descriptor, _FILE_BYTES_MAX)
    finally:
        os.close(descriptor)


def _check_private(path: Path | str, facts: os.stat_result) -> None:
    """Raises ``SecretError`` when somebody else could have read or written it."""
    # root can read anything anyhow, and may use the systems of others
    if os.geteuid() not in (0, facts.st_uid):
        raise SecretError(f"{path} belongs to another user")
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise SecretError(f"others may read {path} (mode {mode:o}); `chmod go= {path}` ends that")


# ---- the secret ----------------------------------------------------------------------------------


def make_secret(folder: Path, keep: bool = False) -> bytes:
    """A new secret in that folder; with ``keep`` the one of the run before, if there is one.

    Raises ``OSError`` and ``SecretError``.
    """
    path = folder / SECRET_NAME
    if keep:
        with contextlib.suppress(FileNotFoundError, SecretError):
            return read_secret(path)
    secret = os.urandom(SECRET_BYTES)
    write_private(path, secret)
    return secret


def read_secret(path: Path | str) -> bytes:
    """The secret in that file.  Raises ``SecretError`` and ``FileNotFoundError``."""
    secret = read_private(path)
    if len(secret) != SECRET_BYTES:
        raise SecretError(f"{path} is no secret of lb")
    return secret


# ---- pointers ------------------------------------------------------------------------------------


def runtime_folder() -> Path:
    """Where this user's pointers are; it need not exist."""
    if own := os.environ.get(FOLDER_VARIABLE):
        return Path(own).absolute()
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime).absolute() / "lb"
    return Path("~/.cache/lb/run").expanduser()


def publish(address: Address, secret: Path, *, tls: bool) -> None:
    """Lead clients of ``address`` to ``secret``; whoever was there before is gone.

    Raises ``OSError`` and ``SecretError``.
    """
    folder = runtime_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pointer = Pointer(address=str(address), secret=str(secret.absolute()), tls=tls)
    with _locked(folder):
        write_private(folder / _pointer_name(str(address)), msgspec.json.encode(pointer))


def withdraw(secret: Path) -> None:
    """Remove the pointer that leads to ``secret``; one that leads elsewhere by now stays."""
    folder = runtime_folder()
    with contextlib.suppress(OSError, SecretError), _locked(folder):
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, SecretError, msgspec.DecodeError):
                pointer = msgspec.json.decode(read_private(path), type=Pointer)
                if pointer.secret == str(secret.absolute()):
                    path.unlink()


def _find_pointer(address: Address) -> Pointer | None:
    """The pointer of the system at an address as the kernel names it."""
    texts = [str(address)]
    if address.path is None:
        texts += [str(Address(host=host, port=address.port)) for host in _ANY_HOST]
    folder = runtime_folder()
    try:
        _check_private(folder, folder.stat())
    except FileNotFoundError:
        return None
    for text in texts:
        try:
            data = read_private(folder / _pointer_name(text))
            return msgspec.json.decode(data, type=Pointer)
        except (FileNotFoundError, msgspec.DecodeError):
            continue
    return None


def _pointer_name(address: str) -> str:
    # an address may be a long path
    return hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".json"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in the folder of the pointers, which must be ours alone anyway."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_private(folder, os.fstat(descriptor))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# ---- a client's key ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Where a client looks for its key, and as what it connects."""

    role: str = "client"
    #: a key file; without one $LB_KEY_FILE, and then the pointers
    key_file: str | None = None
    #: the secret of the topology that is meant, which counts before all others where it exists
    secret: Path | None = None
    #: the system is known to speak TLS
    tls: bool = False
    #: certificates that the broker's must be signed by
    cafile: str | None = None

    def find(self, address: Address) -> Key:
        """The key for the broker at ``address``, as the kernel names it.  Raises ``SecretError``.

        Asked for at each connection: a system that was started anew has a new secret.
        """
        tls = self.tls or self.cafile is not None
        if self.key_file is None and self.secret is not None:
            with contextlib.suppress(FileNotFoundError):
                return Key(self.role, role_key(read_secret(self.secret), self.role), tls)
        if named := self.key_file or os.environ.get(KEY_VARIABLE):
            return _read_key_file(named, self.role, tls)
        pointer = _find_pointer(address)
        if pointer is None:
            raise SecretError(
                f"no key for it: no system of this user listens there ({runtime_folder()} knows "
                "none), and no key file is given"
            )
        try:
            secret = read_secret(pointer.secret)
        except FileNotFoundError:
            raise SecretError(f"no key for it: {pointer.secret} is gone") from None
        return Key(self.role, role_key(secret, self.role), tls or pointer.tls)


def _read_key_file(path: str, role: str, tls: bool) -> Key:
    """A key file's key; a client may well be handed that of an admin.  Raises ``SecretError``."""
    try:
        made = msgspec.json.decode(read_private(path), type=KeyFile)
        key = bytes.fromhex(made.key)
    except FileNotFoundError:
        raise SecretError(f"there is no key file {path}") from None
    except (msgspec.DecodeError, ValueError):
        raise SecretError(f"{path} is no key file of lb") from None
    if made.role not in (role, "admin"):
        raise SecretError(f"{path} has the key of a {made.role}, not that of an {role}")
    return Key(made.role, key, tls or made.tls)


def key_file_text(secret: bytes, role: str, *, tls: bool) -> str:
    """The content of a key file for that role."""
    made: dict[str, Any] = msgspec.to_builtins(
        KeyFile(role=role, key=role_key(secret, role).hex(), tls=tls)
    )
    return msgspec.json.encode(made).decode() + "\n"
