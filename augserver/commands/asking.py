"""How a server is, as itself says: `augserver health`, `augserver status`."""

from __future__ import annotations

import typer

from augproto.errors import AugError
from augserver.commands.options import Connect, Key, ServerKey, Timeout

#: Seconds for an answer, and for a first worker.
ASK_TIMEOUT = 5.0


def health(
    connect: Connect = None,
    timeout: Timeout = ASK_TIMEOUT,
    key: Key = None,
    server_key: ServerKey = None,
) -> None:
    """Ask a server how it is: exit code 0 if it can serve, 1 and the reason if not.

    A server that has only just started is given the timeout for its first worker to be ready.
    """
    from augproto.keys import Keys
    from augserver import health

    try:
        keys = Keys.of(key, server_key)
        pid, status = health.ask_settled(_address(connect), timeout, keys)
    except AugError as error:
        typer.echo(f"unhealthy: {error}", err=True)
        raise typer.Exit(1) from None
    reason = health.complaint(status)
    if reason is not None:
        typer.echo(f"unhealthy: {reason}", err=True)
        raise typer.Exit(1)
    typer.echo(f"healthy: {health.describe(pid, status)}")


def status(
    connect: Connect = None,
    timeout: Timeout = ASK_TIMEOUT,
    key: Key = None,
    server_key: ServerKey = None,
) -> None:
    """Print what a server says of itself, with the samples that batches had to do without."""
    from augproto.keys import Keys
    from augserver import health

    pid, said = health.ask(_address(connect), timeout, Keys.of(key, server_key))
    typer.echo(health.describe(pid, said))
    for line in health.remote_workers(said) + health.bad_samples(said):
        typer.echo(line)


def _address(connect: str | None) -> str:
    from augserver import runtime

    # AUGSERVER_LISTEN may name several.
    return ((connect or "").split() or [runtime.default_address()])[0]
