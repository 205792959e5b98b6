"""``lb key``: write the key of one role to a file, for another user or another machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from lbcore.core.errors import BrokerUnavailable

from .exit_codes import ExitCode
from .options import config_options, load_topology, program_name


@click.command(
    "key",
    epilog="""\b
Examples:
  lb key client.key               it may send requests and look at the system
  lb key --role admin admin.key   it may do everything

\b
The other side gives the file as Client(key_file=...) or $LB_KEY_FILE.
Exit codes: 0; 2 wrong option or topology; 3 it is not running.""",
)
@config_options
@click.option(
    "--role",
    type=click.Choice(["client", "admin"]),
    default="client",
    show_default=True,
    help="What its owner may do.",
)
@click.argument("file", type=click.Path(dir_okay=False))
def key(config: str, overrides: Sequence[str], role: str, file: str) -> int:
    """Write a key of the running system to FILE, to let somebody else in.

    The key is good until the system is started anew.  FILE gets mode 0600; whoever has it has the
    rights of its role.
    """
    from lbcore.shell.secrets import (
        SECRET_NAME,
        SecretError,
        key_file_text,
        read_secret,
        write_private,
    )
    from lbcore.shell.state import is_locked, state_folder

    topology = load_topology(config, overrides)
    if not is_locked(topology):
        raise BrokerUnavailable(
            f"topology {topology.name!r} is not running, and each run has its own keys; "
            f"`{program_name()} up` starts it"
        )
    secret = read_secret(state_folder(topology) / SECRET_NAME)
    text = key_file_text(secret, role, tls=topology.tls is not None)
    try:
        write_private(Path(file), text.encode())
    except OSError as error:
        raise SecretError(f"cannot write {file}: {error.strerror}") from None
    click.echo(f"{file} has the key of {'an admin' if role == 'admin' else 'a client'}")
    return ExitCode.OK
