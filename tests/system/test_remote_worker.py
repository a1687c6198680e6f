"""`augserver worker`, real processes, against a server that the test plays itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreman import Foreman, Guest, Result, foreman
from PIL import Image
from processes import alive, children, command, descendants, wait_until, workers
from remote_agent import agent

from augproto.errors import WorkerError
from augproto.messages import Dismiss, Enlist, Fault, Resign, Script
from augproto.pictures import Pictures
from augproto.spec import Spec
from augproto.transforms import Transforms
from augproto.twister import pack
from augserver import agent as agents
from augserver.datasets.listing import list_files
from augserver.dial import Orders
from augserver.inline import Inline

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(5)
ARRAYS: dict[str, Array] = {
    "x": RNG.integers(0, 256, (100, 16, 16, 3), np.uint8),
    "y": np.arange(100),
}
TRANSFORMS = Transforms(
    rotation_range=30, zoom_range=(0.8, 1.2), horizontal_flip=True, brightness_range=(0.7, 1.3)
)
FUNCTIONS = """
import os, time
from pathlib import Path

HERE = Path(__file__).parent

def plus_one(picture):
    return picture + 1

def deadly(picture):
    if picture[0, 0, 0] == 255 and (HERE / "armed").exists():
        (HERE / "armed").unlink()
        os.kill(os.getpid(), 9)
    return picture

def stuck(picture):
    while (HERE / "hold").exists():
        (HERE / "at").write_text(str(os.getpid()))
        time.sleep(0.01)
    return picture
"""


def spec(**options: Any) -> Spec:
    settings: dict[str, Any] = {
        "data": ("a.npz",), "x": "x", "y": "y", "batch_size": 16, "transforms": TRANSFORMS,
        "seed": 7,
    }  # fmt: skip
    return Spec(**settings | options)


def digest(batches: list[dict[str, Array]]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            found.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
    return found.hexdigest()


def made(results: list[Result]) -> list[dict[str, Array]]:
    for result in results:
        assert result.failed is None, result.failed
    return [result.fields for result in results if result.fields is not None]


def truth(
    spec: Spec, arrays: dict[str, Array] | None = None, epoch: int = 0
) -> list[dict[str, Array]]:
    """An epoch by workers=0."""
    own = Inline(spec, arrays, None, "")
    return [own.fetch((epoch, step), 1.0) for step in range(own.opened.steps)]


@pytest.fixture
def server() -> Iterator[Foreman]:
    with foreman() as made:
        yield made


@pytest.fixture
def functions(tmp_path: Path) -> dict[str, str]:
    """A module of functions, and the environment in which it is found."""
    (tmp_path / "own_functions.py").write_text(FUNCTIONS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path}


# -- the same bytes --------------------------------------------------------------------------------


def test_an_epoch_by_remote_workers_has_the_bytes_of_workers_0(
    server: Foreman, tmp_path: Path
) -> None:
    specs = [
        spec(),
        spec(scheme="keras"),
        spec(scheme="keras", shuffle=False, validation_split=0.2, subset="training"),
        spec(target_size=(24, 20), data_format="channels_last", dtype="float16"),
        spec(y=None, transforms=Transforms(), whitening="white", dtype="float32"),
    ]
    arrays = ARRAYS | {"white": RNG.normal(size=(768, 768)).astype(np.float32)}
    with agent(tmp_path, server.address, 2):
        server.enlisted(2)
        for number, each in enumerate(specs):
            server.define(number, each, 7, arrays)
            for epoch in (0, 1):
                got = made(server.epoch(number, epoch))
                assert digest(got) == digest(truth(each, arrays, epoch)), (number, epoch)


def test_several_batches_made_as_one_have_the_bytes_of_workers_0(
    server: Foreman, tmp_path: Path
) -> None:
    small = spec(batch_size=8)
    with agent(tmp_path, server.address):
        server.enlisted()
        server.define(1, small, 7, ARRAYS, span=4)
        got = made(server.epoch(1, 0))
        assert [len(batch["y"]) for batch in got] == [32, 32, 32, 4]
        rows = {name: np.concatenate([batch[name] for batch in got]) for name in ("x", "y")}
        own = truth(small, ARRAYS)
        for name, array in rows.items():
            assert np.array_equal(array, np.concatenate([batch[name] for batch in own]))


def folder_of_pictures(root: Path) -> Path:
    """Two classes of pictures of several kinds, and one file that is none."""
    for i in range(30):
        path = root / "pets" / ("cat", "dog")[i % 2] / f"{i:02}.{('jpg', 'png')[i % 3 > 1]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(path)
    (root / "pets" / "cat" / "24.jpg").write_bytes(b"no picture")
    return root / "pets"


@pytest.mark.parametrize("policy", ["skip", "substitute", "raise"])
def test_a_folder_with_a_bad_file_is_as_in_workers_0(
    server: Foreman, tmp_path: Path, policy: str
) -> None:
    folder = folder_of_pictures(tmp_path)
    pictures = Pictures(label_mode="binary")
    pets = Spec(
        data=(str(folder),), x="picture", y="label", batch_size=8, target_size=(24, 24), seed=7,
        pictures=pictures, bad_samples=policy, transforms=TRANSFORMS, validation_split=0.2,
        subset="training",
    )  # fmt: skip
    listing = list_files(str(folder), pictures)
    pets = pets.with_classes(listing.class_names)
    bad = sorted(folder.glob("*/*")).index(folder / "cat" / "24.jpg")
    with agent(tmp_path, server.address, 2):
        server.enlisted(2)
        server.define(1, pets, 7, listing.arrays)
        got = server.epoch(1, 0)
    own = Inline(pets, None, None, None)
    blamed = []
    for step, result in enumerate(got):
        if result.failed is not None:
            with pytest.raises(WorkerError, match="no picture") as raised:
                own.fetch((0, step), 1.0)
            assert result.failed.sample == raised.value.sample == bad
            assert result.failed.path == "", "the server knows it"
            assert f"sample {bad}: UnidentifiedImageError: no picture" in result.failed.message
            blamed.append(bad)
            continue
        assert digest(made([result])) == digest([own.fetch((0, step), 1.0)])
        blamed += [one.sample for one in result.bad]
        reasons = [one.reason for one in own.bad((0, step))]
        assert [one.reason for one in result.bad] == reasons
        assert [one.path for one in result.bad] == [""] * len(result.bad)
    assert blamed == [bad]
    lacked = any(type(message).__name__ == "Lack" for _, message in server.said)
    assert lacked == (policy == "substitute"), "a substitute's file is asked for, and nothing else"


def test_what_was_not_sent_is_asked_for(server: Foreman, tmp_path: Path) -> None:
    server.withheld = set(range(0, 100, 3))
    with agent(tmp_path, server.address):
        server.enlisted()
        server.define(1, spec(), 7, ARRAYS)
        assert digest(made(server.epoch(1, 0))) == digest(truth(spec(), ARRAYS))
    assert any(type(message).__name__ == "Lack" for _, message in server.said)


def test_scripts_and_pictures_that_are_sent_along_come_out_as_in_workers_0(
    server: Foreman, tmp_path: Path
) -> None:
    keras, given = spec(scheme="keras"), Spec(data=("d",), x="x", scheme="given", batch_size=4)
    state = pack(np.random.RandomState(3).get_state())
    indexes = np.array([5, 99, 0], "<i8").tobytes()
    matrix = np.array([[[0.9, 0.1, 1], [-0.1, 1.1, 2]]] * 3, "<f8").tobytes()
    scripts = {
        1: Script(0, 2, indexes, state=state),
        2: Script(0, 3, indexes, matrices=matrix, brightness=0.5),
        3: Script(0, 4, pictures=ARRAYS["x"][7].tobytes(), brightness=0.5),
    }
    with agent(tmp_path, server.address):
        (guest,) = server.enlisted()
        for number, script in scripts.items():
            stream = keras if number == 1 else given
            server.define(number, stream, 7, ARRAYS)
            server.assign(guest, number, *script[:2], script)
            key = (number, script.epoch, script.step)
            server.until(lambda: key in server.results, "the scripted batch")  # noqa: B023
            own = Inline(stream, ARRAYS, None, "")
            own.give(script)
            wanted = own.fetch(script[:2], 1.0)
            assert digest(made([server.results[key]])) == digest([wanted])
            assert server.results[key].state == (own.after(script[:2]) or b"")


# -- functions -------------------------------------------------------------------------------------


def test_a_function_is_imported_only_where_it_is_allowed(
    server: Foreman, tmp_path: Path, functions: dict[str, str]
) -> None:
    allowed = spec(transforms=Transforms(function="own_functions:plus_one"))
    names = ("own_functions:plus_one", "own_functions:deadly", "os:abort", "handed:x", "keras:tf")
    with agent(
        tmp_path,
        server.address,
        1,
        "--allow-transforms",
        "own_functions:plus_one",
        environment=functions,
    ):
        (guest,) = server.enlisted()
        for number, name in enumerate(names):
            if name == "keras:tf":
                name = "keras:tf:channels_last"
            each = spec(transforms=Transforms(function=name))
            server.define(number, each, 7, ARRAYS)
            server.assign(guest, number, 0, 0)
        server.until(lambda: len(server.results) == len(names), "an answer for each")
    first = server.results[0, 0, 0].fields
    assert first is not None
    wanted = truth(spec(transforms=Transforms()), ARRAYS)[0]
    assert np.array_equal(first["x"], wanted["x"] + 1)
    assert allowed.transforms.function == names[0]
    assert server.results[4, 0, 0].fields is not None
    for number in (1, 2):
        failed = server.results[number, 0, 0].failed
        assert failed is not None
        assert (
            f"{names[number]!r} is not in this remote worker's allow-transforms" in failed.message
        )
        assert f"--allow-transforms {names[number]}" in failed.message
    handed = server.results[3, 0, 0].failed
    assert handed is not None
    assert "stays on its machine" in handed.message


def test_a_probe_tells_other_bytes_and_other_sources(
    server: Foreman, tmp_path: Path, functions: dict[str, str]
) -> None:
    own = spec(transforms=Transforms(function="own_functions:plus_one"))
    allow = ("--allow-transforms", "own_functions:plus_one")
    found = []
    for comment in ("", "# another file\n"):
        (tmp_path / "own_functions.py").write_text(comment + FUNCTIONS)
        with agent(tmp_path, server.address, 1, *allow, environment=functions) as one:
            server.until(lambda: server.guests, "a worker")
            (guest,) = server.guests.values()
            for number, each in ((1, spec()), (2, spec(seed=8)), (3, own)):
                server.define(number, each, each.seed or 0, ARRAYS)
                found.append(server.probe(guest, number))
            one.process.terminate()
            server.until(lambda: not server.guests, "its end")
    plain, other, function, again, _, rewritten = found
    assert plain.digest == again.digest != other.digest
    assert function.digest != rewritten.digest
    assert (plain.reason, len(plain.digest)) == ("", 64)
    assert f"numpy {np.__version__}" in plain.machine


def test_a_probe_over_a_bad_sample_names_it(server: Foreman, tmp_path: Path) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "0.png").write_bytes(b"none")
    listing = list_files(str(tmp_path / "pets"), Pictures())
    pets = Spec(
        data=(str(tmp_path / "pets"),), x="picture", batch_size=1, target_size=(8, 8),
        pictures=Pictures(class_names=("cat",)),
    )  # fmt: skip
    with agent(tmp_path, server.address):
        (guest,) = server.enlisted()
        server.define(1, pets, 7, listing.arrays)
        probed = server.probe(guest, 1)
    assert probed.digest == "failed: sample 0"
    assert "no picture" in probed.reason


# -- coming and going ------------------------------------------------------------------------------


def test_a_worker_comes_back_to_a_server_that_was_restarted(tmp_path: Path) -> None:
    with foreman() as first:
        address = first.address
        with agent(tmp_path, address) as remote:
            (guest,) = first.enlisted()
            first.define(1, spec(), 7, ARRAYS)
            first.epoch(1, 0)
            name = guest.enlist.worker
            first.close()
            with foreman(address) as second:
                (again,) = second.enlisted()
                assert again.enlist.worker == name, "the same process"
                second.define(1, spec(seed=8), 8, ARRAYS)
                got = made(second.epoch(1, 0))
                assert digest(got) == digest(truth(spec(seed=8), ARRAYS)), "nothing of before"
            wait_until(lambda: "the line is lost" in remote.log(), "a line of the log")
            assert "the test is over" in remote.log()
            with foreman(address) as third:
                third.enlisted()
                wait_until(lambda: remote.log().count("enlisted with") >= 2, "a line of the log")


@pytest.mark.slow
def test_a_silent_server_is_dialled_again_and_told_of_once(server: Foreman, tmp_path: Path) -> None:
    with agent(tmp_path, server.address) as remote:
        (guest,) = server.enlisted()
        identity = guest.identity
        server.answers = False
        server.until(lambda: "has said nothing for 10 s" in remote.log(), "the loss")
        server.answers = True
        server.until(lambda: guest_of(server).identity != identity, "another socket")
        server.define(1, spec(), 7, ARRAYS)
        assert digest(made(server.epoch(1, 0))) == digest(truth(spec(), ARRAYS))
        assert remote.log().count("the line is lost") == 1


def guest_of(server: Foreman) -> Guest:
    (guest,) = server.guests.values()
    return guest


def test_a_server_that_knows_a_worker_no_more_gets_nothing_of_before(
    server: Foreman, tmp_path: Path, functions: dict[str, str]
) -> None:
    held = spec(transforms=Transforms(function="own_functions:stuck"))
    (tmp_path / "hold").touch()
    with agent(
        tmp_path,
        server.address,
        1,
        "--allow-transforms",
        "own_functions:stuck",
        environment=functions,
    ):
        (guest,) = server.enlisted()
        server.define(1, held, 7, ARRAYS)
        old = [server.assign(guest, 1, 0, step) for step in (0, 1)]
        server.until((tmp_path / "at").exists, "the worker in its batch")
        del server.guests[guest.enlist.worker]  # as after a restart
        (again,) = server.enlisted()
        again.holds |= {(1, place) for place in old}  # what came of them now would be seen
        server.define(2, spec(), 7, ARRAYS)
        (tmp_path / "hold").unlink()
        assert digest(made(server.epoch(2, 0))) == digest(truth(spec(), ARRAYS))
        assert {key[0] for key in server.results} == {2}


def test_a_worker_that_is_killed_has_an_heir_that_tells_of_what(
    server: Foreman, tmp_path: Path, functions: dict[str, str]
) -> None:
    deadly = spec(shuffle=False, transforms=Transforms(function="own_functions:deadly"))
    arrays = ARRAYS | {"x": np.where(np.arange(100)[:, None, None, None] == 40, 255, ARRAYS["x"])}
    arrays["x"] = arrays["x"].astype(np.uint8)
    (tmp_path / "armed").touch()
    allow = ("--allow-transforms", "own_functions:deadly")
    with agent(tmp_path, server.address, 1, *allow, environment=functions) as remote:
        (guest,) = server.enlisted()
        first = guest.enlist
        server.define(1, deadly, 7, arrays)
        server.assign(guest, 1, 0, 2)
        (heir,) = [g.enlist for g in server.enlisted(2) if g is not guest]
        assert (heir.heir, first.heir) == (first.worker, "")
        assert heir.pid != first.pid
        assert "was killed by SIGKILL" in heir.cause
        del server.guests[first.worker]
        assert digest(made(server.epoch(1, 0))) == digest(truth_of(deadly, arrays))
        assert f"(pid {first.pid}) was killed by SIGKILL" in remote.log()
        later = [m for _, m in server.said if isinstance(m, Enlist) and m.pid == heir.pid]
        assert later[-1].heir == "" or len(later) == 1, "told until the server has taken it"


def truth_of(each: Spec, arrays: dict[str, Array]) -> list[dict[str, Array]]:
    """Of functions that give their picture back."""
    plain = Spec(**{**vars_of(each), "transforms": Transforms()})
    return truth(plain, arrays)


def vars_of(each: Spec) -> dict[str, Any]:
    return {name: getattr(each, name) for name in Spec.__dataclass_fields__}


def test_a_dismissed_worker_ends_in_the_middle_of_its_batch_and_is_replaced(
    server: Foreman, tmp_path: Path, functions: dict[str, str]
) -> None:
    held = spec(transforms=Transforms(function="own_functions:stuck"))
    (tmp_path / "hold").touch()
    allow = ("--allow-transforms", "own_functions:stuck")
    with agent(tmp_path, server.address, 1, *allow, environment=functions) as remote:
        (guest,) = server.enlisted()
        server.define(1, held, 7, ARRAYS)
        server.assign(guest, 1, 0, 0)
        server.until((tmp_path / "at").exists, "the worker in its batch")
        heard = guest.heard
        server.until(lambda: guest.heard > heard + 1, "heartbeats beside the batch")
        server.say(guest, Dismiss("got on with nothing for 15 s"))
        (heir,) = [g.enlist for g in server.enlisted(2) if g is not guest]
        assert heir.heir == guest.enlist.worker
        assert heir.cause == "was dismissed: got on with nothing for 15 s"
        assert "dismissed by the server" in remote.log()


def test_begun_grows_while_a_batch_is_made(server: Foreman, tmp_path: Path) -> None:
    with agent(tmp_path, server.address):
        (guest,) = server.enlisted()
        before = guest.enlist.begun
        server.define(1, spec(), 7, ARRAYS)
        server.epoch(1, 0)
        server.until(lambda: guest.enlist.begun > before, "a count that grows")


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_has_every_worker_resign_and_leaves_nothing(
    server: Foreman, tmp_path: Path, functions: dict[str, str], number: signal.Signals
) -> None:
    held = spec(transforms=Transforms(function="own_functions:stuck"))
    (tmp_path / "hold").touch()
    allow = ("--allow-transforms", "own_functions:stuck")
    with agent(tmp_path, server.address, 2, *allow, environment=functions) as remote:
        guest, _ = server.enlisted(2)
        server.define(1, held, 7, ARRAYS)
        server.assign(guest, 1, 0, 0)
        server.until((tmp_path / "at").exists, "a worker in the middle of its batch")
        below = descendants(remote.process.pid)
        assert len(below) == 3, "a forkserver and two workers"
        remote.process.send_signal(number)
        server.until(lambda: not server.guests, "both to resign")
        assert remote.process.wait(20) == 0
        assert sum(isinstance(m, Resign) for _, m in server.said) == 2
        wait_until(lambda: not any(map(alive, below)), "their end")
        assert remote.left() == []


def test_a_killed_agent_takes_its_workers_along(server: Foreman, tmp_path: Path) -> None:
    with agent(tmp_path, server.address, 2) as remote:
        server.enlisted(2)
        below = descendants(remote.process.pid)
        remote.process.kill()
        remote.process.wait(20)
        wait_until(lambda: not any(map(alive, below)), "their end")
        assert remote.health().returncode == 1
        assert remote.left() == [], "a look is enough to sweep what a dead one has left"


def test_another_version_ends_the_agent_with_a_word(server: Foreman, tmp_path: Path) -> None:
    server.version = (2, 0)
    with agent(tmp_path, server.address, 2) as remote:
        server.until(lambda: remote.process.poll() is not None, "its end")
        assert remote.process.returncode == 1
        assert "speaks version (2, 0) of the protocol; wanted 1" in remote.log()
        assert "Traceback" not in remote.log()


def test_a_server_s_own_word_of_another_version_ends_the_agent(
    server: Foreman, tmp_path: Path
) -> None:
    server.answers = False
    with agent(tmp_path, server.address, 1) as remote:
        server.until(lambda: server.said, "a worker")
        server.refuse(Fault("VersionMismatch", "got version (1, 4); wanted 3"))
        server.until(lambda: remote.process.poll() is not None, "its end")
        assert remote.process.returncode == 1
        assert "got version (1, 4); wanted 3" in remote.log()


def test_an_address_that_is_none_ends_the_agent_with_a_word(tmp_path: Path) -> None:
    with agent(tmp_path, "nowhere", 1) as remote:
        assert remote.process.wait(60) == 2
        assert "connect: got 'nowhere'" in remote.log()
        assert "tcp://HOST:PORT, where the server listens for workers" in remote.log()


def test_the_health_of_an_agent_is_whether_a_worker_of_it_is_enlisted(
    server: Foreman, tmp_path: Path
) -> None:
    server.answers = False
    with agent(tmp_path, server.address, 2) as remote:
        server.until(lambda: server.said, "a worker")
        sick = remote.health()
        assert sick.returncode == 1
        assert "none of its 2 workers" in sick.stderr
        server.answers = True
        server.enlisted(2)
        words = f"2 of 2 workers enlisted at {server.address}"
        server.until(lambda: words in remote.health().stdout, "health")
        assert remote.health().returncode == 0
        remote.process.send_signal(signal.SIGSTOP)
        server.until(lambda: remote.health().returncode == 1, "a stopped agent is not well")
        assert "has not moved for" in remote.health().stderr
        remote.process.send_signal(signal.SIGCONT)
        remote.process.terminate()
        server.until(lambda: remote.process.poll() is not None, "its end")
        nobody = remote.health()
        assert nobody.returncode == 1
        assert "no `augserver worker` of this user runs here" in nobody.stderr


def test_stopped_workers_keep_no_agent_from_its_end(server: Foreman, tmp_path: Path) -> None:
    with agent(tmp_path, server.address, 2) as remote:
        server.enlisted(2)
        below = descendants(remote.process.pid)
        for worker in workers(remote.process.pid):
            os.kill(worker, signal.SIGSTOP)
        remote.process.terminate()
        assert remote.process.wait(20) == 0
        wait_until(lambda: not any(map(alive, below)), "their end")
        assert remote.left() == []


def test_a_worker_that_gives_no_sign_of_life_is_killed_and_replaced(
    server: Foreman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "STUCK_SECONDS", 2.0)
    with tempfile.TemporaryDirectory(prefix="aug-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        with agents.Agent(Orders(server.address), 1) as made:
            thread = threading.Thread(target=made.run)
            thread.start()
            try:
                (guest,) = server.enlisted()
                os.kill(guest.enlist.pid, signal.SIGSTOP)
                (heir,) = [g.enlist for g in server.enlisted(2) if g is not guest]
                assert heir.heir == guest.enlist.worker
                assert heir.cause == "got on with nothing for more than 2 s and was killed"
            finally:
                made.stop("the test is over")
                server.until(lambda: not thread.is_alive(), "its end")


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None,
    reason="a process namespace of its own needs root and unshare",
)
def test_as_the_first_process_of_a_container_it_ends_politely_and_keeps_no_zombies(
    server: Foreman, tmp_path: Path
) -> None:
    with agent(tmp_path, server.address, 2, within=("unshare", "-pf", "--kill-child")) as remote:
        server.enlisted(2)
        (first,) = children(remote.process.pid)
        (forkserver,) = [c for c in children(first) if "forkserver" in command(c)]
        os.kill(forkserver, signal.SIGKILL)  # leaves its workers to the first process
        server.enlisted(4)
        wait_until(lambda: zombies(first) == [], "the dead to be reaped")
        os.kill(first, signal.SIGTERM)
        assert remote.process.wait(20) == 0
        assert remote.left() == []


def zombies(parent: int) -> list[str]:
    """The states of children that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] == "Z":
            found.append(str(path))
    return found
