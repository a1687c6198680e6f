"""Workers of other machines: `augserver worker`, `worker-health`, `ray-workers`."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from augproto.addresses import check_dialled
from augproto.errors import ConfigError
from augserver.commands.options import AllowTransforms, Key, Processes, ServerKey, this_version


def worker(
    connect: Annotated[
        str,
        typer.Option(
            envvar="AUGSERVER_WORKERS_ADDRESS",
            metavar="ADDRESS",
            help="tcp://HOST:PORT, where the server listens for workers (listen_workers).",
        ),
    ],
    workers: Processes = None,
    allow_transforms: AllowTransforms = None,
    key: Key = None,
    server_key: ServerKey = None,
) -> None:
    """Make batches for a server on another machine, until SIGTERM or Ctrl-C.

    Nothing is kept here and nothing is shared: what a batch is made of comes with its assignment.
    A server that is gone is dialled again, for ever.
    """
    from augserver import agent, backend
    from augserver.config import cores
    from augserver.dial import Orders
    from augserver.functions import check_name

    logging.basicConfig(level=logging.INFO, format="augserver: %(message)s")
    backend.check()
    orders = Orders(
        connect,
        tuple(allow_transforms or ()),
        key and os.path.abspath(key),
        server_key and os.path.abspath(server_key),
    )
    # What is wrong is said once, and here, and not by each worker.
    check_dialled("connect", connect, "where the server listens for workers (listen_workers)")
    for name in orders.allow_transforms:
        check_name(name)
    _ = orders.keys
    agent.run(orders, cores() if workers is None else workers)


def worker_health() -> None:
    """Whether `augserver worker` works here: exit code 0 if so, 1 and the reason if not.

    Every agent of this user on this machine, or in this container, must live, and at least one of
    its workers must be enlisted with a server.
    """
    from augserver.pulse import pulses

    found = pulses()
    if not found:
        typer.echo("unhealthy: no `augserver worker` of this user runs here", err=True)
        raise typer.Exit(1)
    for pulse in found:
        if pulse.complaint is not None:
            typer.echo(f"unhealthy: pid {pulse.pid}: {pulse.complaint}", err=True)
            raise typer.Exit(1)
    for pulse in found:
        typer.echo(
            f"healthy: pid {pulse.pid}; {pulse.enlisted} of {pulse.wanted} workers enlisted at "
            f"{pulse.address}"
        )


def ray_workers(
    address: Annotated[
        str,
        typer.Option(envvar="RAY_ADDRESS", metavar="HOST:PORT", help="Ray's head node."),
    ],
    server: Annotated[
        str,
        typer.Option(
            envvar="AUGSERVER_WORKERS_ADDRESS",
            metavar="ADDRESS",
            help="tcp://HOST:PORT, where the server listens for workers, as the nodes see it.",
        ),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How many from now on; 0 ends them.",
            show_default="as many as there are; only say how they are",
        ),
    ] = None,
    num_cpus: Annotated[
        float, typer.Option(min=0.0, help="Cores that Ray sets aside for each.")
    ] = 1.0,
    resources: Annotated[
        str,
        typer.Option(metavar="JSON", help="""Others of Ray's for each, as '{"cpu_node": 1}'."""),
    ] = "{}",
    fleet: Annotated[
        str, typer.Option(metavar="NAME", help="Tells those of several servers apart.")
    ] = "augserver",
    key: Annotated[
        str | None,
        typer.Option(
            envvar="AUGSERVER_CLIENT_KEY",
            metavar="FILE",
            help="The workers' secret key, a path on the nodes.",
        ),
    ] = None,
    server_key: Annotated[
        str | None,
        typer.Option(
            envvar="AUGSERVER_SERVER_KEY",
            metavar="FILE",
            help="The server's public key, likewise.",
        ),
    ] = None,
    allow_transforms: AllowTransforms = None,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds for them to be enlisted with the server.")
    ] = 60.0,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="The cluster lets in everybody who reaches it.")
    ] = False,
) -> None:
    """Have a Ray cluster run workers, restart them, and run more or fewer of them.

    They stay when this command has ended; the same command with another number makes more or fewer
    of them, and one that says anything else replaces them. To be run on a node of the cluster,
    whose token is RAY_AUTH_TOKEN or in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token.
    Exit code 0 if as many as wanted are enlisted, 1 if not (yet).
    """
    from augserver.placement import ray_workers
    from augserver.placement.fleet import Fleet, resources_of

    if workers:
        where = "where the server listens for workers (listen_workers), as the nodes see it"
        check_dialled("server", server, where)
    wanted = Fleet(
        name=fleet,
        workers=workers,
        server=server,
        num_cpus=num_cpus,
        resources=resources_of(resources),
        key=key,
        server_key=server_key,
        allow_transforms=tuple(allow_transforms or ()),
        version=this_version(),
    )
    placed = ray_workers.place(wanted, address, wait=wait, token=not no_token)
    for each in placed:
        typer.echo(str(each))
    enlisted = sum(each.state == "enlisted" for each in placed)
    if workers is None and not placed:
        raise ConfigError(
            f"fleet: got {fleet!r}, of which the cluster has no worker; to do: --workers"
        )
    typer.echo(f"fleet {fleet}: {enlisted} of {len(placed)} workers enlisted")
    if enlisted != (len(placed) if workers is None else workers):
        raise typer.Exit(1)
