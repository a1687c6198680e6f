"""fit, evaluate and predict on real backends; every scenario runs in a process of its backend.

What the scenarios do is in tests/support/keras_program.py; what must come out of them is here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import alive, descendants, wait_until

PROGRAM = Path(__file__).parents[1] / "support" / "keras_program.py"
REASON = {
    "tensorflow": "TensorFlow is not installed (pip install 'augserver[tensorflow]')",
    "jax": "JAX is not installed (pip install 'augserver[jax]')",
    "torch": "PyTorch is not installed (make test TORCH=1)",
}

pytestmark = [pytest.mark.keras, pytest.mark.slow]
_found: dict[str, dict[str, dict[str, Any]]] = {}
_stderr: dict[str, str] = {}


@pytest.fixture(scope="module", params=["tensorflow", "jax", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(REASON[name])
    if name not in _found:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), name],
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        _found[name] = {line["scenario"]: line for line in lines}
        _stderr[name] = done.stderr
    return name


def found(backend: str, scenario: str) -> dict[str, Any]:
    """What a scenario has found."""
    line = _found[backend].get(scenario)
    assert line is not None, f"{scenario} did not end:\n{_stderr[backend][-6000:]}"
    assert "traceback" not in line, line["traceback"]
    return {key: value for key, value in line.items() if key not in ("scenario", "seconds")}


def test_the_tensors_in_train_step_lie_in_the_ring(backend: str) -> None:
    result = found(backend, "zero_copy")
    assert result.pop("batches") >= 12
    assert result == {"in_ring": True, "aligned": True, "changed": True, "copies": 0}


def test_no_batch_is_torn_in_rings_of_two_three_and_four_slots(backend: str) -> None:
    result = found(backend, "never_torn")
    assert result == {
        f"{slots} {speed}": [0.0] * 5 for slots in (2, 3, 4) for speed in ("fast", "slow")
    }


def test_a_consumer_that_keeps_every_tensor_gets_every_batch_and_loses_none(backend: str) -> None:
    result = found(backend, "keeping_everything")
    assert result["kept"] == 500
    assert result["wrong"] == 0
    assert result["copies"] > 400  # the others are leases on its four slots


def test_every_epoch_of_fit_is_whole_after_whatever_came_before(backend: str) -> None:
    result = found(backend, "every_epoch_is_whole")
    assert len(result) == 28
    for name, value in result.items():
        what = name.rpartition(": ")[2]
        wanted = {
            "three epochs": [3, True],
            "validation": [3, True],
            "steps_per_epoch": True,
            "after early stopping": ["no", True],
            "after exception": ["RuntimeError", True],
            "after Ctrl-C": ["KeyboardInterrupt", True],
            "released": True,
        }[what]
        assert value == wanted, name


def test_predict_and_evaluate_come_out_in_order(backend: str) -> None:
    assert found(backend, "predict_is_in_order") == {
        "in_order": True, "evaluated": True, "released": True,
    }  # fmt: skip


def test_every_epoch_of_fit_is_a_new_epoch_of_the_stream(backend: str) -> None:
    steps = [0, 1, 2, 3, 4]
    assert found(backend, "epochs_advance") == {
        "epochs": [steps, steps, steps, []], "last": True, "differ": True,
    }  # fmt: skip


def test_twenty_interrupted_fits_leave_no_lease(backend: str) -> None:
    assert found(backend, "twenty_interrupted_fits") == {"released": True, "epochs": 2}


def test_keras_own_workers_are_made_harmless_with_a_warning(backend: str) -> None:
    assert found(backend, "keras_workers_are_refused") == {
        "warnings": 3, "workers": [1, 1, False], "whole": True,
    }  # fmt: skip


def test_close_unlinks_the_ring_and_leaves_a_live_tensor_readable(backend: str) -> None:
    assert found(backend, "close_with_a_live_tensor") == {"readable": True}


def test_a_killed_private_server_is_an_error_and_the_next_sequence_works(backend: str) -> None:
    result = found(backend, "a_dead_server_is_an_error")
    assert result["lost"], result["error"]
    assert result["again"] == 1


def test_dicts_tuples_sample_weights_and_class_weights_train(backend: str) -> None:
    assert found(backend, "structures") == {
        "dict": 2, "tuple": 2, "weighted": 2, "class_weight": 2,
    }  # fmt: skip


def test_picture_files_with_a_broken_one_among_them_train(backend: str) -> None:
    assert found(backend, "picture_files") == {
        "classes": ["dark", "light"],
        "epochs": 3,
        "predicted": [8, 2],
        "bad": [4],
        "released": True,
    }


STALLED = """
import os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
from augclient import AugSequence
sequence = AugSequence(np.zeros((80000, 4), "float32"), np.zeros((80000, 1), "float32"))
model = keras.Sequential([keras.layers.Dense(1)])
model.compile("sgd", "mse")
class Say(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            print("training", flush=True)
model.fit(sequence, epochs=1000, verbose=0, callbacks=[Say()])
"""


def test_ctrl_c_ends_a_program_whose_server_is_stalled(backend: str) -> None:
    # TensorFlow's main thread sits in C++ and hears of Ctrl-C when the batch comes or fails; the
    # link's deadline for a silent server makes sure that it does.
    below: list[int] = []
    program = subprocess.Popen(
        [sys.executable, "-c", STALLED, backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert program.stdout is not None
        while "training" not in program.stdout.readline():
            assert program.poll() is None
        below.extend(descendants(program.pid))
        os.kill(_server_of(program.pid), signal.SIGSTOP)
        program.send_signal(signal.SIGINT)
        program.wait(60)
        assert program.returncode != 0
    finally:
        program.kill()
        for pid in below:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
        program.communicate(timeout=60)  # the server holds its end of the pipe, too
    wait_until(lambda: not any(alive(pid) for pid in below), "its processes to end")


def _server_of(pid: int) -> int:
    from processes import children, command

    return next(child for child in children(pid) if "augserver.private" in command(child))
