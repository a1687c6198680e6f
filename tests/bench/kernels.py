"""How long do the kernels take for a picture, beside a copy of it, the reference and OpenCV?

All of one row are asked in turns, in one process and one thread; a row's figures are medians.
np.copyto copies the finished batch: the least that any way of making it could take. OpenCV
resamples picture by picture to float32 and scales, with weights and borders of its own, so its
pictures are others. Batches are as large as a worker's: 256 small pictures, or 16 large ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from augproto.transforms import Transforms
from augserver.draws import draw
from augserver.transforms import build
from augserver.transforms.compiled import Compiled
from augserver.transforms.matrices import find
from augserver.transforms.room import Room

ROUNDS = 25
TURNED: dict[str, Any] = {
    "rotation_range": 45,
    "width_shift_range": 0.1,
    "height_shift_range": 0.1,
    "horizontal_flip": True,
    "rescale": 1 / 255,
}
Way = Callable[[], object]


def ways(options: dict[str, Any], source: Any) -> dict[str, Way]:
    """What is measured, by name: each makes one batch of all pictures of the source."""
    n, height, width, _ = source.shape
    t = Transforms(**options)
    order = np.random.default_rng(0).permutation(n)
    draws = draw(t, seed=1, epoch=0, indexes=order, height=height, width=width)
    kernels = build(
        t, data_format="channels_last", dtype="float32", function=None, image_shape=source.shape[1:]
    )
    assert isinstance(kernels, Compiled), "AUGSERVER_KERNELS=scipy, or numba is missing"
    out, copy = np.zeros(source.shape, np.float32), np.zeros(source.shape, np.float32)
    few = max(1, n // 16)  # the reference is slow
    room = Room(n)

    def reference() -> None:
        kernels._reference.transform_batch(source, order[:few], draws.of(np.arange(few)), out[:few])

    return {
        "kernels": lambda: kernels.transform_batch(source, order, draws, out),
        "copy": lambda: np.copyto(copy, out),
        "matrices": lambda: find(draws, height, width, room),
        "reference": reference,
        **opencv(t, source, order, draws, room, copy),
    }


def opencv(t: Transforms, source: Any, order: Any, draws: Any, room: Room, out: Any) -> Any:
    """The same by `cv2.warpAffine`, where it is installed and knows the fill mode."""
    try:
        import cv2
    except ImportError:
        return {}
    n, height, width, _ = source.shape
    borders = {"nearest": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT}
    borders["constant"] = cv2.BORDER_CONSTANT
    if t.fill_mode not in borders or t.channel_shift_range:
        return {}
    cv2.setNumThreads(1)
    find(draws, height, width, room)
    # Columns before rows.
    maps = room.matrices[:n].reshape(n, 2, 3)[:, ::-1][:, :, [1, 0, 2]].copy()
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if t.interpolation_order else 0)
    assert isinstance(t.rescale, float)
    border, factor = borders[t.fill_mode], np.float32(t.rescale)

    def warp() -> None:
        for i, sample in enumerate(order.tolist()):
            picture = source[sample].astype(np.float32)
            warped = cv2.warpAffine(
                picture, maps[i], (width, height), flags=flags, borderMode=border
            )
            if draws.flip_horizontal[i]:
                warped = warped[:, ::-1]
            np.multiply(warped.reshape(picture.shape), factor, out=out[i])

    return {"OpenCV": warp}


def measured(name: str, options: dict[str, Any], source: Any) -> None:
    """Print one row."""
    asked = ways(options, source)
    n = len(source)
    pictures = {"reference": max(1, n // 16)}
    seconds: dict[str, list[float]] = {way: [] for way in asked}
    for round_ in range(ROUNDS + 1):
        for way, make in asked.items():
            if way == "reference" and round_ % 5 != 1:
                continue
            started = time.perf_counter()
            make()
            if round_:  # the first one warms up
                seconds[way].append((time.perf_counter() - started) / pictures.get(way, n))
    took = {way: statistics.median(values) * 1e6 for way, values in seconds.items()}
    cv = f"{took['OpenCV'] / took['kernels']:5.1f}" if "OpenCV" in took else "    -"
    ours = took["kernels"]
    print(
        f"{name:36} {ours:8.2f} us = {ours / took['copy']:5.1f} x copy ({took['copy']:7.2f} us); "
        f"reference / kernels {took['reference'] / ours:6.1f}; OpenCV / kernels {cv}; "
        f"matrices {took['matrices'] / ours:4.0%}",
        flush=True,
    )


def ring(batch_size: int) -> None:
    """Print a row of what a worker does: samples from anywhere, into the next slot of a ring."""
    source = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    slots = np.zeros((12288 // batch_size, batch_size, 32, 32, 3), np.float32)  # 150 MB
    t = Transforms(**TURNED)
    kernels = build(
        t, data_format="channels_last", dtype="float32", function=None, image_shape=(32, 32, 3)
    )
    order = np.random.default_rng(1).permutation(len(source))
    finished = np.ones(slots.shape[1:], np.float32)
    made, copied = [], []
    for step in range(len(source) // batch_size):
        samples = order[step * batch_size :][:batch_size]
        draws = draw(t, seed=1, epoch=0, indexes=samples, height=32, width=32)
        started = time.perf_counter()
        kernels.transform_batch(source, samples, draws, slots[step % len(slots)])
        made.append(time.perf_counter() - started)
        slot = slots[(step + len(slots) // 2) % len(slots)]
        started = time.perf_counter()
        np.copyto(slot, finished)
        copied.append(time.perf_counter() - started)
    took, copy = (statistics.median(s) / batch_size * 1e6 for s in (made, copied))
    print(
        f"{f'32: nearest, into a ring, batch {batch_size}':36} {took:8.2f} us = {took / copy:5.1f} "
        f"x copy ({copy:7.2f} us)",
        flush=True,
    )


def main() -> None:
    rng = np.random.default_rng(0)
    ring(32)
    ring(256)
    for size, n in ((32, 256), (224, 16), (299, 16)):
        source = rng.integers(0, 256, (n, size, size, 3), np.uint8)
        measured(f"{size}: nearest", TURNED, source)
        for mode in ("reflect", "wrap", "constant"):
            measured(f"{size}: {mode}", {**TURNED, "fill_mode": mode}, source)
        measured(f"{size}: nearest, order 0", {**TURNED, "interpolation_order": 0}, source)
        shift = {"channel_shift_range": 20.0, "zoom_range": (0.8, 1.0)}
        measured(f"{size}: nearest, zoom, channel shift", {**TURNED, **shift}, source)
        bright = {"brightness_range": (0.5, 1.5)}
        measured(f"{size}: nearest, brightness", {**TURNED, **bright}, source)
        normal = {"featurewise_mean": np.float32(0.5), "featurewise_std": np.float32(0.25)}
        measured(f"{size}: nearest, mean and deviation", {**TURNED, **normal}, source)
        measured(f"{size}: nearest, samplewise", {**TURNED, "samplewise_center": True}, source)
        measured(f"{size}: flip and scale alone", {"horizontal_flip": True, "rescale": 2.0}, source)
        measured(f"{size}: nearest, float32", TURNED, source.astype(np.float32))
        measured(f"{size}: nearest, 1 channel", TURNED, np.ascontiguousarray(source[..., :1]))
        measured(
            f"{size}: nearest, 4 channels", TURNED, np.concatenate([source, source[..., :1]], 3)
        )


if __name__ == "__main__":
    main()
