"""How files become pictures and labels: a part of a spec."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from augproto import checks

LABEL_MODES = ("sparse", "categorical", "binary", "number", "input", "none")
COLOR_MODES = {"rgb": 3, "rgba": 4, "grayscale": 1}
TRUNCATED = ("error", "fill")
WIDE = ("scale", "keras")

#: What Pillow calls a decompression bomb: a picture of more pixels. One of three channels would
#: take half a gigabyte.
MAX_PIXELS = 178_956_970
#: Nor is a file of more bytes read.
MAX_FILE_BYTES = 256 << 20
#: Classes; their names go with the spec.
MAX_CLASSES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A folder of picture files, a sub-folder a class, or a list of files.

    Pictures come as 8-bit pixels, whatever their files hold: JPEG, PNG, BMP, PPM, GIF and WebP
    (the first frame), TIFF (the first page). Gray of 16 bits is scaled to 8, floats from 0 to 1 to
    0..255 (but see `wide`); alpha is dropped where the colour mode has none, as Keras does.

    Attributes:
        label_mode: "sparse" (int32: the index of the class), "categorical" (float32: one-hot),
            "binary" (float32: 0 or 1, of two classes), "number" (float32: the number that a .csv
            lists), "input" (the finished picture itself) or "none". With the last two a folder
            needs no sub-folders.
        class_names: The classes that take part, in the order of their numbers. Empty: the names of
            all sub-folders, or all labels of the .csv, sorted.
        color_mode: "rgb", "rgba" or "grayscale".
        recursive: Take files of sub-folders of any depth, too. Links to folders are not followed,
            and names that begin with a dot are left out.
        exif_orientation: Turn pictures upright as their EXIF tag says. Keras does not.
        wide: What becomes of gray of more than 8 bits. "scale" makes 8 of them. "keras" does
            whatever Keras's `load_img` does: grayscale keeps values of 16 and 32 bits, beyond 255,
            and everything else is cut off at 0 and 255.
        keep_aspect_ratio: Cut what is beyond the target's aspect off, the same on both sides,
            instead of stretching (Keras's option of that name).
        truncated: "error", or "fill": what is missing of a file's end becomes gray or black.
        max_pixels, max_bytes: Of a file; one that has more is a bad sample.
    """

    label_mode: str = "sparse"
    class_names: tuple[str, ...] = ()
    color_mode: str = "rgb"
    recursive: bool = True
    exif_orientation: bool = False
    wide: str = "scale"
    keep_aspect_ratio: bool = False
    truncated: str = "error"
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_FILE_BYTES

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "label_mode", "none" if self.label_mode is None else self.label_mode)
        checks.choice("pictures.label_mode", self.label_mode, LABEL_MODES)
        checks.choice("pictures.color_mode", self.color_mode, tuple(COLOR_MODES))
        checks.choice("pictures.truncated", self.truncated, TRUNCATED)
        checks.choice("pictures.wide", self.wide, WIDE)
        for name in ("recursive", "exif_orientation", "keep_aspect_ratio"):
            put(self, name, checks.flag(f"pictures.{name}", getattr(self, name)))
        for name, most in (("max_pixels", 1 << 34), ("max_bytes", 1 << 34)):
            put(self, name, checks.whole(f"pictures.{name}", getattr(self, name), 1, most))
        put(self, "class_names", self._names())

    def _names(self) -> tuple[str, ...]:
        names = self.class_names
        wanted = f"a list of at most {MAX_CLASSES} names in UTF-8, each once"
        if not isinstance(names, (tuple, list)) or not all(
            isinstance(name, str) and 0 < len(name) < 4096 and checks.travels(name)
            for name in names
        ):
            raise checks.refuse("pictures.class_names", names, wanted)
        if len(names) > MAX_CLASSES or len(set(names)) != len(names):
            raise checks.refuse("pictures.class_names", names, wanted)
        if self.label_mode == "binary" and len(names) not in (0, 2):
            raise checks.refuse("pictures.class_names", names, "two names for labels 0 and 1")
        return tuple(names)

    @property
    def channels(self) -> int:
        """Of a picture."""
        return COLOR_MODES[self.color_mode]

    @property
    def dtype(self) -> str:
        """Of a picture as it is read: the smallest that holds whatever may come."""
        return "int32" if self.wide == "keras" and self.color_mode == "grayscale" else "uint8"

    @property
    def classified(self) -> bool:
        """Whether labels are classes."""
        return self.label_mode in ("sparse", "categorical", "binary")

    @classmethod
    def from_wire(cls, wire: object) -> Pictures:
        """Read and check the form that `to_wire` gives, or a table of augserver.toml."""
        return cls(**checks.fields(cls, wire, "pictures"))

    def to_wire(self) -> dict[str, object]:
        """Plain data with the fields that differ from their defaults."""
        wire: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                wire[field.name] = list(value) if isinstance(value, tuple) else value
        return wire
