"""Options that several commands have."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

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
AllowTransforms = Annotated[
    list[str] | None,
    typer.Option(
        envvar="AUGSERVER_ALLOW_TRANSFORMS",
        metavar="MODULE:NAME",
        help="A function of yours that streams may name; repeat it for several.",
        show_default="none",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        envvar="AUGSERVER_WORKERS",
        min=1,
        help="Worker processes.",
        show_default="one for each core",
    ),
]


def this_version() -> str:
    """Of augserver."""
    return importlib.metadata.version("augserver")
