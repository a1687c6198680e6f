"""A stream as a `tf.data.Dataset` and as tensors of PyTorch: real frameworks, real servers.

What the scenarios do is in tests/support/outputs_program.py; what must come out of them is here.
"""

from __future__ import annotations

from typing import Any

import pytest
from scenarios import Scenarios

pytestmark = pytest.mark.keras
_scenarios = Scenarios("outputs_program.py", timeout=600)


def found(backend: str, scenario: str) -> dict[str, Any]:
    """What a scenario has found."""
    line = _scenarios.line(_scenarios.run_on(backend), scenario)
    assert "traceback" not in line, line["traceback"]
    return {key: value for key, value in line.items() if key not in ("scenario", "seconds")}


def test_a_tf_dataset_gives_the_consumer_s_batches_epoch_by_epoch_without_a_copy() -> None:
    assert found("tensorflow", "values") == {
        "equal": True, "differ": True, "in_ring": True, "cardinality": 7, "copies": 0,
        "spec": ["(None, 8, 8, 3)float32", "(None,)float32"], "released": True,
    }  # fmt: skip


def test_an_iteration_that_is_broken_off_is_begun_again() -> None:
    assert found("tensorflow", "breaking_off") == {
        "again": True, "whole": True, "after": True, "later": True, "released": True,
    }  # fmt: skip


def test_a_tf_dataset_holds_no_more_slots_than_it_was_told_to() -> None:
    assert found("tensorflow", "few_slots_are_held") == {"few": True, "copies": 0}


def test_dicts_tuples_and_sample_weights_keep_their_structure_in_tf_data() -> None:
    last = [48.0, 49.0, 50.0, 51.0, 52.0]
    assert found("tensorflow", "structures") == {
        "names": ["number", "picture"], "spec": ["number", "picture"], "x": last,
        "y": [last, [v + 1 for v in last]], "w": "float64", "released": True, "alone": [1],
        "refused": ["prefetch: got -1", "prefetch: got 'x'", "epoch: got -1"],
    }  # fmt: skip


def test_fit_evaluate_and_predict_take_a_tf_dataset() -> None:
    assert found("tensorflow", "fit") == {
        "whole": [True] * 3, "orders": 3, "repeated": [True] * 2, "losses": 3,
        "predicted": [53, 1], "drawn_anew": True, "in_order": True, "released": True,
    }  # fmt: skip


def test_a_batch_that_cannot_be_made_ends_a_tf_dataset_with_its_own_words() -> None:
    assert found("tensorflow", "an_error") == {"named": True, "released": True}


def test_ctrl_c_ends_a_loop_over_a_tf_dataset_and_the_next_is_whole() -> None:
    assert found("tensorflow", "ctrl_c") == {
        "ended": "KeyboardInterrupt", "released": True, "whole": True,
    }  # fmt: skip


def test_ctrl_c_is_heard_while_tensorflow_waits_for_a_batch() -> None:
    assert found("tensorflow", "ctrl_c_where_no_batch_comes") == {
        "ended": "KeyboardInterrupt", "soon": True,
    }  # fmt: skip


def test_a_torch_loader_gives_the_consumer_s_batches_without_a_copy() -> None:
    assert found("torch", "loader") == {
        "equal": True, "differ": True, "in_ring": True, "length": [7, 7], "again": True,
        "copies": 0, "released": True,
    }  # fmt: skip


def test_a_tensor_that_is_kept_keeps_its_slot() -> None:
    assert found("torch", "a_kept_tensor") == {"held": 7, "released": True}


def test_a_torch_dataset_refuses_the_loader_s_own_workers_and_goes_on_without() -> None:
    assert found("torch", "workers_of_a_loader") == {"said": [True] * 3, "whole": 7}


def test_a_torch_dataset_wants_memory_that_may_be_written_to() -> None:
    assert found("torch", "read_only_memory") == {
        "said": True, "no_consumer": True, "inline": [8, 8, 8, 3],
    }  # fmt: skip


def test_dtypes_pass_into_tensors() -> None:
    assert found("torch", "other_dtypes") == {
        "dtypes": ["torch.float16", "torch.bool"], "sequence": ["Tensor", "torch.uint8"],
    }  # fmt: skip
