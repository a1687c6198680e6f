"""Files become the pixels that Keras has, where Keras has them right, and no more than allowed."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_own import keras_module
from PIL import Image, ImageFile
from real_data import Expected, bad_images, needs_bad_images

from augproto.errors import AugError, NotAllowed
from augproto.files import File
from augproto.pictures import Pictures
from augproto.spec import INTERPOLATIONS
from augserver.datasets.decoding import Decoder, FileUnavailable, read_bytes
from augserver.datasets.roots import Roots

FILES = bad_images()
READABLE = [file for file in FILES if not file.error]


def listed(path: Path) -> File:
    status = path.stat()
    return File(str(path), status.st_size, status.st_mtime_ns)


def decoder(size: tuple[int, int] = (24, 36), how: str = "nearest", **pictures: Any) -> Decoder:
    return Decoder(Pictures(**pictures), size, how)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def noise() -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))


# -- sixty files from the wild -------------------------------------------------------------------


@needs_bad_images
def test_all_sixty_files_are_here() -> None:
    assert len(FILES) == 60
    assert len(READABLE) == 38


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_is_read_or_refused_as_pillow_does(file: Expected) -> None:
    size = file.size[::-1] if not file.error else (8, 8)
    if file.error:
        with pytest.raises(Exception, match=r".") as refused:
            decoder(size).read(listed(file.path))
        assert type(refused.value).__name__ == file.error
        assert "0x" not in str(refused.value), "the same text each time"
        return
    pixels = decoder(size).read(listed(file.path))
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    if not file.loses:
        # Means of a reduced picture; bit for bit it is compared with Keras below.
        np.testing.assert_allclose(pixels.mean((0, 1)), file.mean, atol=1.5)


@pytest.mark.parametrize("file", [f for f in READABLE if f.loses], ids=str)
def test_what_pillow_turns_white_or_black_keeps_its_grays(file: Expected) -> None:
    assert file.mean in ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)), "Pillow's own result"
    pixels = decoder(file.size[::-1]).read(listed(file.path))
    # Both are the same photograph, whose gray has the mean of jpeg_gray.jpg.
    np.testing.assert_allclose(pixels.mean((0, 1)), 138.6, atol=0.5)
    assert pixels.std() > 30


@pytest.fixture(scope="module")
def load_img() -> Any:
    """Keras's own."""
    return keras_module("keras.src.utils.image_utils").load_img


@pytest.mark.parametrize("color_mode", ["rgb", "rgba", "grayscale"])
@pytest.mark.parametrize("file", [f for f in READABLE if not f.loses], ids=str)
def test_a_picture_is_bit_for_bit_what_keras_loads(
    load_img: Any, file: Expected, color_mode: str
) -> None:
    large = file.size[0] > 5000
    for how in ("nearest", "bilinear") if large else INTERPOLATIONS:
        for size in ((24, 36), file.size[::-1]) if not large else ((24, 36),):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wanted = np.asarray(
                    load_img(file.path, color_mode=color_mode, target_size=size, interpolation=how)
                )
            got = decoder(size, how, color_mode=color_mode).read(listed(file.path))
            wanted = wanted if wanted.ndim == 3 else wanted[:, :, None]
            np.testing.assert_array_equal(got, wanted, err_msg=f"{how} {size}")


KINDS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16",
         "I;16B", "I;16L", "RGBX", "transparent P", "transparent L", "transparent RGB",
         "transparent I;16", "I beyond 16 bits", "negative I", "F beyond 8 bits")  # fmt: skip


def strange(kind: str) -> bytes:
    """A small picture of a mode, in a file that holds it."""
    rng = np.random.default_rng(2)
    size = (21, 34)
    mode = kind.split()[0]
    options: dict[str, Any] = {}
    if kind.startswith("transparent"):
        mode = kind.split()[1]
        options["transparency"] = {"P": bytes(range(200)), "L": 7, "RGB": (1, 2, 3), "I;16": 900}[
            mode
        ]
    if mode.startswith("I;16"):
        values = rng.integers(0, 1200, size).astype("<u2")
        image = Image.frombytes(mode, size[::-1], values.tobytes())
    elif mode == "I" or kind == "negative I":
        low, high = {"I": (0, 300), "I beyond 16 bits": (0, 2**31 - 1)}.get(kind, (-500, 500))
        mode, image = "I", Image.fromarray(rng.integers(low, high, size).astype("int32"))
    elif mode == "F":
        image = Image.fromarray(rng.uniform(-10, 5 if kind == "F" else 900, size).astype("f4"))
    else:
        channels = len(Image.getmodebands(mode) * "x")
        pixels = rng.integers(0, 256, (*size, channels), np.uint8)
        image = Image.frombytes(
            mode, size[::-1], np.packbits(pixels[..., 0] > 128, axis=1).tobytes()
            if mode == "1" else pixels.tobytes(),
        )  # fmt: skip
        if mode in ("P", "PA"):
            image.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    png = mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    return encoded(image, "PNG" if png else "TIFF", **options)


def as_keras_loads(load_img: Any, source: Any, size: tuple[int, int], **options: Any) -> Any:
    """Keras's picture as numbers, or the class of its refusal."""
    to_array = keras_module("keras.src.utils.image_utils").img_to_array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = load_img(source, target_size=size, **options)
            return to_array(image, data_format="channels_last", dtype="float64")
        except Exception as error:
            return type(error)


def compare(load_img: Any, data: bytes, size: tuple[int, int], how: str, **options: Any) -> None:
    wanted = as_keras_loads(load_img, io.BytesIO(data), size, interpolation=how, **options)
    own = decoder(size, how, wide="keras", **options)
    if isinstance(wanted, type):
        with pytest.raises(wanted):
            own.decode(data)
        return
    got = own.decode(data)
    assert got.dtype == ("int32" if options["color_mode"] == "grayscale" else "uint8")
    np.testing.assert_array_equal(got, wanted, err_msg=f"{how} {size} {options}")


@pytest.mark.parametrize("color_mode", ["rgb", "rgba", "grayscale"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_mode_is_keras_own_where_that_is_wanted(
    load_img: Any, kind: str, color_mode: str
) -> None:
    data = strange(kind)
    for how, size in itertools.product(INTERPOLATIONS, ((21, 34), (9, 40), (30, 13))):
        for keep in (False, True):
            compare(load_img, data, size, how, color_mode=color_mode, keep_aspect_ratio=keep)


@needs_bad_images
@pytest.mark.parametrize("color_mode", ["rgb", "rgba", "grayscale"])
@pytest.mark.parametrize("file", READABLE, ids=str)
def test_a_file_from_the_wild_is_keras_own_where_that_is_wanted(
    load_img: Any, file: Expected, color_mode: str
) -> None:
    data = file.path.read_bytes()
    for how in ("nearest", "bicubic", "lanczos") if file.size[0] < 5000 else ("nearest",):
        for keep in (False, True):
            compare(load_img, data, (24, 36), how, color_mode=color_mode, keep_aspect_ratio=keep)


@pytest.mark.parametrize("whole", [(1, 50), (50, 1), (7, 7), (3, 2000)])
def test_a_part_of_the_target_s_aspect_is_keras_own(load_img: Any, whole: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*whole, 3), np.uint8)
    for size in ((5, 8), (9, 2), (1, 1)):
        compare(
            load_img, encoded(Image.fromarray(pixels)), size, "bilinear", color_mode="rgb",
            keep_aspect_ratio=True,
        )  # fmt: skip


# -- one thing at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("top", [256, 257, 40000, 65535])
def test_gray_of_16_bits_is_scaled_to_8_whatever_its_brightest_value(top: int) -> None:
    values = np.linspace(0, top, 64, dtype=np.uint16).reshape(8, 8)
    pixels = decoder((8, 8), color_mode="grayscale").decode(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(values / 257))


@pytest.mark.parametrize(("top", "scale"), [(1.0, 255), (0.5, 255), (255.0, 1), (99.0, 1)])
def test_floats_mean_0_to_1_or_0_to_255(top: float, scale: int) -> None:
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    pixels = decoder((8, 8)).decode(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[:, :, 1], np.rint(values * np.float64(scale)))


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536], [0.0, 256.0], [-0.1, 1.0], [0, np.nan]])
def test_grays_of_no_known_range_are_refused_rather_than_guessed(values: list[float]) -> None:
    kind = np.int32 if all(isinstance(v, int) for v in values) else np.float32
    data = encoded(Image.fromarray(np.array([values], kind)), "TIFF")
    with pytest.raises(Exception, match=r"gray values from .* to .*; wanted whole numbers"):
        decoder((1, 2)).decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["nearest", "bilinear"])
def test_exif_turns_a_picture_upright_where_that_is_asked_for(
    noise: Image.Image, orientation: int, how: str
) -> None:
    exif: Any = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise, exif=exif)
    upright = [None, "", "fliplr", "rot180", "flipud", "T", "rot90cw", "T180", "rot90ccw"]
    turned: Any = {
        "": lambda p: p,
        "fliplr": lambda p: p[:, ::-1],
        "rot180": lambda p: p[::-1, ::-1],
        "flipud": lambda p: p[::-1],
        "T": lambda p: p.transpose(1, 0, 2),
        "rot90cw": lambda p: np.rot90(p, -1),
        "T180": lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        "rot90ccw": lambda p: np.rot90(p),
    }[upright[orientation] or ""]
    wanted = turned(np.asarray(noise))
    size = (wanted.shape[0], wanted.shape[1])
    as_stored = decoder((40, 60), how).decode(data)
    np.testing.assert_array_equal(as_stored, np.asarray(noise))
    got = decoder(size, how, exif_orientation=True).decode(data)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["exif_orientation_5.jpg", "jpeg_broken_exif.jpg",
                                  "jpeg_truncated_exif.jpg", "png_rgba.png"])  # fmt: skip
@needs_bad_images
def test_exif_that_is_broken_or_absent_leaves_a_picture_as_it_is(name: str) -> None:
    file = next(file for file in READABLE if file.path.name == name)
    size = (64, 64)
    turned = decoder(size, exif_orientation=True).read(listed(file.path))
    stored = decoder(size).read(listed(file.path))
    assert np.array_equal(turned, stored) == (name != "exif_orientation_5.jpg")


def test_a_truncated_file_is_an_error_unless_filling_is_asked_for(noise: Image.Image) -> None:
    data = encoded(noise, "JPEG")[:-600]
    with pytest.raises(OSError, match="truncated"):
        decoder().decode(data)
    filled = decoder((40, 60), truncated="fill").decode(data)
    assert (filled[-1] == 128).all(), "Pillow's gray"
    with pytest.raises(OSError, match="truncated"):
        decoder().decode(data)


def test_pillows_own_settings_and_the_users_warnings_are_as_they_were(noise: Image.Image) -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    before = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(OSError, match="truncated"):
                decoder().decode(encoded(noise, "JPEG")[:-600])
            decoder(max_pixels=2400).decode(encoded(noise.convert("P"), transparency=b"\0\1"))
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
        assert before == Image.MAX_IMAGE_PIXELS
        assert caught == []
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_no_more_pixels_are_unpacked_than_allowed(noise: Image.Image, kind: str) -> None:
    data = encoded(noise, kind)
    assert decoder(max_pixels=2400).decode(data).shape == (24, 36, 3)
    for most in (2399, 1201, 100, 1):
        with pytest.raises(Image.DecompressionBombError, match=r"pixels"):
            decoder(max_pixels=most).decode(data)


@pytest.mark.parametrize("kind", ["ICO", "EPS", "PDF", "TGA", "PCX"])
def test_formats_that_are_not_for_pictures_of_a_dataset_are_not_tried(
    noise: Image.Image, kind: str
) -> None:
    with pytest.raises(Image.UnidentifiedImageError, match="wanted JPEG, PNG, BMP"):  # type: ignore[attr-defined]
        decoder().decode(encoded(noise, kind))


# -- the file itself -----------------------------------------------------------------------------


def test_a_file_that_was_changed_or_removed_since_it_was_listed_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    before = listed(path)
    assert read_bytes(before, 5) == b"12345"
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileUnavailable, match="has changed: 5 bytes of time 1, but it was listed"):
        read_bytes(before, 5)
    path.write_bytes(b"123456")
    os.utime(path, ns=(before.time, before.time))
    with pytest.raises(FileUnavailable, match=r"has changed: 6 bytes .*listed with 5"):
        read_bytes(before, 100)
    path.unlink()
    with pytest.raises(FileUnavailable, match=r"is gone: .*open it anew"):
        read_bytes(before, 100)


def test_a_file_is_not_read_beyond_the_bytes_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    with pytest.raises(OSError, match="5 bytes; wanted at most 4"):
        read_bytes(listed(path), 4)


def test_a_pipe_that_bears_a_pictures_name_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    os.mkfifo(path)
    with pytest.raises(OSError, match="a pipe, socket or device"):
        read_bytes(listed(path), 100)


def test_a_folder_that_bears_a_pictures_name_is_one(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_bytes(listed(tmp_path), 100)


@pytest.mark.parametrize("kind", ["int32", "uint16"])
def test_whole_numbers_up_to_255_in_a_wide_file_are_8_bit_values(kind: str) -> None:
    values = np.arange(256, dtype=kind).reshape(16, 16)
    pixels = decoder((16, 16)).decode(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[:, :, 0], values)


@pytest.mark.parametrize("how", ["nearest", "box"])
def test_the_range_of_floats_is_the_whole_picture_s_at_any_size(how: str) -> None:
    values = np.zeros((20, 20), np.float32)
    values[::2, ::2] = 200
    values[1::2, 1::2] = 0.5
    data = encoded(Image.fromarray(values), "TIFF")
    assert decoder((20, 20), how).decode(data).max() == 200
    assert decoder((10, 10), how).decode(data).max() <= 200
    values[3, 3] = np.nan
    for size in ((20, 20), (5, 5)):
        with pytest.raises(AugError, match="gray values from"):
            decoder(size, how).decode(encoded(Image.fromarray(values), "TIFF"))


@needs_bad_images
@pytest.mark.parametrize("file", [f for f in FILES if f.error and f.path.suffix == ".png"], ids=str)
def test_damage_is_found_also_where_tags_are_asked_for(file: Expected) -> None:
    with pytest.raises(Exception, match=r".") as refused:
        decoder(exif_orientation=True).read(listed(file.path))
    assert type(refused.value).__name__ == file.error


def test_gray_with_a_transparent_value_has_keras_own_alpha(load_img: Any, tmp_path: Path) -> None:
    stripes = np.tile(np.array([90, 110], np.uint8), (40, 20))
    Image.fromarray(stripes).save(tmp_path / "a.png", transparency=100)
    for how in ("nearest", "box", "bilinear"):
        wanted = load_img(
            tmp_path / "a.png", color_mode="rgba", target_size=(20, 20), interpolation=how
        )
        got = decoder((20, 20), how, color_mode="rgba").read(listed(tmp_path / "a.png"))
        np.testing.assert_array_equal(got, np.asarray(wanted))


def test_a_file_that_lies_elsewhere_when_it_is_opened_is_refused(tmp_path: Path) -> None:
    for name in ("root", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"12345")
        os.utime(tmp_path / name / "a.png", (1, 1))
    file, roots = listed(tmp_path / "root" / "a.png"), Roots([str(tmp_path / "root")])
    assert read_bytes(file, 5, roots) == b"12345"
    (tmp_path / "root").rename(tmp_path / "old")
    (tmp_path / "root").symlink_to(tmp_path / "secret")
    with pytest.raises(NotAllowed, match=r"secret/a\.png' is not below"):
        read_bytes(file, 5, Roots([str(tmp_path / "old")]))
