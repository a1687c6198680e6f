"""Plain JPEGs by simplejpeg, straight to a picture of the wanted size: the pixels that Pillow has.

Both decode by libjpeg-turbo. What is spared is Pillow's parsing in Python, its four bytes a pixel
and its copies, which cost a quarter of the decoding itself. Only files for which nothing but the
pixels can come out are taken: every segment before the data is of a kind that Pillow passes over,
the sampling is one that has been compared, the end is where it belongs. All others, and whatever
libjpeg warns of, are Pillow's: its errors, and what it makes of damage, stay what they are.

Whether the libraries agree is not believed but tried, once in each process (`available`): two
builds of libjpeg may round differently.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Table = npt.NDArray[np.int64]

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; Huffman-coded, all three
_SCAN, _QUANTIZATION = 0xDA, 0xDB
_JFIF, _PROFILE, _ADOBE = 0xE0, 0xE2, 0xEE
#: Huffman tables, restart intervals and comments, and what applications say of which neither
#: Pillow nor libjpeg knows anything. (EXIF and Photoshop's blocks Pillow parses, and may refuse.)
_PASSED_OVER = (0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF)
#: Horizontal and vertical factors of each component, in one number, as the frame has them.
_SAMPLING = {(0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11)}

_log = logging.getLogger("augserver.datasets")


class Frame(NamedTuple):
    """What a JPEG's header says."""

    width: int
    height: int


def plain(data: bytes) -> Frame | None:
    """The size of a JPEG that may be decoded here; None for every other file."""
    if data[:3] != _START or data[-2:] != _END:
        return None
    frame = None
    at = 2
    try:
        while data[at] == 0xFF:
            marker = data[at + 1]
            length = data[at + 2] << 8 | data[at + 3]  # its own two bytes included
            body = at + 4
            if length < 2:
                return None
            if marker in _FRAMES:
                if frame is not None or not _frame_is_plain(data, body, length):
                    return None
                height = data[body + 1] << 8 | data[body + 2]
                width = data[body + 3] << 8 | data[body + 4]
                frame = Frame(width, height)
            elif marker == _SCAN:
                return frame
            elif marker == _QUANTIZATION:
                # Tables of 8 bits, each 65 bytes with its number.
                if (length - 2) % 65 or any(b >> 4 for b in data[body : body + length - 2 : 65]):
                    return None
            elif marker not in _PASSED_OVER and not _application_is_plain(
                marker, data[body : body + 12], length
            ):
                return None
            at += 2 + length
    except IndexError:
        pass
    return None


def _frame_is_plain(data: bytes, body: int, length: int) -> bool:
    """8 bits, some pixels, one component or three of a common sampling."""
    components = data[body + 5]
    sizes = data[body + 1 : body + 5]
    if data[body] != 8 or length != 8 + 3 * components or not any(sizes[:2]) or not any(sizes[2:]):
        return False
    factors = tuple(data[body + 7 + 3 * i] for i in range(components))
    return components == 1 or factors in _SAMPLING


def _application_is_plain(marker: int, head: bytes, length: int) -> bool:
    """A JFIF header, a colour profile or Adobe's mark of YCbCr, each as long as it has to be."""
    if marker == _JFIF:
        return head[:5] == b"JFIF\0" and length >= 16
    if marker == _PROFILE:
        return head == b"ICC_PROFILE\0" and length >= 16
    return marker == _ADOBE and head[:5] == b"Adobe" and length == 14 and head[11] == 1


@functools.lru_cache(maxsize=1024)
def nearest(start: int, length: int, count: int) -> Table | None:
    """Which of the pixels from `start` on, of `length`, Pillow's nearest takes for `count` pixels.

    Its own sum, step by step, since every addition rounds. None where the last step falls outside,
    which Pillow leaves black.
    """
    step = length / count
    steps = np.full(count, step)
    steps[0] = start + step * 0.5
    table = np.add.accumulate(steps).astype(np.int64)
    if table[-1] >= start + length:
        return None
    table.setflags(write=False)
    return table


class Jpeg:
    """Decodes plain JPEGs; `available` makes the one there is."""

    def __init__(self) -> None:
        """Raises: ImportError: simplejpeg or numba is not installed."""
        import simplejpeg

        self._decode: Callable[..., Pixels] = simplejpeg.decode_jpeg
        self._gather = _compiled()

    def read(self, data: bytes, frame: Frame, rows: Table, columns: Table, out: Pixels) -> bool:
        """Write pixels of a picture; returns whether it could be decoded without a warning.

        Args:
            data: The file, which is `plain`.
            rows, columns: Which of its pixels.
            out: uint8 (rows, columns, 3). Each byte is written once, with its final value, and
                none where False is returned.
        """
        try:
            whole = self._decode(data, "RGB", strict=True)
        except (ValueError, RuntimeError):
            return False
        if whole.shape != (frame.height, frame.width, 3):
            return False
        self._gather(whole, rows, columns, out)
        return True


@functools.cache
def _compiled() -> Callable[[Pixels, Table, Table, Pixels], None]:
    from augserver.compiling import kept

    def gather(source: Any, rows: Any, columns: Any, out: Any) -> None:
        for i in range(rows.shape[0]):
            line = source[rows[i]]
            target = out[i]
            for j in range(columns.shape[0]):
                # Unsigned, so that no index is looked at for being negative.
                x, to = np.uint32(columns[j]), np.uint32(j)
                target[to, 0] = line[x, 0]
                target[to, 1] = line[x, 1]
                target[to, 2] = line[x, 2]

    compiled: Callable[..., None] = kept(gather)
    return compiled


@functools.cache
def available() -> Jpeg | None:
    """The decoder, where it is installed and gives Pillow's pixels; it is tried once."""
    try:
        jpeg = Jpeg()
    except ImportError:
        return None
    for name, data, progressive in _trials():
        why = _differs(jpeg, data, progressive=progressive)
        if why is not None:
            _log.warning("simplejpeg is not used, and Pillow decodes alone: %s %s", name, why)
            return None
    return jpeg


def _differs(jpeg: Jpeg, data: bytes, *, progressive: bool) -> str | None:
    """What is wrong with the pixels of a trial, if anything."""
    wanted = np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB"))
    out = np.zeros_like(wanted)
    frame = plain(data)
    rows, columns = (np.arange(count) for count in wanted.shape[:2])
    if frame is None or not jpeg.read(data, frame, rows, columns, out):
        return "is refused"
    if not np.array_equal(out, wanted):
        return "has other pixels than Pillow's"
    # Cut in the middle of its data, and ended as if nothing were missing. (A progressive one may be
    # whole without its last scans.)
    cut = data[: len(data) * 3 // 4] + _END
    if not progressive and plain(cut) and jpeg.read(cut, frame, rows, columns, out):
        return "is taken with a part missing"
    return None


def _trials() -> Iterator[tuple[str, bytes, bool]]:
    """Small pictures of every kind that `plain` lets pass, noise over a slope, of odd sizes: what
    each is, its file, and whether that is progressive."""
    noise = np.random.RandomState(1)
    for height, width in ((37, 53), (16, 64), (9, 1)):
        slope = np.add.outer(np.arange(height) * 5, np.arange(width) * 3)[:, :, None]
        pixels = (slope + noise.randint(0, 90, (height, width, 3))).clip(0, 255).astype(np.uint8)
        for sampling in ("4:4:4", "4:2:2", "4:2:0", "gray"):
            for progressive in (False, True):
                image = Image.fromarray(pixels)
                options: dict[str, Any] = {"quality": 88, "progressive": progressive}
                if sampling == "gray":
                    image = image.convert("L")
                else:
                    options["subsampling"] = sampling
                file = io.BytesIO()
                image.save(file, "JPEG", **options)
                kind = "a progressive JPEG" if progressive else "a JPEG"
                name = f"{kind} of {width} x {height} pixels, {sampling},"
                yield name, file.getvalue(), progressive
