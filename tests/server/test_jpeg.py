"""Plain JPEGs are decoded without Pillow, to Pillow's own pixels; all others are Pillow's."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from real_data import DOGS_CATS, Expected, bad_images, needs_dogs_cats

from augproto.pictures import Pictures
from augserver.datasets import jpeg
from augserver.datasets.decoding import Decoder

Array = npt.NDArray[Any]
PHOTOGRAPHS = sorted(DOGS_CATS.parent.glob("*/*/*.jpg"))


@pytest.fixture
def by_pillow_alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is decoded with nothing but Pillow, or the error that it is refused with."""

    def decode(decoder: Decoder, data: bytes) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "plain", lambda data: None)
            return outcome(decoder, data)

    return decode


def outcome(decoder: Decoder, data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def encoded(pixels: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def noise(height: int, width: int, *channels: int) -> Array:
    return np.random.default_rng(1).integers(0, 256, (height, width, *channels), np.uint8)


def is_decoded_here(data: bytes, size: tuple[int, int] = (8, 8)) -> bool:
    out = np.zeros((*size, 3), np.uint8)
    return Decoder(Pictures(), size, "nearest")._decode_plain_jpeg(data, out)


def test_the_installed_libraries_agree() -> None:
    assert jpeg.available() is not None


# -- the same pixels -----------------------------------------------------------------------------


@needs_dogs_cats
@pytest.mark.parametrize("keep", [False, True])
def test_all_real_photographs_are_pillow_s_pixels(by_pillow_alone: Any, keep: bool) -> None:
    here = 0
    for path in PHOTOGRAPHS:
        data = path.read_bytes()
        for size in ((299, 299), (64, 227)):
            decoder = Decoder(Pictures(keep_aspect_ratio=keep), size, "nearest")
            assert np.array_equal(decoder.decode(data), by_pillow_alone(decoder, data)), path.name
        here += is_decoded_here(data)
    assert here > len(PHOTOGRAPHS) // 2


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0", "gray"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_size_is_resized_as_pillow_does_it(
    by_pillow_alone: Any, sampling: str, progressive: bool
) -> None:
    rng = np.random.default_rng(2)
    options = {} if sampling == "gray" else {"subsampling": sampling}
    for _ in range(60):
        height, width = rng.integers(1, 150, 2).tolist()
        target = tuple(rng.integers(1, 200, 2).tolist())
        pixels = noise(height, width, *(() if sampling == "gray" else (3,)))
        data = encoded(pixels, quality=90, progressive=progressive, **options)
        assert jpeg.plain(data) == (width, height)
        for keep in (False, True):
            decoder = Decoder(Pictures(keep_aspect_ratio=keep), target, "nearest")
            got, wanted = outcome(decoder, data), by_pillow_alone(decoder, data)
            assert np.array_equal(got, wanted), (height, width, target, keep, got, wanted)


@pytest.mark.parametrize("color_mode", ["rgb", "rgba", "grayscale"])
@pytest.mark.parametrize("how", ["nearest", "bilinear", "lanczos"])
def test_every_colour_mode_and_interpolation_is_pillow_s(
    by_pillow_alone: Any, color_mode: str, how: str
) -> None:
    for pixels in (noise(40, 60, 3), noise(40, 60)):
        data = encoded(pixels, quality=80)
        for size in ((40, 60), (24, 36)):
            decoder = Decoder(Pictures(color_mode=color_mode), size, how)
            assert np.array_equal(decoder.decode(data), by_pillow_alone(decoder, data))


def test_pillow_s_steps_are_summed_as_it_sums_them() -> None:
    rng = np.random.default_rng(5)
    beside = 0
    for _ in range(3000):
        length, count = rng.integers(1, 3000, 2).tolist()
        line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
        wanted = np.asarray(line.resize((count, 1), Image.Resampling.NEAREST))[0]
        table = jpeg.nearest(0, length, count)
        assert table is not None
        assert np.array_equal(table, wanted), (length, count)
        beside += not np.array_equal(table, ((np.arange(count) + 0.5) * (length / count)) // 1)
    assert beside, "rounding shows now and then"


# -- the same refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("truncated", ["error", "fill"])
@pytest.mark.parametrize("file", [f for f in bad_images() if f.path.is_file()], ids=str)
def test_a_damaged_or_unusual_file_has_the_outcome_that_pillow_gives_it(
    by_pillow_alone: Any, file: Expected, truncated: str
) -> None:
    data = file.path.read_bytes()
    for pictures in (
        Pictures(truncated=truncated),
        Pictures(truncated=truncated, exif_orientation=True, keep_aspect_ratio=True),
    ):
        decoder = Decoder(pictures, (40, 60), "nearest")
        got, wanted = outcome(decoder, data), by_pillow_alone(decoder, data)
        assert np.array_equal(got, wanted), (got, wanted)


@pytest.mark.parametrize("truncated", ["error", "fill"])
def test_a_file_cut_or_changed_anywhere_has_the_outcome_that_pillow_gives_it(
    by_pillow_alone: Any, truncated: str
) -> None:
    decoder = Decoder(Pictures(truncated=truncated), (30, 30), "nearest")
    rng = np.random.default_rng(3)
    kept = 0
    for options in ({"progressive": True}, {"subsampling": "4:2:0"}, {"icc_profile": b"p" * 40}):
        data = encoded(noise(33, 47, 3), quality=70, comment=b"a cat", **options)
        for _ in range(150):
            damaged = bytearray(data)
            at = int(rng.integers(2, len(data) - 2))
            match rng.integers(4):
                case 0:
                    damaged = damaged[:at] + data[-2:]
                case 1:
                    damaged[at] = int(rng.integers(256))
                case 2:
                    del damaged[at : at + int(rng.integers(1, 9))]
                case _:
                    damaged[int(rng.integers(2, 620))] = int(rng.integers(256))
            got = outcome(decoder, bytes(damaged))
            wanted = by_pillow_alone(decoder, bytes(damaged))
            assert np.array_equal(got, wanted), (options, at, got, wanted)
            kept += is_decoded_here(bytes(damaged))
    assert kept, "some damage is none that anybody sees"


def test_what_libjpeg_warns_of_is_not_decoded_here() -> None:
    data = encoded(noise(33, 47, 3), quality=70)
    assert is_decoded_here(data)
    cut = data[:-300] + data[-2:]
    assert jpeg.plain(cut) is not None
    out = np.zeros((8, 8, 3), np.uint8)
    assert not Decoder(Pictures(), (8, 8), "nearest")._decode_plain_jpeg(cut, out)
    assert not out.any(), "nothing is written then"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}, "Pillow parses it, and may refuse it"),
        ({"xmp": b"<x/>"}, "it may say which way is up"),
    ],
)
def test_what_pillow_reads_more_of_is_left_to_it(options: dict[str, Any], why: str) -> None:
    assert jpeg.plain(encoded(noise(9, 9, 3))) == (9, 9)
    assert jpeg.plain(encoded(noise(9, 9, 3), **options)) is None, why


def test_files_that_are_no_plain_jpegs_are_left_to_pillow() -> None:
    data = encoded(noise(9, 9, 3))
    cmyk = io.BytesIO()
    Image.fromarray(noise(9, 9, 4), "CMYK").save(cmyk, "JPEG")
    for other in (
        b"",
        b"\xff",
        b"\xff\xd8\xff",
        data[:-1],
        data[1:],
        data + b"\0",
        cmyk.getvalue(),
    ):
        assert jpeg.plain(other) is None
    for length in range(2, len(data)):
        jpeg.plain(data[:length])  # ends anywhere, and raises nothing


def test_no_more_pixels_are_unpacked_here_than_allowed() -> None:
    data = encoded(noise(40, 60, 3))
    assert is_decoded_here(data)
    out = np.zeros((8, 8, 3), np.uint8)
    few = Decoder(Pictures(max_pixels=2399), (8, 8), "nearest")
    assert not few._decode_plain_jpeg(data, out)


# -- what is installed ---------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    jpeg.available.cache_clear()
    yield
    jpeg.available.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_library_with_other_pixels_is_not_used_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import simplejpeg

    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **o: decode(*a, **o) ^ 1)
    with caplog.at_level(logging.WARNING):
        assert jpeg.available() is None
        assert jpeg.available() is None
    (record,) = caplog.records
    assert "has other pixels than Pillow's" in record.getMessage()
    data = encoded(noise(40, 60, 3))
    got = Decoder(Pictures(), (40, 60), "nearest").decode(data)
    assert np.array_equal(got, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.usefixtures("fresh")
def test_a_library_that_takes_damaged_files_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import simplejpeg

    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda data, colours, strict: decode(data, colours, strict=False)
    )
    assert jpeg.available() is None
    assert "with a part missing" in caplog.text


@pytest.mark.usefixtures("fresh")
def test_without_the_library_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    assert jpeg.available() is None
    data = encoded(noise(40, 60, 3))
    assert Decoder(Pictures(), (8, 8), "nearest").decode(data).shape == (8, 8, 3)


def test_a_picture_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    for data in (encoded(noise(40, 60, 3)), encoded(noise(40, 60))):
        out = np.zeros((8, 8, 3), np.uint8)
        decoder = Decoder(Pictures(), (8, 8), "nearest")
        assert decoder.decode(data, out) is out
        assert np.array_equal(out, decoder.decode(data))
