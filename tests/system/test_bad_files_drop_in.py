"""Files of every kind of damage, through the flows that read files: no worker dies of any."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faces
import numpy as np
import pytest
from keras_own import keras_module
from real_data import BAD_IMAGES, Expected, bad_images, needs_bad_images

from augproto.errors import WorkerError

FILES = bad_images()
SIZE = (16, 14)

pytestmark = [
    needs_bad_images,
    # Pillow's, of pictures that are too large or whose transparency is odd.
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning"),
]


@pytest.fixture(autouse=True)
def _a_private_server_of_its_own() -> Iterator[None]:
    faces.shut_down()
    yield
    faces.shut_down()


def generator(order: str, **options: Any) -> Any:
    faces.theirs()  # skips where there is none
    return faces.ours().ImageDataGenerator(**options, **faces.own(workers=2, order=order))


@functools.cache  # one of them has 95 million pixels
def by_keras(path: Path, **options: Any) -> Any:
    """The picture as Keras's own function loads it."""
    utils = keras_module("keras.utils")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return utils.img_to_array(utils.load_img(path, target_size=SIZE, **options))


def check(file: Expected, flow: Any, **options: Any) -> None:
    """The next batch of a flow, one picture, is what the loader should make of this file."""
    if file.error:
        refused(file, raised_by(lambda: next(flow)))
        return
    got = next(flow)
    assert got.shape == (1, *SIZE, 4 if options.get("color_mode") == "rgba" else 3)
    # Also where Keras loses what the file holds (16-bit gray turns white): the same program
    # must go on giving the same pictures.
    assert np.array_equal(got[0], by_keras(file.path, **options)), file


def raised_by(call: Callable[[], Any]) -> BaseException:
    """The error that a call ends with."""
    try:
        call()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def refused(file: Expected, error: BaseException) -> None:
    """It is the error that the loader should give for this file, and names it."""
    if faces.THEIRS_TWICE:
        assert file.error in [kind.__name__ for kind in type(error).__mro__]
        return
    assert isinstance(error, WorkerError)
    assert error.path == str(file.path)
    assert str(file.path) in str(error)
    assert f"{file.error}: " in str(error)


def framed(order: str, **options: Any) -> Any:
    """All of the files by their names in a frame; none is left out for its name."""
    frame = faces.pandas().DataFrame({"filename": [file.path.name for file in FILES]})
    return generator(order).flow_from_dataframe(
        frame, BAD_IMAGES / "files", class_mode=None, target_size=SIZE, shuffle=False, seed=1,
        validate_filenames=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"color_mode": "rgba", "interpolation": "bilinear"}])
@pytest.mark.parametrize("order", ["stream", "keras"])
def test_every_file_of_a_frame_is_read_as_keras_reads_it_or_named(
    order: str, options: dict[str, Any]
) -> None:
    flow = framed(order, batch_size=1, **options)
    assert flow.samples == len(FILES) >= 60
    how = dict(options)
    for file in [*FILES, *FILES[:5]]:  # and the next epoch goes on as well
        check(file, flow, **how)
    assert faces.restarts() == 0


def test_a_batch_with_a_broken_file_is_an_error_and_the_next_one_comes() -> None:
    flow, came = framed("stream", batch_size=3), 0
    for first in [*range(0, len(FILES), 3), 0]:
        files = FILES[first : first + 3]
        broken = [file for file in files if file.error]
        if broken:
            error = raised_by(lambda: next(flow))
            assert any(_named(file, error) for file in broken), str(error)
            continue
        batch = next(flow)
        assert len(batch) == len(files)
        for picture, file in zip(batch, files, strict=True):
            assert np.array_equal(picture, by_keras(file.path)), file
        came += 1
    assert came >= 5
    assert faces.restarts() == 0


def _named(file: Expected, error: BaseException) -> bool:
    return faces.THEIRS_TWICE or str(file.path) in str(error)


def test_the_same_batch_asked_for_again_is_the_same_error() -> None:
    flow = framed("stream", batch_size=1)
    (at, broken), *_ = [(i, file) for i, file in enumerate(FILES) if file.error]
    for _ in range(3):
        refused(broken, raised_by(lambda: flow[at]))
    good = next(i for i, file in enumerate(FILES) if not file.error)
    assert np.array_equal(flow[good][0], by_keras(FILES[good].path))
    assert faces.restarts() == 0


def test_a_folder_of_them_lists_and_reads_what_keras_does(tmp_path: Path) -> None:
    (tmp_path / "all").symlink_to(BAD_IMAGES / "files")
    options: dict[str, Any] = {
        "target_size": SIZE, "batch_size": 1, "class_mode": None, "shuffle": False, "seed": 1,
    }  # fmt: skip
    theirs = faces.theirs().ImageDataGenerator().flow_from_directory(tmp_path, **options)
    flow = generator("stream").flow_from_directory(tmp_path, **options)
    assert flow.filenames == theirs.filenames
    assert flow.filepaths == theirs.filepaths
    assert "all/.hidden.jpg" in flow.filenames
    assert "all/directory.jpg/inner.jpg" in flow.filenames
    assert "all/no_extension" not in flow.filenames
    by_name = {file.path.name: file for file in FILES}
    for name in flow.filepaths:
        path = Path(name)
        file = by_name.get(path.name) or by_name["UPPERCASE.JPG"]  # inner.jpg is the same picture
        check(
            Expected(path, file.error, file.size, file.mean, file.loses),
            flow,
        )
    assert faces.restarts() == 0


@pytest.mark.parametrize("color_mode", ["rgb", "rgba", "grayscale"])
def test_load_img_reads_each_file_as_keras_does(color_mode: str) -> None:
    if faces.THEIRS_TWICE:
        pytest.skip("Keras's module has no load_img")
    utils = keras_module("keras.utils")

    def load(path: Path) -> Any:
        return faces.ours().load_img(path, color_mode=color_mode, target_size=SIZE)

    for file in FILES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if file.error:
                error = raised_by(lambda: load(file.path))  # noqa: B023 - called at once
                assert file.error in [kind.__name__ for kind in type(error).__mro__], file
                continue
            got = load(file.path)
            wanted = utils.load_img(file.path, color_mode=color_mode, target_size=SIZE)
        assert (got.mode, got.size) == (wanted.mode, wanted.size), file
        assert got.tobytes() == wanted.tobytes(), file


def test_a_picture_that_is_off_by_one_would_be_noticed() -> None:
    good = next(file for file in FILES if not file.error)
    picture = by_keras(good.path).copy()
    check(good, iter([picture[np.newaxis]]))
    picture[3, 4, 1] += 1
    with pytest.raises(AssertionError):
        check(good, iter([picture[np.newaxis]]))
    bad = next(file for file in FILES if file.error)
    with pytest.raises(BaseException, match="nothing was raised"):
        check(bad, iter([picture[np.newaxis]]))
