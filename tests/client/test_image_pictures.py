"""Pictures are loaded, saved and listed as Keras 3 does it, and as Keras 2 did."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from same_face import Faces, faces


@pytest.fixture(scope="module")
def both() -> Iterator[Faces]:
    """Ours and Keras's."""
    yield from faces()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A colourful picture, 9 rows of 14."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {}, {"color_mode": "grayscale"}, {"color_mode": "rgba"}, {"target_size": (5, 6)},
        {"target_size": (5, 6), "interpolation": "lanczos"},
        {"target_size": (5, 6), "interpolation": "bilinear", "keep_aspect_ratio": True},
    ],
)  # fmt: skip
def test_loading_is_keras_s(both: Faces, file: Path, options: dict[str, Any]) -> None:
    theirs = both.keras.utils.load_img(file, **options)
    for path in (file, str(file), str(file).encode(), io.BytesIO(file.read_bytes())):
        ours = both.ours.load_img(path, **options)
        assert (ours.mode, ours.size, ours.tobytes()) == (
            theirs.mode,
            theirs.size,
            theirs.tobytes(),
        )
    for data_format in ("channels_last", "channels_first", None):
        for dtype in ("uint8", None):
            arrays = [
                m.img_to_array(theirs, data_format, dtype) for m in (both.ours, both.keras.utils)
            ]
            assert arrays[0].dtype == arrays[1].dtype
            assert np.array_equal(*arrays)


def test_bad_arguments_are_keras_s_errors(both: Faces, file: Path) -> None:
    with pytest.raises(ValueError, match="color_mode must be"):
        both.ours.load_img(file, color_mode="cmyk")
    with pytest.raises(ValueError, match="Invalid interpolation method"):
        both.ours.load_img(file, target_size=(2, 2), interpolation="best")
    with pytest.raises(TypeError, match="path should be"):
        both.ours.load_img(3)
    with pytest.raises(ValueError, match="rank 3"):
        both.ours.array_to_img(np.ones((2, 2)))
    with pytest.raises(ValueError, match="channel number"):
        both.ours.array_to_img(np.ones((2, 2, 5)), "channels_last")


def test_grayscale_of_keras_2_is_taken_with_a_warning(both: Faces, file: Path) -> None:
    with pytest.warns(FutureWarning, match="grayscale is deprecated") as told:
        assert both.ours.load_img(file, grayscale=True).mode == "L"
    assert told[0].filename == __file__
    with pytest.warns(FutureWarning, match="grayscale"):
        assert both.ours.load_img(file, grayscale=False).mode == "RGB"


def test_a_saved_picture_is_loaded_again(both: Faces, tmp_path: Path) -> None:
    x = np.random.default_rng(1).integers(0, 256, (4, 5, 3)).astype(np.float32)
    both.ours.save_img(tmp_path / "b.png", x, "channels_last", scale=False)
    loaded = both.ours.img_to_array(both.ours.load_img(tmp_path / "b.png"), "channels_last")
    assert np.array_equal(loaded, x)
    stream = io.BytesIO()
    both.ours.save_img(stream, x.transpose(2, 0, 1), "channels_first", "png", False)
    assert np.array_equal(np.asarray(Image.open(stream)), x)
    rgba = np.ones((4, 5, 4))
    with pytest.warns(UserWarning, match="JPEG format does not support RGBA"):
        both.ours.save_img(tmp_path / "c.jpg", rgba, "channels_last", quality=90)


def test_pictures_are_listed_with_those_of_folders_below(both: Faces, tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "c.txt", "jpg", "sub/d.tiff", "sub/deep/e.jpeg", "sub/f.gif"):
        (tmp_path / name).touch()

    def listed(*arguments: Any, **options: Any) -> set[str]:
        paths = both.ours.list_pictures(*arguments, **options)
        return {str(Path(path).relative_to(tmp_path)) for path in paths}

    assert listed(tmp_path) == {"a.jpg", "b.PNG", "sub/d.tiff", "sub/deep/e.jpeg"}
    assert listed(str(tmp_path), ext=("jpg", "gif")) == {"a.jpg", "sub/f.gif"}
    assert listed(tmp_path, "png") == {"b.PNG"}
