"""A user's own function: found by its import path, or rebuilt from what its owner handed over.

(Or one of ours, by its name.)

Only workers call this (and a caller that computes in its own process): the server runs no user's
code. Names and bytes come from the server's config or through a private server's inherited pipe;
a name that came over a socket has passed the config's `allow_transforms` before it gets here.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Mapping
from typing import Any

import cloudpickle

from augproto.errors import ConfigError
from augproto.messages import Function
from augproto.named import named
from augproto.spec import HANDED
from augproto.transforms import NAMED

#: Importing one of these costs every worker seconds and hundreds of megabytes.
HEAVY = ("keras", "tensorflow", "torch", "jax")

_log = logging.getLogger("augserver.worker")


def check_name(name: str) -> None:
    """Refuse what is no import path of a function, or of a module that is not here.

    Nothing is imported but packages that the module lies in.

    Raises:
        ConfigError: It is none.
    """
    module, _, function = name.partition(":")
    if not module or not all(part.isidentifier() for part in function.split(".")):
        raise ConfigError(f"allow_transforms: got {name!r:.200}; wanted 'package.module:name'")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(
            f"allow_transforms: {name!r:.200}: there is no module {module!r} here; to do: install "
            "it, or name its folder in PYTHONPATH"
        )


def resolve(name: str, handed: Mapping[str, Function]) -> Any:
    """The function of that name.

    Raises:
        ConfigError: It cannot be imported or rebuilt; the cause says why.
    """
    if name.startswith(NAMED):
        return named(name)
    before = {module for module in HEAVY if module in sys.modules}
    try:
        if name.startswith(HANDED):
            message = handed[name]
            # Its own imports are found as in its own program: there first, in that order.
            rest = [entry for entry in sys.path if entry not in message.path]
            sys.path[:] = [*message.path, *rest]
            function = cloudpickle.loads(message.code)
        else:
            module, _, attribute = name.partition(":")
            function = importlib.import_module(module)
            for part in attribute.split("."):
                function = getattr(function, part)
    except Exception as error:
        raise ConfigError(
            f"transforms.function: {name!r} cannot be imported in a worker: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ConfigError(f"transforms.function: {name!r} is {function!r:.80}; wanted a function")
    new = [module for module in HEAVY if module in sys.modules and module not in before]
    if new:
        _log.warning(
            "the function %s imports %s, in every worker: seconds at each start, and hundreds of "
            "megabytes; keep what it needs in a module of its own",
            name,
            ", ".join(new),
        )
    return function
