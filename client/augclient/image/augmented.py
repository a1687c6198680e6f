"""Randomly changed pictures for `fit(augment=True)`, changed by a server's workers.

Keras changes one picture after the other, with draws from np.random that go on from each to the
next. Drawing is cheap and is done here, in that order, so that np.random is left as Keras leaves
it; what np.random was at the beginning of each batch goes to the workers, several at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from augclient.scripted import Scripted, of_samples
from augproto.messages import Script
from augproto.transforms import Transforms

if TYPE_CHECKING:
    from augclient.image.generator import ImageDataGenerator

#: Bytes of pictures that one request asks for: some milliseconds of work.
REQUEST_BYTES = 1 << 20
#: What of a generator's settings is random.
RANDOM = (
    "rotation_range", "width_shift_range", "height_shift_range", "shear_range", "zoom_range",
    "channel_shift_range", "brightness_range", "horizontal_flip", "vertical_flip", "fill_mode",
    "cval", "interpolation_order",
)  # fmt: skip


def augmented(
    generator: ImageDataGenerator, x: NDArray[Any], rounds: int
) -> Iterator[NDArray[Any]]:
    """Every picture changed at random, in the order and with the draws of Keras's `fit`.

    Args:
        x: Pictures, rank 4, before the generator's dtype and rescale: both come first.
        rounds: How often each is changed; round by round, from the global np.random.

    Yields:
        Arrays (n, *picture) in the generator's dtype, rounds * len(x) pictures in all. Each is a
        view of shared memory: take what you need before the next.

    Raises:
        WorkerError, BatchTimeout, ServerLost: A server did not make them.
    """
    # Only here: they import the generator's module.
    from augclient.image.generator import OWN_RANDOM_TRANSFORM
    from augclient.image.settings import Unsaid, factor, settings_of

    own = type(generator).random_transform is OWN_RANDOM_TRANSFORM
    try:
        if not own or "random_transform" in vars(generator):
            raise Unsaid("random_transform is the program's own")
        said = settings_of(generator, np.dtype(generator.dtype).name).transforms
    except Unsaid:
        yield from _one_by_one(generator, x, rounds)
        return
    transforms = Transforms(
        **{name: getattr(said, name) for name in RANDOM},
        prescale=factor(generator.rescale) if generator.rescale else None,
    )
    picture = x.shape[1:]
    size = int(np.prod(picture)) * np.dtype(generator.dtype).itemsize
    count = min(len(x), max(1, REQUEST_BYTES // max(size, 1)))
    where = generator.where
    with Scripted(
        x,
        batch_size=count,
        scheme="keras",
        seed=0,
        data_format=generator.data_format,
        dtype=np.dtype(generator.dtype).name,
        transforms=transforms,
        address=where.address,
        key=where.key,
        server_key=where.server_key,
        workers=where.workers,
        slots=where.slots,
        timeout=where.timeout,
    ) as server:
        for batch, _ in server.make_all(_scripts(generator, len(x), picture, count, rounds)):
            assert isinstance(batch.x, np.ndarray), "one array of pictures was asked for"
            yield batch.x


def _scripts(
    generator: ImageDataGenerator, samples: int, picture: tuple[int, ...], count: int, rounds: int
) -> Iterator[Script]:
    for _ in range(rounds):
        for first in range(0, samples, count):
            indexes = range(first, min(first + count, samples))
            state: Any = np.random.get_state()
            yield of_samples(list(indexes), state)
            for _ in indexes:
                generator.get_random_transform(picture)


def _one_by_one(
    generator: ImageDataGenerator, x: NDArray[Any], rounds: int
) -> Iterator[NDArray[Any]]:
    """As the generator's own class has it."""
    for _ in range(rounds):
        for i in range(len(x)):
            picture = np.array(x[i : i + 1], generator.dtype)
            if generator.rescale:
                picture *= generator.rescale
            changed = np.zeros_like(picture)
            changed[0] = generator.random_transform(picture[0])
            yield changed
