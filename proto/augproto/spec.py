"""What a stream is made of: which arrays or files, in which batches, through which transforms.

A `Spec` is a value. It comes from a client's arguments, from the wire, or from augserver.toml, and
all three doors lead through the same checks: whatever passes can be served, whatever does not is
refused by name with the value that was got and the values that are wanted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from augproto import checks
from augproto.errors import ConfigError
from augproto.pictures import Pictures
from augproto.structure import Structure, leaves, names_from_wire, names_to_wire
from augproto.transforms import Transforms

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "hamming", "box", "lanczos")
DATA_FORMATS = ("channels_last", "channels_first")
DTYPES = ("float32", "float64", "float16", "uint8")
SUBSETS = ("training", "validation")
POLICIES = ("raise", "skip", "substitute")
SCHEMES = ("counter", "keras", "given")
CACHES = ("decoded",)

#: What the columns of a dataset of files are called: its pictures, and its labels if it has any.
PICTURE = "picture"
LABEL = "label"

#: The name of what a private server's client has handed over (arrays, a function) starts so.
HANDED = "handed:"
#: ... and of a dataset that a server's config names, and knows the files of.
DATASET = "dataset:"
#: The largest seed: the key of the counter-based generator is 64 bits wide.
MAX_SEED = 2**64 - 1
#: The last epoch: the generator of draws counts them in 32 bits.
MAX_EPOCH = 2**32 - 2
#: ... and what np.random.seed takes.
MAX_KERAS_SEED = 2**32 - 1
#: What hashes may lie below: where Keras's own numbers take 32 bits.
MAX_HASHES = 2**31
#: A batch of more samples than this is a typing error, not a wish.
MAX_BATCH = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One stream: dataset, order, batch and transforms. With a seed it fixes every byte.

    Attributes:
        data: Files on the server (.npz: its arrays by their names; .npy: one array named after the
            file's stem), or the name of arrays that a private server's client has handed over.
            With `pictures` one folder of picture files, or one .csv that lists them. Or
            "dataset:NAME", a dataset of the server's config: whatever else is left at its default
            is then as the config says, and checked when the server has put both together.
        pictures: How files become pictures and labels; None for arrays. x is "picture" then, and y
            what `pictures.label_mode` says.
        x, y, sample_weight: Names of arrays: one, a tuple or a dict, as Keras takes them.
        images: The arrays of x that are pictures (rank 4) and pass through resize and transforms,
            all with the same draws. None: the first array of x, where it has rank 4.
        batch_size: Samples in a batch; the last one of an epoch is smaller unless drop_remainder.
        shuffle: A new order every epoch; otherwise the dataset's own.
        seed: 0 to 2**64 - 1; None lets the server draw one, once, and report it.
        shard: (index, count): every count-th sample of the epoch's order, from index on.
        validation_split, subset: As in Keras, the first share of the samples is "validation" and
            the rest "training"; of a folder, the first share of each class. subset=None takes all.
        target_size: (height, width) that pictures are resized to, by Pillow, before transforms.
        interpolation: Of that resize.
        data_format: Of the dataset's pictures and of the batch.
        dtype: Of pictures in the batch. "uint8" and "float16" are a quarter and half of the bytes
            of "float32": pictures are computed in float32 and rounded at the end. To whole numbers
            from 0 to 255 (halves to the even one, NaN to 0), so leave the rescale to the model; or
            to the nearest float16 (infinite from 65520 on). 8-bit pictures that are at most flipped
            stay as they are. In scheme "keras" there is no "float16", and "uint8" means what Keras
            makes of it: fractions are cut off, or there must not be any.
        scheme: How orders and parameters are drawn. "counter": a sample's depend on nothing but
            (seed, epoch, sample). "keras": the k-th batch is the k-th that Keras's
            `ImageDataGenerator` gives with this seed, which so must be below 2**32; such a stream
            has no shards and keeps the last batch.
            "given": nothing is drawn, and batches come by scripts alone, which bring everything
            (see `augserver.desk`).
        bad_samples: What becomes of a sample whose file cannot be read or whose function raises:
            "raise" ends in a WorkerError; "skip" makes the batch shorter; "substitute" takes the
            next sample of the dataset in its place (with its label, and the draws of the sample
            that it stands for). Both of these are told, and are the same in every worker.
        transforms: See `Transforms`.
        whitening: The name of an array of the dataset, float of shape (D, D), that each finished
            picture, flattened to D numbers, is multiplied by from the right (Keras's ZCA). The
            batch is one matrix product, so its last bits are those of the CPU and of BLAS with one
            thread, which is what workers have.
        hashes: Let each batch bring one more array, int64 (samples,): whole numbers below this,
            which Keras draws after a batch's parameters for the names of the files that it saves
            (10 000 for arrays, 10 000 000 for files). Scheme "keras" with one array of pictures;
            its place in the batch's structure is "hashes".
        cache: "decoded" keeps pictures of files in memory as they are decoded and resized, so that
            later epochs only transform them: of as many samples, from the first on, as the server
            has room for (its `cache_bytes`). All streams that want the same pictures of the same
            folder or list share them. Batches are the same with it and without; but a file that is
            changed or removed after it was read is no error then.
    """

    data: tuple[str, ...]
    x: Structure[str] = ""
    y: Structure[str] | None = None
    sample_weight: Structure[str] | None = None
    images: tuple[str, ...] | None = None
    batch_size: int = 32
    shuffle: bool = True
    seed: int | None = None
    shard: tuple[int, int] = (0, 1)
    drop_remainder: bool = False
    validation_split: float = 0.0
    subset: str | None = None
    target_size: tuple[int, int] | None = None
    interpolation: str = "nearest"
    data_format: str = "channels_last"
    dtype: str = "float32"
    pictures: Pictures | None = None
    scheme: str = "counter"
    bad_samples: str = "raise"
    transforms: Transforms = dataclasses.field(default_factory=Transforms)
    whitening: str | None = None
    hashes: int | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "data", self._data())
        if self.pictures is not None:
            self._name_columns(self.pictures)
        if self.x or self.dataset is None:
            put(self, "x", names_from_wire(self.x, "x"))
        if self.y is not None:
            put(self, "y", names_from_wire(self.y, "y"))
        if self.sample_weight is not None:
            put(self, "sample_weight", names_from_wire(self.sample_weight, "sample_weight"))
        if self.images is not None:
            names = names_from_wire(self.images, "images")
            put(self, "images", tuple(leaves(names)))
            for name in self.images:
                if self.x and name not in leaves(self.x):
                    raise checks.refuse("images", name, f"arrays of x: {', '.join(leaves(self.x))}")
        put(self, "batch_size", checks.whole("batch_size", self.batch_size, 1, MAX_BATCH))
        put(self, "shuffle", checks.flag("shuffle", self.shuffle))
        put(self, "drop_remainder", checks.flag("drop_remainder", self.drop_remainder))
        if self.seed is not None:
            put(self, "seed", checks.whole("seed", self.seed, 0, MAX_SEED))
        self._check_shard()
        self._check_split()
        if self.target_size is not None:
            height, width = checks.pair("target_size", self.target_size, "(height, width)")
            size = (
                checks.whole("target_size", height, 1, 1 << 15),
                checks.whole("target_size", width, 1, 1 << 15),
            )
            put(self, "target_size", size)
        checks.choice("interpolation", self.interpolation, INTERPOLATIONS)
        checks.choice("data_format", self.data_format, DATA_FORMATS)
        checks.choice("dtype", self.dtype, DTYPES)
        checks.choice("scheme", self.scheme, SCHEMES)
        if self.scheme == "keras":
            self._check_keras()
        checks.choice("bad_samples", self.bad_samples, POLICIES)
        if self.bad_samples == "skip" and self.drop_remainder:
            raise checks.refuse(
                "bad_samples", "skip", "'substitute' where drop_remainder asks for full batches"
            )
        if not isinstance(self.transforms, Transforms):
            put(self, "transforms", Transforms.from_wire(self.transforms))
        if self.whitening is not None and not (
            isinstance(self.whitening, str) and 0 < len(self.whitening) <= 4096
        ):
            raise checks.refuse("whitening", self.whitening, "the name of an array of the dataset")
        if self.hashes is not None:
            put(self, "hashes", checks.whole("hashes", self.hashes, 1, MAX_HASHES))
            if self.scheme != "keras" or self.bad_samples != "raise":
                raise checks.refuse(
                    "hashes", self.hashes, "scheme 'keras' and bad_samples 'raise' beside it"
                )
        if self.cache is not None:
            checks.choice("cache", self.cache, (None, *CACHES))
            if self.pictures is None and self.dataset is None:
                raise checks.refuse(
                    "cache", self.cache, "None: arrays lie in memory, or in a .npy, as they are"
                )
        if self.dataset is None:
            self._check_dtype()

    @property
    def dataset(self) -> str | None:
        """The dataset of the server's config that this is made of, if it is one."""
        first = self.data[0]
        return first.removeprefix(DATASET) if first.startswith(DATASET) else None

    def _data(self) -> tuple[str, ...]:
        value = (self.data,) if isinstance(self.data, str) else self.data
        if not (
            isinstance(value, (tuple, list))
            and 0 < len(value) <= 1024
            and all(isinstance(v, str) and 0 < len(v) < 4096 for v in value)
            and all("\0" not in v and checks.travels(v) for v in value)
        ):
            raise checks.refuse(
                "data",
                self.data,
                "the path of a .npz or .npy file or of a folder, or a list of paths",
            )
        if len(value) > 1 and any(v.startswith(DATASET) for v in value):
            raise checks.refuse("data", self.data, "one dataset of the server's config, alone")
        return tuple(value)

    def _name_columns(self, pictures: object) -> None:
        """The names of x and y follow from the pictures; a spec that says others means arrays."""
        put = object.__setattr__
        if not isinstance(pictures, Pictures):
            pictures = Pictures.from_wire(pictures)
            put(self, "pictures", pictures)
        if self.dataset is not None:
            return
        put(self, "x", self.x or PICTURE)
        if self.x != PICTURE:
            raise checks.refuse("x", self.x, f"nothing, or {PICTURE!r}, beside pictures")
        if self.target_size is None:
            raise checks.refuse(
                "target_size", None, "(height, width): files have pictures of any size"
            )
        mode = pictures.label_mode
        if mode == "input":
            y: str | None = PICTURE
        else:
            y = None if mode == "none" else LABEL
        handed = self.data[0].startswith(HANDED) and mode == "none"
        if not handed:  # a list of files that a program hands over brings labels of its own
            if self.y not in (None, y):
                raise checks.refuse(
                    "y", self.y, f"nothing, or {y!r}, beside pictures of label_mode {mode!r}"
                )
            put(self, "y", y)
        if len(self.data) != 1:
            raise checks.refuse("data", self.data, "one folder or one .csv beside pictures")

    def _check_keras(self) -> None:
        if self.seed is not None and self.seed > MAX_KERAS_SEED:
            raise checks.refuse("seed", self.seed, f"at most {MAX_KERAS_SEED} for scheme 'keras'")
        if self.shard != (0, 1) or self.drop_remainder:
            raise checks.refuse(
                "scheme", "keras", "'counter' beside shard or drop_remainder, which Keras has not"
            )

    def _check_shard(self) -> None:
        index, count = checks.pair("shard", self.shard, "(index, count)")
        count = checks.whole("shard", count, 1, 1 << 20)
        object.__setattr__(self, "shard", (checks.whole("shard", index, 0, count - 1), count))

    def _check_split(self) -> None:
        split = checks.number("validation_split", self.validation_split)
        if not 0 <= split < 1:
            raise checks.refuse(
                "validation_split", split, "a share from 0 up to, but not including, 1"
            )
        object.__setattr__(self, "validation_split", split)
        if self.subset is not None:
            checks.choice("subset", self.subset, SUBSETS)
            if split == 0:
                raise checks.refuse("subset", self.subset, "a validation_split above 0 beside it")

    def _check_dtype(self) -> None:
        if self.scheme == "keras":
            if self.dtype == "float16":
                raise checks.refuse("dtype", "float16", "'float32' or 'float64' in scheme 'keras'")
            if self.dtype == "uint8":
                self._check_uint8_as_keras()
        elif self.dtype in ("float16", "uint8") and self.whitening is not None:
            raise checks.refuse("dtype", self.dtype, "'float32' or 'float64' beside whitening")

    def _check_uint8_as_keras(self) -> None:
        """Keras casts whatever comes out, and fails where numpy does: at fractions in place."""
        t = self.transforms
        fractions = (
            t.rescale or t.offset or t.samplewise_center or t.featurewise_mean or t.featurewise_std
        )
        floats = self.pictures or t.channel_shift_range or t.brightness_range or t.function
        if t.prescale or self.whitening is not None or (fractions and not floats):
            raise ConfigError(
                "dtype: got 'uint8' together with arithmetic that 8 bits cannot hold; wanted "
                "'float32', or no rescale, statistics or whitening"
            )

    def with_classes(self, names: tuple[str, ...]) -> Spec:
        """The same stream with the classes that were found in its dataset."""
        if self.pictures is None or not names:
            return self
        return replace(self, pictures=replace(self.pictures, class_names=names))

    @classmethod
    def from_wire(cls, wire: object) -> Spec:
        """Read and check the form that `to_wire` gives, or a table of augserver.toml."""
        known = checks.fields(cls, wire, "spec")
        data = known.get("data")
        first = data[0] if isinstance(data, (list, tuple)) and data else data
        if not (isinstance(first, str) and first.startswith(DATASET)):
            for name in ("data", "x"):
                if name not in known and (name == "data" or known.get("pictures") is None):
                    raise ConfigError(
                        f"spec: {name} is missing; wanted at least data, and x (arrays) or "
                        "pictures (files)"
                    )
        return cls(**known)

    def to_wire(self) -> dict[str, object]:
        """Plain data with the fields that differ from their defaults."""
        wire: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("x", "y", "sample_weight"):
                if value:
                    wire[field.name] = names_to_wire(value)
            elif field.name == "transforms":
                if value != Transforms():
                    wire[field.name] = value.to_wire()
            elif field.name == "pictures":
                if value is not None:
                    wire[field.name] = value.to_wire()
            elif value != field.default:
                wire[field.name] = list(value) if isinstance(value, tuple) else value
        return wire
