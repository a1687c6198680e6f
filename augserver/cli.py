"""The command `augserver`: serve, worker, check-config, health, status, demo, bench, and some more.

Whatever is wrong with what a user said becomes one line on standard error and exit code 2; what
went wrong otherwise, one line and exit code 1. Each command imports what it needs itself, so that
a health check, which runs every few seconds, costs no more than it must.
"""

from __future__ import annotations

import sys

try:
    import typer
except ImportError:
    raise SystemExit(
        "augserver: the command line needs the server's packages: pip install 'augserver[server]'"
    ) from None

from augproto.errors import AugError, ConfigError
from augserver.commands import asking, keeping, serving, trying, working

app = typer.Typer(
    help="Augmented training batches from worker processes, through shared memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    serving.serve,
    serving.check_config,
    serving.warmup,
    asking.health,
    asking.status,
    working.worker,
    working.worker_health,
    working.ray_workers,
    trying.demo,
    trying.bench,
    keeping.keygen,
    keeping.version,
):
    app.command()(command)


def main() -> None:
    """The console entry."""
    try:
        app()
    except AugError as error:
        print(f"augserver: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
