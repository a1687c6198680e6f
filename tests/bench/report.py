"""How a measurement says its answers: a line for people, and one for `table.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from measure import Rate

OURS = "augserver"
#: Names a file to which the answers are added as JSON, one a line.
VARIABLE = "AUGSERVER_BENCH_ANSWERS"


@dataclass(frozen=True)
class Answer:
    """An answer to one question.

    Attributes:
        question: What was asked.
        ratio: The answer: ours beside theirs, from one run.
        figures: What it was computed from, in words, with units.
    """

    question: str
    ratio: float
    figures: str


def answer(question: str, ratio: float, figures: str) -> None:
    """Print an answer, and write it where `table.py` wants it."""
    print(f"{question}: {ratio:.2f}\n    {figures}", flush=True)
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Answer(question, ratio, figures))) + "\n")


def standing(what: str, found: Mapping[str, Rate], missing: Mapping[str, str]) -> None:
    """Everybody at one work, the fastest first: answers beside ours."""
    ours = found[OURS]
    for name, rate in sorted(found.items(), key=lambda item: -item[1].images):
        question = what if name == OURS else f"{what}: augserver beside {name}"
        answer(
            question,
            ours.images / rate.images,
            f"{rate.images:,.0f} images/s, {rate.cpu:.1f} us of CPU time an image",
        )
    for name, reason in missing.items():
        print(f"{what}: {name} is not measured: {reason}")
