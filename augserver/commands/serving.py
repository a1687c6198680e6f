"""`augserver serve`, and what goes before it: `check-config`, `warmup`."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augserver.commands.options import this_version

if TYPE_CHECKING:
    from augserver.config import Config

_log = logging.getLogger("augserver.cli")


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            help="The streams and settings; AUGSERVER_CONFIG names it, too.",
            show_default="./augserver.toml, if there is one",
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="ipc://PATH or tcp://127.0.0.1:PORT; may be repeated. Also AUGSERVER_LISTEN.",
            show_default="a socket of this user's",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Worker processes; 0 computes in the server itself. Also AUGSERVER_WORKERS.",
            show_default="one for each core",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The server's secret key, for addresses beyond this machine.",
        ),
    ] = None,
    allow_consumers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Public keys of consumers that may come in, or a folder of them.",
        ),
    ] = None,
    allow_workers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="... of workers.",
        ),
    ] = None,
    listen_workers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where workers of other processes and hosts dial in.",
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure",
            help="Let in everybody who can connect, and encrypt nothing.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve streams until SIGTERM or Ctrl-C.

    What else the environment may say is in docs/settings.md; `augserver check-config` tells what is
    in force.

    The first server of a machine compiles its kernels, which takes about ten seconds; `augserver
    warmup` does it ahead of time. They are kept beside the package, where that cannot be written to
    in the user's cache folder, or where NUMBA_CACHE_DIR says.
    """
    from augserver import backend, runtime, signals
    from augserver.server import Server
    from augserver.settings import gather

    logging.basicConfig(level=logging.INFO, format="augserver: %(message)s")
    server: Server | None = None
    told: list[str] = []

    def on_signal(number: int, frame: object) -> None:
        # The server's own handlers come with its loop. Before that a signal would leave half a
        # server's things behind, or, to the first process of a container, mean nothing at all.
        told.append(f"{signal.Signals(number).name} was received")
        if server is not None:
            server.stop(told[0])

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    flags = {
        "listen": listen or None,
        "listen_workers": listen_workers or None,
        "workers": workers,
        "key": key,
        "allow_consumers": allow_consumers or None,
        "allow_workers": allow_workers or None,
        "insecure": insecure,
    }
    settings = gather(config, flags).config
    if settings.kernels:  # for this process and its workers; the environment wins, as elsewhere
        os.environ.setdefault(backend.KERNELS_VARIABLE, settings.kernels)
    backend.check()
    runtime.raise_descriptors()
    with Server(settings) as started:
        server = started
        if told:
            server.stop(told[0])
        for address in server.addresses:
            typer.echo(_banner(address, settings))
        for address in server.workers_addresses:
            typer.echo(f"workers dial in at {address}")
        if server.figures is not None:
            typer.echo(f"figures for Prometheus at {server.figures.url}")
        _warn_of_streams(settings)
        signals.serve_until_signalled(server)


def _banner(address: str, settings: Config) -> str:
    streams = ", ".join(sorted(settings.streams)) or "none"
    workers = f"{settings.workers} worker{'s' if settings.workers != 1 else ''}"
    return f"augserver {this_version()} listens at {address}; streams: {streams}; {workers}"


def _warn_of_streams(settings: Config) -> None:
    """Say at the start what consumers would otherwise be told one by one."""
    if not settings.streams and not settings.roots and not settings.datasets:
        _log.warning(
            "neither streams, datasets nor roots are configured: consumers can open nothing of "
            "this server's, only what they hand over"
        )
    for name, spec in settings.streams.items():
        for path in spec.data:
            if not os.access(path, os.R_OK):
                _log.warning("streams.%s: %s cannot be read (yet)", name, path)


def check_config(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The streams and settings; otherwise AUGSERVER_CONFIG.",
            show_default="./augserver.toml, if there is one",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Explain a config: what is in force, who said so, what its datasets and streams are here.

    Nothing is started and no address is taken. Exit code 0 if all of it can be served, perhaps with
    warnings; 2 if something is wrong in it, or does not fit its data.
    """
    import json

    from augserver.explaining import explain
    from augserver.explanation import lines
    from augserver.settings import gather

    explanation = explain(gather(file, {}))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(explanation), indent=2))
    else:
        typer.echo("\n".join(lines(explanation)))
    for error in explanation.errors:
        typer.echo(f"augserver: {error}", err=True)
    if explanation.errors:
        raise typer.Exit(2)


def warmup() -> None:
    """Compile the kernels, so that the first server to start need not: once for each machine.

    They are kept beside the package, where that cannot be written to in the user's cache folder, or
    where NUMBA_CACHE_DIR says. Where they cannot be kept the exit code is 1.
    """
    import time

    from augserver import preload
    from augserver.backend import backend

    logging.basicConfig(level=logging.WARNING, format="augserver: %(message)s")
    started = time.perf_counter()
    preload.warm()
    took = f"ready after {time.perf_counter() - started:.1f} s"
    if backend() != "numba":
        typer.echo(f"{backend()}: {took}")
        return
    from augserver import compiling

    if compiling.reason() is not None:  # which it has told
        typer.echo(f"numba: {took}, but the kernels are not kept: the next server compiles anew")
        raise typer.Exit(1)
    typer.echo(f"numba: {took}; kept in {' and '.join(map(str, compiling.folders()))}")
