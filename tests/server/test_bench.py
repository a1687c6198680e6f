"""What `augserver bench` computes and reads, without measuring anything."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from processes import wait_until

from augproto.errors import ConfigError, WorkerError
from augserver.bench import (
    attempts,
    data,
    generation,
    page,
    peers,
    plan,
    run,
    training,
    watch,
    work,
)  # fmt: skip
from augserver.bench.timing import Summary, images_per_second


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_summary_has_the_middle_and_the_spread() -> None:
    found = Summary.of([3.0, 1.0, 2.0, 10.0])
    assert (found.median, found.low, found.high) == (2.5, 1.0, 10.0)
    assert found.mean == 4.0
    assert found.deviation == pytest.approx(4.0824829)
    assert found.rounds == 4
    assert Summary.of([7.0]).deviation == 0.0


def test_images_are_counted_from_the_end_of_the_warm_up_to_the_end_of_a_batch() -> None:
    clock = _Clock()
    batch = np.zeros((8, 1, 1, 1), np.float32)

    def batches() -> Any:
        yield batch  # made before: comes at once
        while True:
            clock.now += 1.0 if clock.now < 5 else 2.0
            yield batch

    # Warm-up ends at 5 s; then batches of 2 s come until 6 s are over.
    assert images_per_second(batches(), 5.0, 5.0, clock) == 3 * 8 / 6.0


@pytest.mark.parametrize(
    ("most", "counts"), [(1, (0, 1)), (2, (0, 1, 2)), (6, (0, 1, 2, 4, 6)), (8, (0, 1, 2, 4, 8))]
)
def test_the_numbers_of_processes_are_powers_of_two_up_to_the_most(
    most: int, counts: tuple[int, ...]
) -> None:
    assert plan.process_counts(most) == counts


def _cifar_batch(folder: Path, number: int, first: int) -> None:
    rows = np.arange(first, first + 4, dtype=np.uint8)
    pixels = np.repeat(rows[:, None], 3072, axis=1)
    pixels[:, 1024:2048] += 100  # the green plane
    folder.mkdir(exist_ok=True)
    (folder / f"data_batch_{number}").write_bytes(
        pickle.dumps({b"data": pixels, b"labels": rows.tolist()}, protocol=2)
    )


def test_cifar_10_is_read_as_its_authors_publish_it(tmp_path: Path) -> None:
    for number, first in ((1, 0), (2, 4)):
        _cifar_batch(tmp_path / "cifar-10-batches-py", number, first)
    found = data.small_pictures(tmp_path, download=False, drawn=3)
    assert found.x.shape == (8, 32, 32, 3)
    assert found.y.tolist() == list(range(8))
    assert found.x[5, 7, 9].tolist() == [5, 105, 5]
    assert str(tmp_path) in found.origin


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(ConfigError, match="no file of CIFAR-10: it asks for pathlib"):
        data.small_pictures(tmp_path, download=False, drawn=3)


def test_an_archive_of_pictures_is_found_one_folder_down(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "a.npz", other=np.zeros(3))
    x = np.arange(5 * 3072, dtype=np.uint8).reshape(5, 32, 32, 3)
    np.savez(tmp_path / "cifar10" / "b.npz", x_train=x, y_train=np.arange(5)[:, None])
    found = data.small_pictures(tmp_path, download=False, drawn=3)
    assert np.array_equal(found.x, x)
    assert found.y.tolist() == [0, 1, 2, 3, 4]


def test_what_a_folder_lacks_is_drawn_and_the_report_says_so(tmp_path: Path) -> None:
    found = data.small_pictures(tmp_path, download=False, drawn=30)
    assert found.x.shape == (30, 32, 32, 3)
    assert "drawn by this program" in found.origin
    assert str(tmp_path) in found.origin
    with data.photographs(tmp_path, 6) as photographs:
        for path in photographs.files:
            with Image.open(path) as picture:
                assert picture.size == data.DRAWN_SIZE
        assert {Path(path).parent.name for path in photographs.files} == {"cat", "dog"}
        assert set(photographs.y) == {0, 1}
        assert "drawn by this program" in photographs.origin
    assert not any(Path(path).exists() for path in photographs.files)


def test_photographs_are_found_in_folders_by_class(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        folder = tmp_path / "pets" / "train" / kind
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 3)).save(folder / "1.jpg")
        (folder / "notes.txt").write_text("no picture")
    with data.photographs(tmp_path, 6) as found:
        names = [Path(path).relative_to(tmp_path).as_posix() for path in found.files]
        assert names == ["pets/train/cat/1.jpg", "pets/train/dog/1.jpg"]
        assert found.y.tolist() == [0, 1]
        assert "cat, dog" in found.origin


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name in ("psutil", "matplotlib") else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ConfigError, match=r"needs matplotlib, psutil.*augserver\[bench\]"):
        run._check_packages()


def test_a_signal_that_python_lost_ends_the_measurement_at_the_next_check() -> None:
    class Careless:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)  # what is raised here is printed and forgotten

    went_on = []

    def measure() -> None:
        with attempts.heeding_signals():
            careless = Careless()
            del careless
            went_on.append(True)
            attempts.check()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        measure()
    assert went_on
    assert signal.getsignal(signal.SIGINT) is before
    attempts.check()  # it is over


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_error_that_an_interruption_became_is_an_interruption(number: signal.Signals) -> None:
    def measure() -> None:
        with attempts.heeding_signals():
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt as error:
                raise RuntimeError("a framework's own") from error

    with pytest.raises(KeyboardInterrupt):
        measure()


def test_a_reason_is_one_line() -> None:
    assert attempts.reason(ValueError("first\nsecond")) == "ValueError: first"
    assert attempts.reason(TimeoutError()) == "TimeoutError"
    assert len(attempts.reason(ValueError("x" * 9999))) < 400


class _Nvml:
    """Three GPUs, of which one refuses to tell its use and one goes away."""

    def __init__(self) -> None:
        self.looks = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, n: int) -> int:
        if n == 2:
            raise RuntimeError("GPU is lost")
        return n

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        if gpu == 0:
            raise RuntimeError("Not Supported")
        self.looks += 1
        return SimpleNamespace(gpu=40)


def test_a_gpu_that_refuses_is_left_out_and_the_others_are_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("psutil", reason="psutil is not installed: nothing to watch with")
    nvml = _Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(watch, "INTERVAL", 0.001)
    with watch.Watch() as watched:
        wait_until(lambda: nvml.looks > 2, "three looks")
    seen = watched.usage
    assert set(seen.gpus) == {1}
    assert len(seen.seconds) == len(seen.cpu) == len(seen.gpus[1]) > 1


def test_a_last_look_that_was_not_finished_is_cut_off() -> None:
    seen = watch.Usage([0.1, 0.2, 0.3], [5.0, 6.0], {1: [7.0]})
    assert seen.whole() == watch.Usage([0.1], [5.0], {1: [7.0]})


def test_a_file_that_cannot_be_written_is_refused_first_and_none_is_left(tmp_path: Path) -> None:
    def refused(*paths: Path, because: str) -> None:
        with pytest.raises(ConfigError, match=because):
            run._check_outputs(paths)

    refused(tmp_path, because="got a folder")
    refused(tmp_path / "nowhere" / "x", because="no such folder")
    refused(tmp_path / ("x" * 300), because="cannot be written")
    refused(tmp_path / "x", tmp_path / "y" / ".." / "x", because="no such folder")
    refused(tmp_path / "x", tmp_path / "." / "x", because="a file of its own")
    run._check_outputs([tmp_path / "x", tmp_path / "y"])
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    for found in (b"no archive", b"PK\x03\x04 a damaged one", b""):
        (tmp_path / "a.npz").write_bytes(found)
        with pytest.raises(ConfigError, match=r"a\.npz cannot be read as arrays"):
            data.small_pictures(tmp_path, download=False, drawn=3)
    objects = np.array([None, 1], object)
    np.savez(tmp_path / "a.npz", x_train=objects, y_train=np.arange(2))
    with pytest.raises(ConfigError, match=r"a\.npz cannot be read as arrays"):
        data.small_pictures(tmp_path, download=False, drawn=3)


def test_keras_trains_on_what_is_installed_and_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name in ("tensorflow", "jax") or None
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert run._backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert run._backend() == "jax"
    for useless in ('{"backend": "torch"}', "no JSON", "[]", '{"backend": ["jax"]}'):
        (tmp_path / "keras.json").write_text(useless)
        assert run._backend() == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert run._backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "nonsense")
    with pytest.raises(ConfigError, match=r"got 'nonsense'.*: tensorflow, jax"):
        run._backend()


def test_what_fails_costs_only_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil", reason="psutil is not installed: nothing to watch with")

    @contextlib.contextmanager
    def damaged(asked: work.Work, workers: int) -> Iterator[Any]:
        raise WorkerError("sample 3 (a.jpg): OSError", epoch=0, step=0, traceback="Traceback: ...")
        yield

    @contextlib.contextmanager
    def sound(asked: work.Work, workers: int) -> Iterator[Any]:
        yield None

    monkeypatch.setattr(training, "FEEDS", {training.OURS: damaged, training.KERAS: sound})
    monkeypatch.setattr(training, "_network", lambda *_, **__: mock.Mock())
    monkeypatch.setattr(training, "_trained", lambda *_: 7.0)
    files = data.Photographs(("a.jpg", "b.jpg"), np.array([0, 1]), "two")
    busy = training.on_photographs(files, plan.TINY, 1, lambda _: None)
    assert busy.missing == {training.OURS: "WorkerError: sample 3 (a.jpg): OSError"}
    assert busy.rates == {training.KERAS: 7.0}
    assert set(busy.usage) == {training.KERAS}
    x, y = np.zeros((64, 32, 32, 3), np.uint8), np.zeros(64, np.int64)
    small = training.on_small_pictures(data.Pictures(x, y, "x"), plan.TINY, 1, lambda _: None)
    assert set(small.missing) == {training.OURS}
    assert all(set(of) == {training.KERAS} for of in small.rates.values())


def _report(keras: bool) -> page.Report:
    summary = Summary.of([10.0, 12.0])
    others = {generation.KERAS: summary} if keras else {}
    usage = watch.Usage([0.1, 0.2], [100.0, 100.0], {1: [3.0, 4.0]} if keras else {})
    return page.Report(
        {"GPU": "none"}, {"small": "shapes", "photographs": "<files>"}, {},
        generation.Generation(32, 100, {1: summary, 2: Summary.of([30.0])}, others),
        training.Training({32: {training.OURS: summary}, 64: {}}),
        training.Busy(4, (8, 8), {training.OURS: 5.0}, {training.OURS: usage})
        if keras else training.Busy(4, (8, 8), missing={training.OURS: "WorkerError: a.jpg"}),
    )  # fmt: skip


def test_a_page_claims_nothing_that_was_not_measured() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no plots to draw")
    whole, part = page.page(_report(keras=True)), page.page(_report(keras=False))
    assert "Speed-up over Keras" in whole
    assert "Speed-up over augserver, 1 process<" in part
    assert "1: Keras" in whole
    assert "1: Keras" not in part
    assert "A GPU that is not busy" in whole
    assert "GPU 1, %" in whole
    assert "A GPU that is not busy" not in part
    assert "<li>augserver: WorkerError: a.jpg</li>" in part


def test_keras_is_fed_the_files_that_augserver_is_fed(tmp_path: Path) -> None:
    pytest.importorskip("keras", reason="Keras is not installed: nothing to be fed")
    for name in ("a_empty", "cat/deeper", "dog"):
        (tmp_path / name).mkdir(parents=True)
    for n, name in enumerate(("cat/1.jpg", "cat/deeper/2.jpg", "cat/3.bmp", "dog/4.PNG")):
        Image.new("RGB", (4, 4), (n * 50, 0, 0)).save(tmp_path / name)
    with data.photographs(tmp_path, 6) as found:
        asked = work.Work("w", 2, {}, found.y, None, found.files, (4, 4))
        with peers.keras_flow(asked) as flow:
            x, y = next(flow)
            assert flow.n == asked.samples == 2
    reds = np.round(x[:, 0, 0, 0] / 50)
    assert sorted(zip(y.tolist(), reds.tolist(), strict=True)) == [(0, 0), (1, 3)]
