"""What the pages on placement tell people to type is what the command understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from augserver.cli import app

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md", "docs/containers.md", "docs/kubernetes.md", "docs/placement.md", "docs/ray.md",
    "docs/security.md", "docs/slurm.md", "docs/ssh.md",
)  # fmt: skip
#: A program's name, after nothing or after what may stand before one; and what is said to it.
_COMMAND = re.compile(
    r"(?:^|[\s'\"`(/])augserver ((?:bench|check-config|demo|health|keygen|ray-workers|serve|status|"
    r"warmup|worker|worker-health)\b[^\n`;|&#)]*)"
)


def _said() -> list[tuple[str, str]]:
    """(Page, command) for each in a block or between backticks."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        code = re.findall(r"```(?:sh|yaml)\n(.*?)```", text, re.DOTALL)
        code += re.findall(
            r"`(augserver [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        )
        for block in code:
            found += [(page, command.strip()) for command in _COMMAND.findall(block)]
    return found


def _words(command: str) -> list[str]:
    """As a shell would part them; a quote that opened before the program's name ends it."""
    for end in ("'", '"'):
        if command.count(end) % 2:
            command = command[: command.rindex(end)]
    words = shlex.split(command)
    return [("3" if word == "N" else word) for word in words]  # what a reader would write


@pytest.mark.parametrize(("page", "command"), sorted(set(_said())))
def test_every_command_on_a_page_is_one_that_there_is(page: str, command: str) -> None:
    # (typer's click may be its own, so types are left aside.)
    root: Any = typer.main.get_command(app)
    name, *arguments = _words(command)
    found = root.commands[name]
    for parameter in found.params:  # what a page leaves out, it means to be left out
        parameter.required = False
    made = found.make_context(name, list(arguments))
    assert not made.args


def test_the_pages_say_enough_for_that_to_mean_something() -> None:
    names = {_words(command)[0] for _, command in _said()}
    wanted = {"serve", "worker", "ray-workers", "keygen", "status", "health", "worker-health"}
    assert wanted <= names
    assert len(set(_said())) > 25


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("worker --conect tcp://x:1", "No such option"),
        ("ray-workers --workers two", "a valid integer|not a valid"),
    ],
)
def test_a_command_that_there_is_not_would_be_found(command: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        test_every_command_on_a_page_is_one_that_there_is("", command)
