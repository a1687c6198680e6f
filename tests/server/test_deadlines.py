"""Nothing waits without a deadline: every call that can wait says for how long, or why it need not.

This reads the source. A call is known by its name and its arguments, which is not proof: a call of
a function that waits looks like any other. It finds the plain ones, which are those that happen.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ("augserver", "client", "proto")

#: Calls that wait for ever without an argument that says otherwise, and where that may stand:
#: a position (counted from 0) or a keyword.
WAITS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "join": (0, ("timeout",)),
    "wait": (0, ("timeout",)),
    "wait_for": (1, ("timeout",)),
    "result": (0, ("timeout",)),
    "exception": (0, ("timeout",)),
    "poll": (0, ("timeout",)),
    "select": (3, ("timeout",)),
    "communicate": (1, ("timeout",)),
    "acquire": (1, ("timeout",)),
    "get": (1, ("timeout",)),  # a dict's has another argument
    "accept": (None, ()),
    "connect": (None, ()),
    "create_connection": (1, ("timeout",)),
    "pause": (None, ()),
    "waitpid": (None, ()),
    "term": (None, ()),
    "destroy": (0, ("linger",)),
    "sleep": (None, ()),
    "input": (None, ()),
}
#: Calls that wait unless they are told not to by one of these words among their arguments.
BLOCKS = {
    "recv": "NOBLOCK", "recv_bytes": "NOBLOCK", "recv_into": "NOBLOCK", "recv_string": "NOBLOCK",
    "recv_multipart": "NOBLOCK", "recvmsg": "NOBLOCK", "recvfrom": "NOBLOCK",
    "send": "NOBLOCK", "send_bytes": "NOBLOCK", "send_multipart": "NOBLOCK", "sendall": "NOBLOCK",
    "flock": "LOCK_NB", "lockf": "LOCK_NB",
}  # fmt: skip
#: Functions of subprocess that wait for a program.
PROGRAMS = ("run", "call", "check_call", "check_output")

#: Calls that are found and are right as they are: (file, what is called) and the reason.
ALLOWED = {
    ("augserver/agent.py", "self._woken.recv"): "a non-blocking socket",
    ("augserver/agent.py", "self._wakes.send"): "a non-blocking socket",
    ("augserver/agent.py", "os.waitpid"): "does not wait (WNOHANG), and waitid has told",
    (
        "augserver/bench/peers.py",
        "enqueuer.get",
    ): "makes a generator; what it yields has a deadline",
    ("augserver/crew.py", "worker.send"): "through a Pipe, which never waits",
    ("augserver/dial.py", "self._pipe.recv_bytes"): "it has been polled; its agent writes whole",
    (
        "augserver/dial.py",
        "self._pipe.send_bytes",
    ): "a few bytes, where it has been polled for room",
    ("augserver/dial.py", "channel.send"): "the first word in an empty pipe; it holds it",
    ("augserver/distant.py", "self._wire.send"): "a Line's, which only notes it for its thread",
    ("augserver/doors.py", "door.send"): "a Door never waits",
    ("augserver/demo.py", "time.sleep"): "between two looks, under a deadline",
    ("augserver/datasets/loader.py", "self._waiting.get"): "a daemon's life: waits for loads",
    (
        "augserver/forkserver.py",
        "self._selector.select",
    ): "the forkserver's life: ends with its server",
    ("augserver/forkserver.py", "self._woken.recv"): "a non-blocking socket",
    ("augserver/forkserver.py", "os.waitpid"): "of a process that has ended: waitid has told",
    ("augserver/forkserver.py", "self._connection.send"): "the server reads, or dies and so do we",
    ("augserver/health.py", "dealer.connect"): "ZeroMQ's connects in its own thread",
    ("augserver/health.py", "time.sleep"): "a tenth of a second, within the timeout",
    ("augserver/dealer.py", "time.sleep"): "a millisecond, within the time it was given",
    ("augserver/dealer.py", "dealer.connect"): "ZeroMQ's connects in its own thread",
    ("augserver/keeping.py", "connect"): "makes a socket; ZeroMQ connects it in its own thread",
    ("augserver/keeping.py", "self._woken.recv"): "a non-blocking socket",
    ("augserver/keeping.py", "self._wakes.send"): "a non-blocking socket",
    ("augserver/lifeline.py", "self._pipe.send"): "a Pipe never waits",
    ("augserver/private.py", "pipe.send_bytes"): "the first word in an empty socket; it holds it",
    ("augserver/observe/metrics.py", "self._server.shutdown"): "a thread that looks twice a second",
    ("augserver/placement/ray_actor.py", "time.sleep"): "a second, before the process ends",
    ("augserver/placement/ray_driver.py", "time.sleep"): "between two looks, under a deadline",
    ("augserver/server.py", "self._wake_r.recv"): "a non-blocking socket",
    ("augserver/server.py", "self._wake_w.send"): "a non-blocking socket",
    ("augserver/shapes.py", "np.select"): "numpy's: chooses among arrays",
    ("augserver/supervisor.py", "self.pipe.send"): "a Pipe never waits",
    ("augserver/transforms/lanes.py", "b.select"): "LLVM's: chooses between numbers",
    ("augserver/worker.py", "self._pipe.recv_bytes"): "a worker's life: ends with its server",
    ("augserver/worker.py", "self._pipe.send_bytes"): "the server reads, or the pipe ends with it",
    ("augserver/worker.py", "self._channel.send"): "a channel's own, see PipeChannel",
    ("augserver/worker.py", "channel.send"): "a channel's own, see PipeChannel",
    ("client/augclient/files.py", "self._dealer.connect"): "ZeroMQ's connects in its own thread",
    ("client/augclient/talk.py", "dealer.connect"): "ZeroMQ's connects in its own thread",
    ("client/augclient/tie.py", "poller.poll"): "a daemon's: ended by close() or the server's end",
    ("client/augclient/tie.py", "self._socket.send"): "a non-blocking socket",
    ("client/augclient/tie.py", "self._socket.recv"): "a non-blocking socket",
    ("proto/augproto/segment.py", "time.sleep"): "a millisecond, between a few attempts",
}


def waits(tree: ast.AST) -> Iterator[tuple[str, ast.Call, str]]:
    """Every call that can wait for ever: (its function's name, the call, what it lacks)."""
    yield from _walk(tree, "", frozenset())


def _walk(node: ast.AST, where: str, locks: frozenset[str]) -> Iterator[tuple[str, ast.Call, str]]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        where, locks = f"{where}.{node.name}".lstrip("."), frozenset()
    if isinstance(node, ast.With):
        names = [ast.unparse(item.context_expr) for item in node.items]
        locks |= {name for name in names if name.rpartition(".")[2].endswith(("lock", "turn"))}
    if isinstance(node, ast.Call):
        lack = _lacks(node)
        if lack:
            yield where, node, lack
        elif locks and _is_a_wait(node):
            yield where, node, f"a wait while {', '.join(sorted(locks))} is held"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, where, locks)


def _name(call: ast.Call) -> tuple[str, str]:
    """(What it is called on, its own name)."""
    if isinstance(call.func, ast.Attribute):
        return ast.unparse(call.func.value), call.func.attr
    return "", call.func.id if isinstance(call.func, ast.Name) else ""


def _is_a_wait(call: ast.Call) -> bool:
    on, name = _name(call)
    if _is_another(on, name, call):
        return False
    return name in WAITS and name not in ("get", "connect")


def _is_another(on: str, name: str, call: ast.Call) -> bool:
    """Whether it is something else of that name."""
    first = call.args[0] if call.args else None
    return (
        (name == "join" and (on[:1] in "'\"" or on.endswith("path") or _is_iterable(first)))
        or (name == "get" and first is not None and not _is_bool(first))
        or (name == "poll" and (on == "select" or "process" in on.lower()))  # neither waits
        or (name == "send" and on.endswith("session"))  # sans-I/O
        or (name == "run" and on != "subprocess")
        or (name == "connect" and on == "sqlite3")
    )


def _is_iterable(node: ast.expr | None) -> bool:
    return isinstance(node, (ast.GeneratorExp, ast.ListComp, ast.List, ast.Tuple)) or (
        isinstance(node, ast.Call) and _name(node)[1] in ("map", "sorted", "reversed")
    )


def _is_bool(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def _lacks(call: ast.Call) -> str | None:
    """What the call lacks, if it can wait for ever."""
    on, name = _name(call)
    words = {keyword.arg: keyword.value for keyword in call.keywords}
    if _is_another(on, name, call):
        return None
    if on == "subprocess" and name in PROGRAMS:
        return None if _given(words.get("timeout")) else "timeout="
    if name == "shutdown" and "wait" not in words and not call.args and "socket" not in on:
        return "wait=False"
    if name in BLOCKS:
        text = ", ".join(ast.unparse(argument) for argument in [*call.args, *words.values()])
        return None if BLOCKS[name] in text or "LOCK_UN" in text else BLOCKS[name]
    if name not in WAITS:
        return None
    if name == "acquire" and (_is_false(words.get("blocking")) or _is_false(*call.args[:1])):
        return None
    position, keywords = WAITS[name]
    if any(_given(words.get(keyword)) for keyword in keywords):
        return None
    if position is not None and len(call.args) > position and _given(call.args[position]):
        return None
    return "a deadline"


def _given(value: ast.expr | None) -> bool:
    return value is not None and not (isinstance(value, ast.Constant) and value.value is None)


def _is_false(value: ast.expr | None = None) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _found() -> dict[tuple[str, str], str]:
    found = {}
    for package in HOUSE:
        for path in sorted((ROOT / package).rglob("*.py")):
            for where, call, lack in waits(ast.parse(path.read_text())):
                file = str(path.relative_to(ROOT))
                text = f"{file}:{call.lineno} in {where}: {ast.unparse(call)} lacks {lack}"
                found[file, ast.unparse(call.func)] = text
    return found


def test_every_call_that_can_wait_has_a_deadline_or_a_reason() -> None:
    found = _found()
    missing = [text for key, text in found.items() if key not in ALLOWED]
    assert not missing, "\n".join(["calls that can wait for ever:", *missing])


def test_every_reason_is_for_a_call_that_exists() -> None:
    assert set(ALLOWED) <= set(_found())


@pytest.mark.parametrize(
    "sample",
    [
        "thread.join()", "thread.join(None)", "event.wait()", "process.wait(timeout=None)",
        "condition.wait_for(ready)", "lock.acquire()", "lock.acquire(True)", "queue.get()",
        "queue.get(True)", "future.result()", "future.exception()", "poller.poll()",
        "poller.poll(timeout=None)", "select.select([a], [], [])", "process.communicate()",
        "process.communicate(b'x')", "subprocess.run(['ls'])", "subprocess.check_output('ls')",
        "socket.recv()", "router.recv_multipart()", "pipe.recv_bytes()", "dealer.send(frame)",
        "fcntl.flock(fd, fcntl.LOCK_EX)", "server.accept()", "client.connect(address)",
        "while True:\n    time.sleep(1)", "signal.pause()", "os.waitpid(pid, 0)",
        "context.term()", "context.destroy()", "executor.shutdown()", "input()",
        "with self._lock:\n    process.wait(5.0)", "with turn:\n    event.wait(1)",
    ],
)  # fmt: skip
def test_a_wait_without_an_end_is_found(sample: str) -> None:
    function = f"def waits():\n{textwrap.indent(sample, '    ')}"
    assert [where for where, _, _ in waits(ast.parse(function))] == ["waits"]


@pytest.mark.parametrize(
    "sample",
    [
        "thread.join(5.0)", "', '.join(names)", "os.path.join(a, b)", "event.wait(left)",
        "condition.wait_for(ready, 5)", "lock.acquire(blocking=False)", "lock.acquire(False)",
        "lock.acquire(timeout=5)", "table.get(key)", "table.get(key, 0)", "queue.get(timeout=1)",
        "future.result(5)", "poller.poll(100)", "process.poll()", "select.poll()",
        "select.select([a], [], [], 0)", "process.communicate(timeout=5)",
        "subprocess.run(['ls'], timeout=5)", "router.recv_multipart(zmq.NOBLOCK)",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "fcntl.flock(fd, fcntl.LOCK_UN)",
        "context.destroy(linger=200)", "executor.shutdown(wait=False)", "with lock:\n    count()",
    ],
)  # fmt: skip
def test_what_cannot_wait_for_ever_is_left_alone(sample: str) -> None:
    function = f"def waits():\n{textwrap.indent(sample, '    ')}"
    assert list(waits(ast.parse(function))) == []
