"""What fit, evaluate and predict are given through ours is what they are given through Keras's.

What is noted where is in tests/support/fit_program.py; a process for each backend.
"""

from __future__ import annotations

import faces
import pytest
from scenarios import BACKENDS, Scenarios

IN_KERAS_ORDER = [
    f"{what}, in Keras's order"
    for what in (
        "arrays, seed=None, shuffle=True",
        "arrays, seed=7, shuffle=True",
        "arrays, seed=None, shuffle=False",
        "files, seed=None, shuffle=True",
        "files, seed=7, shuffle=True",
    )
]

pytestmark = [pytest.mark.keras, pytest.mark.slow]
_scenarios = Scenarios("fit_program.py", timeout=600)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return _scenarios.run(request)


def noted(backend: str, scenario: str) -> tuple[list[str], list[str]]:
    """(wanted, got)."""
    line = _scenarios.line(backend, scenario)
    return line["wanted"], line["got"]


@pytest.mark.parametrize("scenario", IN_KERAS_ORDER)
def test_in_keras_order_fit_is_given_what_keras_gives(backend: str, scenario: str) -> None:
    wanted, got = noted(backend, scenario)
    assert sum(batch.startswith("train") for batch in wanted) == 4 * 6
    assert got == wanted


@pytest.mark.parametrize("what", ["arrays", "files"])
def test_in_stream_order_fit_is_given_the_batches_that_next_gives(backend: str, what: str) -> None:
    if faces.THEIRS_TWICE:
        pytest.skip("Keras's module knows one order only")
    wanted, got = noted(backend, f"{what}, in stream order")
    assert got == wanted


def test_other_seeds_and_orders_would_be_noticed(backend: str) -> None:
    every = [tuple(noted(backend, scenario)[0]) for scenario in IN_KERAS_ORDER]
    assert len(set(every)) == len(every)
    for batches in every:
        trained = [batch for batch in batches if batch.startswith("train")]
        assert len(set(trained)) == len(trained), "a batch was trained on twice"
