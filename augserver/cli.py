"""The command `augserver`: serve, health, status, demo, version.

Whatever is wrong with what a user said becomes one line on standard error and exit code 2; what
went wrong otherwise, one line and exit code 1. Each command imports what it needs itself, so that
a health check, which runs every few seconds, costs no more than it must.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

try:
    import typer
except ImportError:
    raise SystemExit(
        "augserver: the command line needs the server's packages: pip install 'augserver[server]'"
    ) from None

from augproto.errors import AugError, ConfigError

if TYPE_CHECKING:
    from augserver.config import Config

#: Read where no --config is given.
CONFIG_FILE = Path("augserver.toml")

_log = logging.getLogger("augserver.cli")

app = typer.Typer(
    help="Augmented training batches from worker processes, through shared memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console entry."""
    try:
        app()
    except AugError as error:
        print(f"augserver: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="AUGSERVER_CONFIG",
            help="The streams and settings.",
            show_default="./augserver.toml, if there is one",
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            envvar="AUGSERVER_LISTEN",
            metavar="ADDRESS",
            help="ipc://PATH or tcp://127.0.0.1:PORT; repeat it for several.",
            show_default="a socket of this user's",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="AUGSERVER_WORKERS",
            help="Worker processes; 0 computes in the server itself.",
            show_default="one for each core",
        ),
    ] = None,
) -> None:
    """Serve streams until SIGTERM or Ctrl-C."""
    from augserver import signals
    from augserver.server import Server

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
    settings = _settings(config, listen, workers)
    with Server(settings) as started:
        server = started
        if told:
            server.stop(told[0])
        for address in server.addresses:
            typer.echo(_banner(address, settings))
        _warn_of_streams(settings)
        signals.serve_until_signalled(server)


def _settings(config: Path | None, listen: list[str] | None, workers: int | None) -> Config:
    from augserver import runtime
    from augserver.config import parse, read

    overrides: dict[str, object] = {"listen": listen or None, "workers": workers}
    if config is None and CONFIG_FILE.exists():
        config = CONFIG_FILE
    settings = parse({}, Path.cwd(), overrides) if config is None else read(config, overrides)
    if not settings.listen:
        settings = dataclasses.replace(settings, listen=(runtime.default_address(),))
    return settings


def _banner(address: str, settings: Config) -> str:
    streams = ", ".join(sorted(settings.streams)) or "none"
    workers = f"{settings.workers} worker{'s' if settings.workers != 1 else ''}"
    return f"augserver {_version()} listens at {address}; streams: {streams}; {workers}"


def _warn_of_streams(settings: Config) -> None:
    """Say at the start what consumers would otherwise be told one by one."""
    if not settings.streams and not settings.roots:
        _log.warning("neither streams nor roots are configured: consumers can open nothing")
    for name, spec in settings.streams.items():
        for path in spec.data:
            if not os.access(path, os.R_OK):
                _log.warning("streams.%s: %s cannot be read (yet)", name, path)


Connect = Annotated[
    str | None,
    typer.Option(
        envvar=["AUGSERVER_ADDRESS", "AUGSERVER_LISTEN"],
        metavar="ADDRESS",
        help="The server's address.",
        show_default="where `serve` listens by default",
    ),
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for its answer.")]
ASK_TIMEOUT = 5.0


@app.command()
def health(connect: Connect = None, timeout: Timeout = ASK_TIMEOUT) -> None:
    """Ask a server how it is: exit code 0 if it can serve, 1 and the reason if not."""
    from augserver import health

    try:
        pid, status = health.ask(_address(connect), timeout)
    except AugError as error:
        typer.echo(f"unhealthy: {error}", err=True)
        raise typer.Exit(1) from None
    reason = health.complaint(status)
    if reason is not None:
        typer.echo(f"unhealthy: {reason}", err=True)
        raise typer.Exit(1)
    typer.echo(f"healthy: {health.describe(pid, status)}")


@app.command()
def status(connect: Connect = None, timeout: Timeout = ASK_TIMEOUT) -> None:
    """Print what a server says of itself, with the samples that batches had to do without."""
    from augserver import health

    pid, said = health.ask(_address(connect), timeout)
    typer.echo(health.describe(pid, said))
    for line in health.bad_samples(said):
        typer.echo(line)


def _address(connect: str | None) -> str:
    from augserver import runtime

    # AUGSERVER_LISTEN may name several.
    return ((connect or "").split() or [runtime.default_address()])[0]


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Pictures of your own: x_train, y_train, x_test, y_test, as CIFAR-10's.",
            show_default="pictures drawn by the demo",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = 4,
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="AUGSERVER_WORKERS",
            min=1,
            help="Worker processes.",
            show_default="one for each core",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="tensorflow, jax or torch.",
            show_default="KERAS_BACKEND, or the first that is installed",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE.png", help="The contact sheet.")] = Path(
        "augserver-demo.png"
    ),
    pictures: Annotated[
        int, typer.Option(min=64, help="How many to draw for training.", hidden=True)
    ] = 6000,
    make_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Only write the drawn pictures.", hidden=True),
    ] = None,
) -> None:
    """Train a small network on augmented pictures; nothing is downloaded."""
    if make_data is not None:
        from augserver import shapes

        shapes.draw_dataset(pictures).save(make_data)
        typer.echo(f"{make_data}: {make_data.stat().st_size} bytes")
        return
    from augserver import demo

    demo.run(
        data=data,
        epochs=epochs,
        workers=workers,
        backend=backend,
        output=output,
        pictures=pictures,
    )


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"augserver {_version()}")


def _version() -> str:
    return importlib.metadata.version("augserver")
