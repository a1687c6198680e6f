"""The command `augserver`: serve, worker, check-config, health, status, demo, bench, and some more.

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
        if server.figures is not None:
            typer.echo(f"figures for Prometheus at {server.figures.url}")
        _warn_of_streams(settings)
        signals.serve_until_signalled(server)


def _banner(address: str, settings: Config) -> str:
    streams = ", ".join(sorted(settings.streams)) or "none"
    workers = f"{settings.workers} worker{'s' if settings.workers != 1 else ''}"
    return f"augserver {_version()} listens at {address}; streams: {streams}; {workers}"


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


@app.command("check-config")
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


@app.command()
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
Key = Annotated[
    str | None,
    typer.Option(
        envvar="AUGSERVER_CLIENT_KEY",
        metavar="FILE",
        help="A secret key of one's own, where the server asks for one.",
    ),
]
ServerKey = Annotated[
    str | None,
    typer.Option(
        envvar="AUGSERVER_SERVER_KEY", metavar="FILE", help="The server's public key, with that."
    ),
]
ASK_TIMEOUT = 5.0


@app.command()
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


@app.command()
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


@app.command()
def worker(
    connect: Annotated[
        str,
        typer.Option(
            envvar="AUGSERVER_WORKERS_ADDRESS",
            metavar="ADDRESS",
            help="tcp://HOST:PORT, where the server listens for workers (listen_workers).",
        ),
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="AUGSERVER_WORKERS",
            min=1,
            help="Worker processes.",
            show_default="one for each core",
        ),
    ] = None,
    allow_transforms: Annotated[
        list[str] | None,
        typer.Option(
            envvar="AUGSERVER_ALLOW_TRANSFORMS",
            metavar="MODULE:NAME",
            help="A function of yours that streams may name; repeat it for several.",
            show_default="none",
        ),
    ] = None,
    key: Key = None,
    server_key: ServerKey = None,
) -> None:
    """Make batches for a server on another machine, until SIGTERM or Ctrl-C.

    Nothing is kept here and nothing is shared: what a batch is made of comes with its assignment.
    A server that is gone is dialled again, for ever.
    """
    from augserver import addresses, agent, backend
    from augserver.config import cores
    from augserver.dial import Orders

    logging.basicConfig(level=logging.INFO, format="augserver: %(message)s")
    backend.check()
    orders = Orders(
        connect,
        tuple(allow_transforms or ()),
        key and os.path.abspath(key),
        server_key and os.path.abspath(server_key),
    )
    # What is wrong is said once, and here, and not by each worker.
    if not addresses.is_address(connect):
        raise ConfigError(
            f"connect: got {connect!r:.200}; wanted tcp://HOST:PORT, where the server listens for "
            "workers (listen_workers)"
        )
    _ = orders.keys
    agent.run(orders, cores() if workers is None else workers)


@app.command()
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
    allow_transforms: Annotated[
        list[str] | None,
        typer.Option(
            envvar="AUGSERVER_ALLOW_TRANSFORMS",
            metavar="MODULE:NAME",
            help="A function of yours that streams may name; repeat it for several.",
            show_default="none",
        ),
    ] = None,
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
    from augserver import addresses
    from augserver.placement import ray_workers
    from augserver.placement.fleet import Fleet, resources_of

    if workers and not addresses.is_address(server):
        raise ConfigError(
            f"server: got {server!r:.200}; wanted tcp://HOST:PORT, where the server listens for "
            "workers (listen_workers), as the nodes see it"
        )
    wanted = Fleet(
        name=fleet,
        workers=workers,
        server=server,
        num_cpus=num_cpus,
        resources=resources_of(resources),
        key=key,
        server_key=server_key,
        allow_transforms=tuple(allow_transforms or ()),
        version=_version(),
    )
    placed = ray_workers.place(wanted, address, wait=wait, token=not no_token)
    for each in placed:
        typer.echo(str(each))
    enlisted = sum(each.state == "enlisted" for each in placed)
    typer.echo(f"{fleet}: {enlisted} of {len(placed)} workers enlisted")
    if enlisted != (len(placed) if workers is None else workers):
        raise typer.Exit(1)


@app.command()
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
            typer.echo(f"unhealthy: pid {pulse.pid} {pulse.complaint}", err=True)
            raise typer.Exit(1)
    for pulse in found:
        typer.echo(
            f"healthy: pid {pulse.pid}; {pulse.enlisted} of {pulse.wanted} workers enlisted at "
            f"{pulse.address}"
        )


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
def bench(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="CIFAR-10 (cifar-10-batches-py or a .npz) and folders of photographs by class.",
            show_default="pictures drawn by the program",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Get CIFAR-10 from keras.datasets.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Within three minutes on two cores.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="The most worker processes to try.", show_default="one for each core"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE.html", help="The report, one file.")] = Path(
        "augserver-bench.html"
    ),
    numbers: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE.json", help="The raw numbers.", show_default="beside the report"
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="One of the plots by itself.", hidden=True),
    ] = None,
    size: Annotated[str | None, typer.Option(help="full, quick or tiny.", hidden=True)] = None,
) -> None:
    """Measure on this machine what augserver gains, beside what Keras has, and draw it."""
    from augserver.bench import run

    try:
        run.run(
            data=data,
            download=download,
            output=output,
            json_output=numbers,
            svg=svg,
            processes=processes,
            size=size or ("quick" if quick else "full"),
        )
    except KeyboardInterrupt:
        typer.echo("augserver: interrupted; no report was written", err=True)
        raise typer.Exit(130) from None  # a shell's word for Ctrl-C


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(help="Whose key it is to be.")],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="FOLDER", help="Where the two files go.")
    ] = Path(),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave a pair of that name as it is, if there is one.")
    ] = False,
) -> None:
    """Make a pair of keys: NAME.key, secret, and NAME.pub, for those who are to recognise it."""
    from augproto import keys

    secret, public = keys.paths_of(folder, name)
    if keep and secret.exists() and public.exists():
        keys.load_secret(secret)  # or it is of no use
        typer.echo(f"{secret} and {public} are kept")
        return
    keys.generate(folder, name)
    typer.echo(f"{secret}: secret, stays with {name}\n{public}: public")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"augserver {_version()}")


def _version() -> str:
    return importlib.metadata.version("augserver")
