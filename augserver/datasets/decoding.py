"""From a picture file to pixels of one size, as Keras's `load_img` makes them by Pillow.

Where `load_img` gives pixels without losing what the file holds, these are the same, bit for bit:
converted to the colour mode first, resized then. Where it loses (16-bit gray turns white, floats
turn black) the values are scaled instead, unless a stream wants just that. Nothing here trusts a
file: what is read, and how many pixels are unpacked, has bounds, and no file can make a worker
wait.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# The plugins by name, so that a worker forked from the forkserver has them already.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from augproto.errors import AugError
from augproto.files import File
from augproto.pictures import Pictures
from augserver.datasets import jpeg
from augserver.datasets.roots import Roots
from augserver.transforms.resize import RESAMPLING

#: Endings, in lower case, of the files that a folder is searched for.
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".gif", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "WEBP", "TIFF")
_MODES = {"rgb": "RGB", "rgba": "RGBA", "grayscale": "L"}
#: Modes of one channel: converted to "L" they resize as each of three equal channels would.
_GRAY = ("1", "L")
#: Gray of more than 8 bits.
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
#: ... of which Keras keeps these as they are where it is asked for gray.
_KEPT = ("I;16", "I")
_ORIENTATION = 0x0112
#: EXIF's orientations from 2 to 8, as what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = npt.NDArray[Any]

_pillow = threading.Lock()


class FileUnavailable(AugError):
    """A file is not the one that was listed, or cannot be read now.

    That is no property of the dataset, so no policy may go on without the sample: its batch would
    be another one tomorrow, or from another worker.
    """


class Unreadable(AugError):
    """A file holds no picture that can be given truly."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Reads files as the pictures of one stream.

    Attributes:
        pictures: Colours, bounds and what to do with what.
        size: (height, width) to get.
        interpolation: Of the resize to it.
        roots: Folders below which files must lie, if any.
    """

    pictures: Pictures
    size: tuple[int, int]
    interpolation: str
    roots: Roots | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a picture."""
        return (*self.size, self.pictures.channels)

    def read(self, file: File, out: Pixels | None = None) -> Pixels:
        """The picture of a file: (height, width, channels), of `pictures.dtype`.

        Args:
            out: Of that shape and dtype, to be written; made where there is none. Each of its
                numbers is written once, with its final value, and none if the file is no good: who
                reads a picture that is there already meets no other one meanwhile.

        Raises:
            FileUnavailable: It is another file than was listed, or gone.
            Exception: Whatever Pillow raises, and that is nearly everything, on a damaged file.
        """
        return self.decode(read_bytes(file, self.pictures.max_bytes, self.roots), out)

    def decode(self, data: bytes, out: Pixels | None = None) -> Pixels:
        """The picture that the bytes of a file hold; see `read`."""
        if out is None:
            out = np.empty(self.shape, self.pictures.dtype)
        if not self._decode_plain_jpeg(data, out):
            with _settings(self.pictures), _opened(data, self.pictures.max_pixels) as image:
                if self.pictures.exif_orientation:
                    image = _upright(image)
                out[...] = self._finish(image)
        return out

    def _decode_plain_jpeg(self, data: bytes, out: Pixels) -> bool:
        """Write the picture without Pillow, if it is one that can be had so; see `jpeg`.

        That pays where pixels are only picked: to resize otherwise, and to turn colours to gray,
        Pillow wants them in its own memory.
        """
        frame = jpeg.plain(data) if self.pictures.color_mode == "rgb" else None
        if frame is None or frame.width * frame.height > self.pictures.max_pixels:
            return False
        whole, target = (frame.width, frame.height), (self.size[1], self.size[0])
        left, upper, right, lower = 0, 0, *whole
        if whole != target:
            if self.interpolation != "nearest":
                return False
            if self.pictures.keep_aspect_ratio:
                left, upper, right, lower = _of_aspect(whole, target)
        decoder = jpeg.available()
        if decoder is None or left >= right or upper >= lower:
            return False
        columns = jpeg.nearest(left, right - left, target[0])
        rows = jpeg.nearest(upper, lower - upper, target[1])
        if rows is None or columns is None:
            return False
        return decoder.read(data, frame, rows, columns, out)

    def _finish(self, image: Image.Image) -> Pixels:
        mode, how = _MODES[self.pictures.color_mode], RESAMPLING[self.interpolation]
        if image.mode in _WIDE and self.pictures.wide == "scale":
            image = Image.fromarray(_in_8_bits(np.asarray(image)))  # by the whole picture's range
        if image.mode in _WIDE:
            if mode != "L" or image.mode not in _KEPT:
                image = image.convert(mode)
            image = self._resized(image, how)
        elif how is Image.Resampling.NEAREST:
            # It only picks pixels, so it may come first: a picture of 95 million pixels of one bit
            # is not unpacked to three bytes each.
            image = _converted(self._resized(image, how), mode)
        elif image.mode in _GRAY and "transparency" not in image.info:
            image = _converted(self._resized(_converted(image, "L"), how), mode)
        else:
            image = self._resized(_converted(image, mode), how)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def _resized(self, image: Image.Image, how: Image.Resampling) -> Image.Image:
        size = self.size[1], self.size[0]
        if image.size == size:
            return image
        box = _of_aspect(image.size, size) if self.pictures.keep_aspect_ratio else None
        return image.resize(size, how, box=box)


def read_bytes(file: File, most: int, roots: Roots | None = None) -> bytes:
    """A file's bytes, if it is the file that was listed.

    Args:
        roots: Folders below which the file that was opened must lie, if any: a link may have taken
            the place of what was listed.

    Raises:
        NotAllowed: It lies elsewhere.
        FileUnavailable: It is gone, cannot be read, or its size or time is another.
        OSError: It is no regular file, or too large.
    """
    try:
        # A pipe that bears a picture's name would be waited for, without O_NONBLOCK.
        fd = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FileUnavailable(f"the file is gone: {_ANEW}") from error
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, _IRREGULAR) from error
        raise FileUnavailable(f"the file cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, _IRREGULAR)
        if roots is not None:
            roots.check(os.readlink(f"/proc/self/fd/{fd}"))
        if File.of(file.path, status) != file:
            raise FileUnavailable(
                f"the file has changed: {status.st_size} bytes of time {status.st_mtime_ns}, but "
                f"it was listed with {file.size} of {file.time}: {_ANEW}"
            )
        if status.st_size > most:
            raise OSError(
                errno.EFBIG, f"{status.st_size} bytes; wanted at most {most} (pictures.max_bytes)"
            )
        data = _read_all(fd, file.size)
    finally:
        os.close(fd)
    if len(data) != file.size:
        raise FileUnavailable(f"the file changed while it was read: {_ANEW}")
    return data


def _read_all(fd: int, size: int) -> bytes:
    """So many bytes, and one more if there is one."""
    chunks: list[bytes] = []
    left = size + 1
    try:
        while left and (chunk := os.read(fd, left)):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError as error:
        raise FileUnavailable(f"the file cannot be read: {error.strerror}") from error
    return b"".join(chunks)


_IRREGULAR = "a pipe, socket or device; wanted a regular file"
_ANEW = "a stream gives the same bytes for ever, so open it anew to train on what is there now"


@contextmanager
def _settings(pictures: Pictures) -> Iterator[None]:
    """Pillow's global settings as this stream wants them.

    They are the process's own: a worker's, or the user's where batches are computed in the
    caller's process, so they are put back; and a warning must not depend on the user's filters.
    """
    with _pillow, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES = pictures.truncated == "fill"
        Image.MAX_IMAGE_PIXELS = pictures.max_pixels // 2  # Pillow raises above twice as many
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _opened(data: bytes, most: int) -> Iterator[Image.Image]:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        # Pillow's own text names an address in memory, another one each time.
        raise UnidentifiedImageError(
            f"no picture in these {len(data)} bytes; wanted {', '.join(_FORMATS)}"
        ) from None
    with image:
        if image.width * image.height > most:
            raise Image.DecompressionBombError(
                f"{image.width} x {image.height} pixels; wanted at most {most} "
                "(pictures.max_pixels)"
            )
        yield image


def _upright(image: Image.Image) -> Image.Image:
    # Before its tags are asked for: that may unpack a PNG, whose damage would be lost in the `try`.
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged tag says nothing about which way is up
        return image
    how = _UPRIGHT.get(orientation)
    return image if how is None else image.transpose(how)


def _of_aspect(whole: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part in the middle of a picture that has a target's aspect, in whole pixels.

    Args:
        whole, target: (width, height).

    Returns:
        Left, upper, right, lower. A picture that is far longer than wide may leave no pixel; Pillow
        refuses it then, as it does in Keras.
    """
    width = min(whole[0], whole[1] * target[0] // target[1])
    height = min(whole[1], whole[0] * target[1] // target[0])
    left, upper = (whole[0] - width) // 2, (whole[1] - height) // 2
    return left, upper, left + width, upper + height


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # also where transparency is a list of bytes
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _in_8_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Gray of 16 bits, or floats, as 8 bits, by the range that such files mean.

    Whole numbers up to 255 are 8-bit values in a wide file, as Keras takes them.

    Raises:
        Unreadable: The values fit no such range, and to guess one would be to make a picture up.
    """
    if not values.size:
        return values.astype(np.uint8)
    low, high = values.min(), values.max()
    if values.dtype.kind in "iu" and low >= 0 and high <= 255:
        return values.astype(np.uint8)
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind == "f" and low >= 0 and high <= 255:  # false for NaN
        scale = 255.0 if high <= 1 else 1.0
        return np.rint(values * np.float64(scale)).astype(np.uint8)
    raise Unreadable(
        f"gray values from {low} to {high}; wanted whole numbers up to 65535, or floats from 0 to "
        "1 or from 0 to 255"
    )
