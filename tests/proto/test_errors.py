"""The tree in the docstring is the tree of the classes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from augproto import errors
from augproto.codec import encode, expect
from augproto.errors import AugError, ConfigError, NoRoom, ProtocolError, WorkerError
from augproto.faults import error_of, fault_of
from augproto.messages import Fault

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if cls.__module__ == errors.__name__
]


def drawn() -> list[tuple[str, str]]:
    """(class, its bases) of every line of the picture."""
    path: list[str] = []
    lines = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:[│├└ ]...)*)(\w+)(?: \((\w+)\))?(?:  |$)", line)
        if match:
            path[len(match[1]) // 4 :] = [match[2]]
            bases = [*path[-2:-1], *([match[3]] if match[3] else [])]
            lines.append((match[2], ", ".join(bases or ["Exception"])))
    return lines


def test_the_picture_is_the_tree() -> None:
    tree = [(cls.__name__, ", ".join(base.__name__ for base in cls.__bases__)) for cls in CLASSES]
    assert sorted(drawn()) == sorted(tree)


def test_everything_is_caught_as_an_aug_error() -> None:
    assert all(issubclass(cls, AugError) for cls in CLASSES)


def test_every_class_says_when_it_is_raised() -> None:
    assert all((cls.__doc__ or "").endswith((".", ").")) or "Attributes:" in (cls.__doc__ or "")
               for cls in CLASSES)  # fmt: skip


def test_a_protocol_error_is_raised_as_a_leaf_only() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ProtocolError("something")
    leaves = [cls for cls in CLASSES if issubclass(cls, ProtocolError) and cls is not ProtocolError]
    assert len(leaves) == 4
    for leaf in leaves:
        assert str(leaf("something")) == "something"


def test_a_worker_error_shows_the_workers_traceback() -> None:
    error = WorkerError("no picture", epoch=1, step=2, sample=3, traceback="Traceback ...")
    assert str(error) == "no picture\n\nTraceback ..."
    assert (error.epoch, error.step, error.sample) == (1, 2, 3)
    assert str(WorkerError("died", epoch=1, step=2)) == "died"


def test_errors_that_python_knows_too_are_caught_as_those() -> None:
    pairs = {
        "ConfigError": ValueError,
        "NoRoom": OSError,
        "ConnectTimeout": TimeoutError,
        "BatchTimeout": TimeoutError,
        "ServerLost": ConnectionError,
    }
    for name, builtin in pairs.items():
        assert issubclass(getattr(errors, name), builtin)
    assert str(NoRoom(28, "no room for it")) == "[Errno 28] no room for it"


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls not in (ProtocolError, WorkerError)])
def test_an_error_survives_a_pickle_as_keras_workers_need(cls: type[AugError]) -> None:
    again = pickle.loads(pickle.dumps(cls("what happened")))
    assert type(again) is cls
    assert again.args == ("what happened",)


def told(error: Exception) -> AugError:
    """The error at the other end of the wire."""
    return error_of(expect(encode(fault_of(error)), Fault))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_is_the_same_leaf_at_the_other_end(cls: type[AugError]) -> None:
    if cls in (ProtocolError, WorkerError):  # the one is abstract, the other is about one batch
        assert type(error_of(Fault(cls.__name__, "what happened"))) is errors.RemoteProtocolError
        return
    again = told(cls("what happened"))
    assert type(again) is cls
    assert str(again) == "what happened"


def test_an_error_of_any_length_can_be_told() -> None:
    again = told(ConfigError("x" * 1_000_000))
    assert type(again) is ConfigError
    assert len(str(again)) >= 1000


@pytest.mark.parametrize("kind", ["OSError", "FileNotFoundError", "annotations", "", "AugErrors"])
def test_an_error_of_no_tree_of_ours_is_shown_as_text(kind: str) -> None:
    again = error_of(Fault(kind, "what happened"))
    assert type(again) is errors.RemoteProtocolError
    assert str(again) == f"{kind}: what happened"


def test_a_numbered_fault_is_about_a_batch() -> None:
    again = error_of(Fault("WorkerError", "broken", 3, 1, 2, 7, "Traceback ..."))
    assert isinstance(again, WorkerError)
    assert (again.epoch, again.step, again.sample) == (1, 2, 7)
    assert str(again) == "broken\n\nTraceback ..."
