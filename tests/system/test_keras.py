"""fit, evaluate and predict on real backends; every scenario runs in a process of its backend.

What the scenarios do is in tests/support/keras_program.py; what must come out of them is here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import alive, descendants, wait_until
from scenarios import BACKENDS, Scenarios

pytestmark = [pytest.mark.keras, pytest.mark.slow]
_scenarios = Scenarios("keras_program.py", timeout=1500, alone=["ctrl_c_at_random_moments"])


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return _scenarios.run(request)


def found(backend: str, scenario: str) -> dict[str, Any]:
    """What a scenario has found."""
    line = _scenarios.line(backend, scenario)
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


def test_a_server_killed_under_fit_is_a_pause_and_tears_no_batch_by_frames_or_shared(
    backend: str,
) -> None:
    result = found(backend, "never_torn_by_frames")
    assert result.pop("kills") == 4
    result.pop("shared: copies")  # what a framework keeps for later may fill three slots
    assert result == {"frames": [0.0] * 5, "shared": [0.0] * 5, "frames: copies": 0}


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


def test_ctrl_c_at_random_moments_ends_fit_and_the_next_is_whole(backend: str) -> None:
    result = found(backend, "ctrl_c_at_random_moments")
    assert result.pop("again") <= 4  # what a finalizer of another library has swallowed
    assert result.pop("spoiled") <= 4  # frameworks that a fit could not go on with
    assert result == {"ended": ["KeyboardInterrupt"], "fits": 20}


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
import os, signal, sys, time
os.environ["KERAS_BACKEND"] = sys.argv[1]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
from augclient import AugSequence, local
sequence = AugSequence(np.arange(800.0)[:, None], np.arange(800.0)[:, None], batch_size=8, slots=4)
model = keras.Sequential([keras.layers.Dense(1)])
model.compile("sgd", "mse")
class Stall(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            os.kill(local._server.pid, signal.SIGSTOP)
            print("stopped", flush=True)
try:
    model.fit(sequence, epochs=1000, verbose=0, callbacks=[Stall()])
except KeyboardInterrupt:
    print("interrupted", flush=True)
except RuntimeError as error:
    # Before Python 3.12, pybind11 (TensorFlow's) makes this of an error that meets Ctrl-C.
    if sys.version_info >= (3, 12) or "REPLACED BY KeyboardInterrupt" not in str(error):
        raise
    print("interrupted", flush=True)
os.kill(local._server.pid, signal.SIGCONT)
epoch, served = sequence._passes._epoch, []
get = sequence.consumer.get
def noting(epoch, step):
    batch = get(epoch, step)
    served.append((epoch, step))
    return batch
sequence.consumer.get = noting
model.fit(sequence, epochs=1, verbose=0)
steps = [step for at, step in served if at == epoch]
print(sorted(set(steps)) == list(range(100)), sequence.consumer.leased <= 4, flush=True)
"""


def test_ctrl_c_ends_a_fit_whose_server_is_stopped_and_the_next_is_whole(backend: str) -> None:
    # TensorFlow's main thread sits in C++ meanwhile, and hears of Ctrl-C only when the fetch in
    # another thread has ended; the ten seconds after which a silent server is lost are another
    # way for that, which this test must not take for the first.
    program = subprocess.Popen(
        [sys.executable, "-c", STALLED, backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    below: list[int] = []
    said = []
    try:
        assert program.stdout is not None
        for line in program.stdout:
            said.append(line.strip())
            if line == "stopped\n":
                below.extend(descendants(program.pid))
                wait_until(lambda: _waits_for_a_batch(program.pid), "the fit to run dry")
                program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    finally:
        program.kill()
        for pid in below:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
        program.communicate(timeout=60)  # the server holds its end of the pipe, too
    assert said == ["stopped", "interrupted", "True True"], err
    assert "ServerLost" not in err
    wait_until(lambda: not any(alive(pid) for pid in below), "its processes to end")


def _waits_for_a_batch(pid: int) -> bool:
    """Whether a process has used no time of the processor for a while."""

    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(0.5)  # the measure, not a wait
    return used() - before <= 2
