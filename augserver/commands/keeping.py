"""`augserver keygen`, `augserver version`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augserver.commands.options import this_version


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


def version() -> None:
    """Print the version."""
    typer.echo(f"augserver {this_version()}")
