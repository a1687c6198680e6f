"""A stream as a pure function: (spec, seed, dataset) and (epoch, step) give the bytes of a batch.

This is the law of the house in one class. Whoever holds a recipe, in whatever process and after
whatever crash, fills a slot with the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError
from augproto.files import File
from augproto.layout import Layout
from augproto.messages import Script
from augproto.spec import LABEL, Spec
from augproto.twister import pack
from augserver import keras_draws
from augserver.datasets.cache import DecodedCache
from augserver.datasets.columns import ArrayColumn, Column, Columns
from augserver.datasets.reading import PictureFiles, Reading
from augserver.drawing import Drawing
from augserver.draws import Draws
from augserver.parts import HASHES, Function, Part, Parts, height_width
from augserver.policy import Made, Rows
from augserver.sampling import Sampler
from augserver.transforms import SampleError
from augserver.transforms.resize import resize
from augserver.transforms.whitening import whiten

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]
#: Told the index of each sample before it is read or given to a user's function.
Note = Callable[[int], None]
#: Told the indexes of samples before they are read or taken; returns when they are here.
Need = Callable[[Indexes], None]


class Recipe:
    """How to make every batch of one stream.

    Args:
        spec: The stream.
        seed: The seed in force; the spec's own, or the one that was drawn for it.
        arrays: The dataset, by name; read only.
        function: What `spec.transforms.function` names. Left out where nothing is computed (the
            server describes streams and runs no user's code).
        roots: Folders below which files must lie when they are read, if any.
        cache: Of pictures that were read, if there is one.
        span: Batches that are made at once, as if they were one; 1 unless they can be (`joins`).
            A step is then one of these.
        describes: No batch will be made.
        brought: The bytes of files by sample, where these are another machine's.

    Attributes:
        arrays: The dataset.
        layout: Of a batch in memory.
        structure: x, y, sample_weight and hashes as names of the layout's fields.
        sampler: Which samples are in which batch.

    Raises:
        ConfigError: The spec does not fit the dataset.
    """

    def __init__(
        self,
        spec: Spec,
        seed: int,
        arrays: Mapping[str, Array],
        function: Function | None = None,
        roots: tuple[str, ...] = (),
        cache: DecodedCache | None = None,
        span: int = 1,
        *,
        describes: bool = False,
        brought: Mapping[int, bytes] | None = None,
    ) -> None:
        self.spec = spec
        self.seed = seed
        self._columns = Columns(spec, arrays, roots, cache, brought)
        self._parts = parts = Parts(spec, self._columns, function, describes=describes)
        self.structure = parts.structure
        self.sampler = Sampler.of(spec, parts.samples, seed, self._columns.groups)
        self.arrays = arrays
        # A batch is never larger than an epoch, so neither need a slot be.
        self.span = span
        self.layout = Layout.of(min(span * spec.batch_size, self.sampler.samples), parts.fields)
        t, columns = spec.transforms, self._columns.by_name
        self._drawings = {
            part.size: Drawing(t, *part.size) for part in parts.listed if part.transform
        }
        # Whether several batches can be made as one: nothing is computed of a batch as a whole, and
        # no sample can be bad.
        self.joins = (
            spec.shuffle
            and spec.bad_samples == "raise"
            and spec.whitening is None
            and spec.hashes is None
            and (t.function is None or t.named)
            and not any(isinstance(columns[name], PictureFiles) for name in parts.pictures)
        )
        # Whether a user's function may draw between one sample's parameters and the next's.
        self._interleaved = spec.scheme == "keras" and t.function is not None and not t.named

    def count(self, epoch: int, step: int, script: Script | None = None) -> int:
        """Samples in a batch of which none is bad.

        Raises:
            ConfigError: The script is none for this stream.
        """
        return len(self._order(epoch, step, script))

    def _order(self, epoch: int, step: int, script: Script | None) -> Indexes:
        """The samples of a batch, or of the several that are made as one."""
        if script is not None:
            return self._scripted(script)
        if self.span > 1:
            return self.sampler.several(epoch, step * self.span, self.span)
        return self.sampler.batch(epoch, step)

    def samples(self, epoch: int, step: int, script: Script | None = None) -> Indexes:
        """What a batch is made of, each sample once: int64, in the batch's order.

        Raises:
            ConfigError: The script is none for this stream.
        """
        return np.array(list(dict.fromkeys(self._order(epoch, step, script).tolist())), np.int64)

    @property
    def length(self) -> int:
        """Samples of the dataset."""
        return self._parts.samples

    @property
    def whole(self) -> tuple[str, ...]:
        """The arrays of which all is needed before the first batch can be made."""
        spec, pictures = self.spec, self.spec.pictures
        names = [] if spec.whitening is None else [spec.whitening]
        if pictures is None or not pictures.classified:
            return tuple(names)
        # A split takes its share of each class; and of two classes there is a copy as floats.
        labels = spec.subset is not None or pictures.label_mode == "binary"
        return (*names, LABEL) if labels else tuple(names)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The arrays of which a batch needs the rows of its samples."""
        columns = self._columns.by_name
        names = dict.fromkeys(
            part.column
            for part in self._parts.listed
            if not isinstance(columns[part.column], PictureFiles)
        )
        return tuple(name for name in names if name not in self.whole)

    def file(self, sample: int) -> File | None:
        """The file of which a batch needs the bytes for a sample; None where there are none."""
        return self._columns.file(sample)

    def path(self, sample: int) -> str:
        """Of a sample's file; empty where it has none."""
        return self._columns.path(sample)

    def _scripted(self, script: Script) -> Indexes:
        """The samples that a script names."""
        indexes = indexes_of(script)
        length, most = self._parts.samples, self.layout.batch_size
        others = script.pictures or script.matrices or script.brightness is not None
        if self.spec.scheme != "keras" or others or not script.state:
            raise ConfigError(
                f"script: got one for a stream of scheme {self.spec.scheme!r}, with "
                f"{len(script.pictures)} bytes of pictures, {len(script.matrices)} of matrices "
                f"and {len(script.state)} of a state; wanted scheme 'keras', indexes and a state"
            )
        if not (0 < len(indexes) <= most and indexes.min() >= 0 and indexes.max() < length):
            raise ConfigError(
                f"script: got {len(indexes)} samples, {indexes[:8].tolist()} first; wanted 1 to "
                f"{most} of the {length} samples of the dataset, which count from 0"
            )
        return indexes

    def fill(
        self,
        epoch: int,
        step: int,
        out: Mapping[str, Array],
        note: Note | None = None,
        script: Script | None = None,
        need: Need | None = None,
    ) -> Made:
        """Write the batch.

        Args:
            out: The layout's fields, each with as many rows as `count` says; a batch that skips
                samples fills the first ones.
            script: What the batch is made of, if its consumer says so.
            note: Called with a sample's index in the dataset before something is done to it that
                may kill this process.
            need: Called with the samples of the batch before any is read or taken, and again when
                others take the place of bad ones, where they have to be fetched from afar.

        Raises:
            SampleError: A sample cannot be made, and the stream's policy does not go on without
                it; it names the sample and its file.
        """
        order = self._order(epoch, step, script)
        rows = Rows(self.sampler, epoch, step, self.spec.bad_samples, order)
        reading = self._columns.reading()  # of this batch: a new attempt reads no file twice
        try:
            while True:
                try:
                    if need is not None:
                        need(rows.taken)
                    while errors := self._read(rows, reading, note):
                        rows.without(*errors)
                        if need is not None:
                            need(rows.taken)
                    return rows.made(self._write(rows, out, reading, note, script))
                except SampleError as error:
                    rows.without(error)
        finally:
            if reading is not None:
                reading.close()

    def _read(self, rows: Rows, reading: Reading | None, note: Note | None) -> list[SampleError]:
        """Read what is not read yet; returns all that cannot be, so that each is found out once."""
        errors: list[SampleError] = []
        if reading is None:
            return errors
        for sample in reading.missing(rows.taken):
            if note is not None:
                note(sample)
            try:
                reading.read(sample)
            except SampleError as error:
                if self.spec.bad_samples == "raise":
                    raise
                errors.append(error)
        return errors

    def _write(
        self,
        rows: Rows,
        out: Mapping[str, Array],
        reading: Reading | None,
        note: Note | None,
        script: Script | None,
    ) -> bytes:
        """Fill the rows; returns np.random's state after the draws of a scripted batch."""
        draws: dict[tuple[int, int], Draws] = {}
        after = b""
        for part in self._parts.listed:
            target = out[part.field][: len(rows.taken)]
            column = self._columns.by_name[part.column]
            if part.same is not None:
                target[...] = out[part.same][: len(rows.taken)]
                continue
            if part.transform is None:
                column.take(rows.taken, target)
                continue
            source, indexes, names = self._source(column, rows.taken, part.size, reading)
            noted = _of_source(note, names)
            try:
                if self._interleaved:
                    begin = self._state(rows, script)
                    self._in_turn(rows, part, source, indexes, target, noted, begin)
                    after = self._after(np.random, rows, out, script)
                else:
                    if part.size not in draws:
                        draws[part.size], after = self._draws_of(rows, part.size, out, script)
                    part.transform.transform_batch(source, indexes, draws[part.size], target, noted)
            except SampleError as error:
                if names is not None:
                    error.sample = int(names[error.sample])
                error.path = self._columns.path(error.sample)
                raise
            if part.whitening is not None:
                whiten(target, part.whitening)
        return after

    def _draws_of(
        self, rows: Rows, size: tuple[int, int], out: Mapping[str, Array], script: Script | None
    ) -> tuple[Draws, bytes]:
        """The parameters of a batch's rows, and np.random's state after those of a script."""
        drawing = self._drawings[size]
        if self.spec.scheme != "keras":
            return drawing.counter(self.seed, rows.epoch, rows.drawn), b""
        if self.span > 1:
            return self._drawn_in_turn(rows, size), b""
        state = self._state(rows, script)
        whole = drawing.keras(state, rows.whole)
        draws = whole if rows.places is None else whole.of(rows.places)
        return draws, self._after(state, rows, out, script)

    def _drawn_in_turn(self, rows: Rows, size: tuple[int, int]) -> Draws:
        """The parameters of several batches in the keras scheme, each of a state of its own."""
        drawing, batch_size = self._drawings[size], self.spec.batch_size
        first = rows.step * self.span
        return Draws.joined(
            [
                drawing.keras(
                    self.sampler.keras_state(rows.epoch, first + place),
                    min(batch_size, rows.whole - place * batch_size),
                )
                for place in range(-(-rows.whole // batch_size))
            ]
        )

    def _state(self, rows: Rows, script: Script | None) -> np.random.RandomState:
        """What a batch's parameters are drawn from in the keras scheme, as it is before them."""
        if script is not None:
            return keras_draws.state_of(script.state)
        return self.sampler.keras_state(rows.epoch, rows.step)

    def _after(
        self,
        state: keras_draws.State,
        rows: Rows,
        out: Mapping[str, Array],
        script: Script | None,
    ) -> bytes:
        """What is drawn when all parameters are: the numbers of a batch's files.

        Returns:
            What is left of the state, for whoever sent a script; it is long.
        """
        if self.spec.hashes is not None:
            samples = len(rows.taken)
            out[HASHES][:samples] = keras_draws.hashes(state, self.spec.hashes, samples)
        return b"" if script is None else pack(state.get_state())

    def _in_turn(
        self,
        rows: Rows,
        part: Part,
        source: Array,
        indexes: Indexes,
        target: Array,
        note: Note | None,
        state: np.random.RandomState,
    ) -> None:
        """Sample by sample, as Keras: parameters and a function's draws are of one generator."""
        assert part.transform is not None, "only pictures have draws"
        drawing = self._drawings[part.size]
        np.random.set_state(state.get_state())
        random.seed(pack(state.get_state()))  # Keras leaves it be
        places = range(rows.whole) if rows.places is None else rows.places.tolist()
        row_of = {place: row for row, place in enumerate(places)}
        for place in range(rows.whole):
            drawn = drawing.keras(np.random, 1)
            if place in row_of:
                row = slice(row_of[place], row_of[place] + 1)
                part.transform.transform_batch(source, indexes[row], drawn, target[row], note)

    def _source(
        self,
        column: Column,
        samples: Indexes,
        size: tuple[int, int],
        reading: Reading | None,
    ) -> tuple[Array, Indexes, Indexes | None]:
        """Pictures of the batch's size, where in them these samples are, and which sample each is
        where that is not its own index."""
        if isinstance(column, PictureFiles):
            assert reading is not None, "files are read"
            return reading.source(samples)
        assert isinstance(column, ArrayColumn), "pictures are arrays or files"
        if height_width(column.shape[1:], self.spec.data_format) == size:
            return column.array, samples, None
        pictures = resize(
            column.array,
            samples,
            size,
            interpolation=self.spec.interpolation,
            data_format=self.spec.data_format,
        )
        return pictures, np.arange(len(samples)), samples


def indexes_of(script: Script) -> Indexes:
    """The samples that a script names.

    Raises:
        ConfigError: These bytes are no indexes.
    """
    if len(script.indexes) % 8:
        raise ConfigError(
            f"script: got {len(script.indexes)} bytes of indexes; wanted eight for each sample"
        )
    return np.frombuffer(script.indexes, "<i8").astype(np.int64)


def _of_source(note: Note | None, names: Indexes | None) -> Note | None:
    """A note of a sample by its index in a source, which may be an array of its own."""
    if note is None or names is None:
        return note
    return lambda index: note(int(names[index]))
