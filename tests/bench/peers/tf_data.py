"""tf.data: a whole batch in one call for arrays, a picture in a call for files.

Of what was tried these are the best: `ImageProjectiveTransformV3` with fill mode nearest over
batches, two batches in parallel. Keras's preprocessing layers, mapped, are the other usual way, and
slower.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from peers.work import WORKERS, Array, Work, needs


def _tensorflow() -> Any:
    needs("tensorflow", "pip install tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


def projections(work: Work, tf: Any, count: Any) -> Any:
    """`count` random transforms as ImageProjectiveTransform takes them: (count, 8)."""
    t, (height, width) = work.transforms, work.size
    turn = np.deg2rad(t["rotation_range"])
    angle = tf.random.uniform([count], -turn, turn)
    right = tf.random.uniform([count], -t["height_shift_range"], t["height_shift_range"]) * height
    down = tf.random.uniform([count], -t["width_shift_range"], t["width_shift_range"]) * width
    low, high = t.get("zoom_range", (1.0, 1.0))
    zoom_x, zoom_y = tf.random.uniform([count], low, high), tf.random.uniform([count], low, high)
    mirror = tf.sign(tf.random.uniform([count]) - 0.5)
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b = cos * zoom_x * mirror, -sin * zoom_y
    c, d = sin * zoom_x * mirror, cos * zoom_y
    x, y = (width - 1) / 2, (height - 1) / 2
    nothing = tf.zeros([count])
    from_x = cos * right - sin * down + x - a * x - b * y
    from_y = sin * right + cos * down + y - c * x - d * y
    return tf.stack([a, b, from_x, c, d, from_y, nothing, nothing], axis=1)


def dataset(work: Work) -> Any:
    """(x, y), for ever, whole batches only."""
    tf = _tensorflow()
    height, width = work.size

    def moved(pictures: Any) -> Any:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=pictures,
            transforms=projections(work, tf, tf.shape(pictures)[0]),
            output_shape=[height, width],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )

    if work.x is not None:
        x, y = tf.constant(work.x), tf.constant(work.y)

        def batch(samples: Any) -> Any:
            pictures = tf.cast(tf.gather(x, samples), tf.float32)
            return moved(pictures) * work.transforms["rescale"], tf.gather(y, samples)

        rows = tf.data.Dataset.range(work.samples).shuffle(work.samples).repeat()
        made = rows.batch(work.batch_size, drop_remainder=True).map(
            batch, num_parallel_calls=WORKERS, deterministic=False
        )
    else:
        files = tf.data.Dataset.from_tensor_slices((list(work.files), work.y))

        def one(path: Any, label: Any) -> Any:
            decoded = tf.image.decode_jpeg(tf.io.read_file(path), channels=3)
            # Half-pixel centres, as Pillow has them.
            small = tf.raw_ops.ResizeNearestNeighbor(
                images=decoded[None], size=work.size, half_pixel_centers=True
            )
            picture = moved(tf.cast(small, tf.float32))[0]
            reach = work.transforms["channel_shift_range"]
            shift = tf.random.uniform([], -reach, reach)
            low, high = tf.reduce_min(picture), tf.reduce_max(picture)
            shifted = tf.clip_by_value(picture + shift, low, high)
            return shifted * work.transforms["rescale"], label

        made = (
            files.shuffle(work.samples)
            .repeat()
            .map(one, num_parallel_calls=WORKERS, deterministic=False)
            .batch(work.batch_size, drop_remainder=True)
        )
    options = tf.data.Options()
    options.threading.private_threadpool_size = WORKERS
    options.threading.max_intra_op_parallelism = 1
    return made.prefetch(2).with_options(options)


def keras_layers(work: Work) -> Any:
    """The same with Keras's preprocessing layers, as its guides show it; (x, y), for ever."""
    import keras

    tf = _tensorflow()
    t = work.transforms
    if work.x is None:
        raise NotImplementedError("Keras's layers are measured on arrays only")
    layers = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(t["rotation_range"] / 360, fill_mode="nearest"),
            keras.layers.RandomTranslation(
                t["height_shift_range"], t["width_shift_range"], fill_mode="nearest"
            ),
            keras.layers.Rescaling(t["rescale"]),
        ]
    )
    rows = tf.data.Dataset.from_tensor_slices((work.x, work.y)).shuffle(work.samples).repeat()
    return (
        rows.batch(work.batch_size, drop_remainder=True)
        .map(
            lambda x, y: (layers(tf.cast(x, tf.float32), training=True), y),
            num_parallel_calls=WORKERS,
        )
        .prefetch(2)
    )


@contextlib.contextmanager
def tf_data(work: Work) -> Iterator[Iterator[Array]]:
    """The pictures as numpy arrays."""
    yield (x for x, _ in dataset(work).as_numpy_iterator())
