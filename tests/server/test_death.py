"""What a process died of is said from evidence, and only from it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from augserver import death
from augserver.death import TRACE_BYTES, MemoryWitness, how_it_ended, last_words

NOTHING = "without evidence of the out-of-memory killer: somebody has sent it"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "exited with code 3"),
        (0, "exited with code 0 (os._exit or exec in its code)"),
        (-signal.SIGKILL, "was killed by SIGKILL (m)"),
        (-signal.SIGTERM, "was killed by SIGTERM"),
        (-signal.SIGSEGV, "was killed by SIGSEGV (a segmentation fault: native code touched"),
        (-signal.SIGBUS, "was killed by SIGBUS (a bus error: a file that was mapped has shrunk"),
        (-50, "was killed by signal 50"),
        (None, "ended; of what is not known"),
    ],
)
def test_an_exit_code_in_words(code: int | None, words: str) -> None:
    assert how_it_ended(code, "m").startswith(words)


class Kernel:
    """Files that count, as the kernel's do."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.cgroup, self.machine = folder / "memory.events", folder / "vmstat"
        self.counts = {self.cgroup: 7, self.machine: 9}
        places = [(self.cgroup, "the server's cgroup /a"), (self.machine, death._MACHINE)]
        patch.setattr(death, "_places", lambda: places)
        self.write()

    def write(self) -> None:
        for path, count in self.counts.items():
            path.write_text(f"low 0\noom 99\noom_kill {count}\noom_kill_disable 0\n")

    def kills(self, *, ours: bool = True) -> None:
        self.counts[self.machine] += 1
        self.counts[self.cgroup] += ours
        self.write()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_a_kill_without_a_count_is_somebody_s(kernel: Kernel) -> None:
    assert MemoryWitness(0.0).testimony() == NOTHING


def test_a_kill_that_the_cgroup_has_counted_is_the_kernel_s_and_the_next_one_is_not(
    kernel: Kernel,
) -> None:
    witness = MemoryWitness(0.0)
    kernel.kills()
    assert witness.testimony() == (
        "by the kernel for want of memory: the server's cgroup /a counts one such kill more"
    )
    assert witness.testimony() == NOTHING
    kernel.kills()
    kernel.kills()
    assert [witness.testimony() == NOTHING for _ in range(3)] == [False, False, True]


def test_a_kill_that_only_the_machine_has_counted_is_said_to_be_perhaps_another(
    kernel: Kernel,
) -> None:
    witness = MemoryWitness(0.0)
    kernel.kills(ours=False)
    assert witness.testimony().startswith("perhaps by the kernel")


def test_kills_of_long_ago_are_no_evidence(kernel: Kernel) -> None:
    witness = MemoryWitness(0.0)
    kernel.kills()
    witness.look(6.0)
    assert witness.testimony() != NOTHING, "six seconds ago is not long ago"
    kernel.kills()
    for now in (12.0, 18.0):
        witness.look(now)
    assert witness.testimony() == NOTHING


def test_a_look_between_a_kill_and_the_death_loses_no_evidence(kernel: Kernel) -> None:
    witness = MemoryWitness(0.0)
    kernel.kills()
    witness.look(5.0)
    witness.look(7.0)  # too early for another
    assert witness.testimony() != NOTHING
    witness.look(10.0)
    assert witness.testimony() == NOTHING, "told once"


def test_without_any_count_there_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(death, "_places", lambda: [(Path("/nonexistent"), "nowhere")])
    assert MemoryWitness(0.0).testimony() == NOTHING


def test_this_machine_s_counts_can_be_read() -> None:
    assert all(count >= 0 for count in death._counts().values())
    assert death._MACHINE in death._counts()


def test_last_words_are_read_once_cut_in_the_middle_and_without_the_list_of_modules(
    tmp_path: Path,
) -> None:
    path = tmp_path / "worker-1.trace"
    path.write_text("Fatal\n" + "x" * 3 * TRACE_BYTES + "\nthe end\n\nExtension modules: a, b\n")
    words = last_words(path)
    assert words.startswith("Fatal\n")
    assert words.endswith("\nthe end")
    assert len(words) <= TRACE_BYTES + 10
    assert not path.exists()
    assert last_words(path) == ""
