"""What an iterator gets from a server, without one: the server's recipe in this process, and
Keras's own loop for what no recipe is told in advance. For Keras's own generators."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from needs_keras import keras

from augclient.image.plan import FeedPlan
from augclient.image.supply import NotServed
from augproto.files import File, pack
from augproto.spec import Spec
from augproto.transforms import Transforms
from augserver import keras_draws
from augserver.recipe import Recipe

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]

#: What both Keras's generator and `Transforms` have, by the same name.
_SHARED = (
    "rotation_range", "width_shift_range", "height_shift_range", "shear_range", "zoom_range",
    "channel_shift_range", "brightness_range", "horizontal_flip", "vertical_flip", "fill_mode",
    "cval", "rescale", "interpolation_order",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delivered:
    """A read-only batch."""

    x: Array
    hashes: Indexes | None


class RecipeFeed:
    """A feed in this process.

    Attributes:
        asked: What was asked for: ("in order", seed, step, origin) or ("of", indexes).
        closed: Whether it was closed.
    """

    def __init__(self, plan: FeedPlan, generator: Any) -> None:
        for name in ("get_random_transform", "apply_transform", "standardize"):
            keras_own = generator is None or (
                getattr(generator, name).__module__ == "keras.src.legacy.preprocessing.image"
            )
            if not keras_own:
                raise NotServed(f"{name} is the caller's own")
        self.asked: list[tuple[Any, ...]] = []
        self.closed = False
        self._plan = plan
        self._generator = generator
        shared = {name: getattr(generator, name, None) for name in _SHARED}
        self._transforms = Transforms.from_wire(
            {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in shared.items()
                if value is not None
            }
        )

    def in_order(self, seed: int, step: int, origin: int, *, sure: bool) -> Delivered:
        """See `augclient.image.plan.Feed`."""
        assert not self.closed
        self.asked.append(("in order", seed, step, origin))
        recipe = self._recipe(seed + origin)
        slot = np.zeros(recipe.layout.slot_bytes, np.uint8)
        count = recipe.count(0, step)
        [(name, x)] = recipe.layout.arrays(slot, count).items()
        recipe.fill(0, step, {name: x})
        x.flags.writeable = False
        return Delivered(x, self._hashes(recipe, step, count))

    def of(self, indexes: Indexes, state: Any) -> tuple[Delivered, Any]:
        """See `augclient.image.plan.Feed`."""
        assert not self.closed
        assert indexes.dtype == np.int64
        self.asked.append(("of", indexes.tolist()))
        before = np.random.get_state()
        np.random.set_state(state)
        try:
            rows = [self._one(i) for i in indexes.tolist()]
            x = np.stack(rows).astype(self._plan.dtype)
            x.flags.writeable = False
            hashes = None
            if self._plan.hashes is not None:
                drawn = [np.random.randint(self._plan.hashes) for _ in rows]
                hashes = np.array(drawn, np.int64)
            return Delivered(x, hashes), np.random.get_state()
        finally:
            np.random.set_state(before)

    def close(self) -> None:
        """See `augclient.image.plan.Feed`."""
        self.closed = True

    def _one(self, sample: int) -> Array:
        picture = self._picture(sample).astype(self._plan.dtype)
        g = self._generator
        if g is None:
            return picture
        done: Array = g.standardize(
            g.apply_transform(picture, g.get_random_transform(picture.shape))
        )
        return done

    def _picture(self, sample: int) -> Array:
        plan = self._plan
        if plan.x is not None:
            picture: Array = plan.x[sample]
            return picture
        assert plan.files is not None
        picture = keras.utils.img_to_array(
            keras.utils.load_img(
                plan.files[sample],
                color_mode=plan.color_mode,
                target_size=plan.target_size,
                interpolation=plan.interpolation,
                keep_aspect_ratio=plan.keep_aspect_ratio,
            ),
            data_format=plan.data_format,
        )
        return picture

    def _recipe(self, seed: int) -> Recipe:
        plan = self._plan
        wire: dict[str, Any] = {
            "data": "handed:here",
            "batch_size": plan.batch_size,
            "shuffle": plan.shuffle,
            "seed": seed,
            "scheme": "keras",
            "data_format": plan.data_format,
            "dtype": plan.dtype,
            "transforms": self._transforms.to_wire(),
        }
        if plan.x is not None:
            return Recipe(Spec.from_wire({**wire, "x": "x"}), seed, {"x": plan.x})
        assert plan.files is not None
        arrays = pack(File.of(path, os.stat(path)) for path in plan.files)
        pictures = {"label_mode": "none", "color_mode": plan.color_mode}
        spec = Spec.from_wire(
            {
                **wire,
                "pictures": pictures,
                "target_size": plan.target_size,
                "interpolation": plan.interpolation,
            }
        )
        return Recipe(spec, seed, arrays)

    def _hashes(self, recipe: Recipe, step: int, count: int) -> Indexes | None:
        plan = self._plan
        if plan.hashes is None:
            return None
        state = recipe.sampler.keras_state(0, step)
        keras_draws.draw(self._transforms, state, count, 16, 16)  # what is drawn has no part in it
        return np.array([state.randint(plan.hashes) for _ in range(count)], np.int64)


class Feeds:
    """Stands in for `supply.open_feed`, and remembers what was opened."""

    def __init__(self) -> None:
        self.opened: list[RecipeFeed] = []

    def __call__(self, plan: FeedPlan, generator: Any, where: Any) -> RecipeFeed:
        feed = RecipeFeed(plan, generator)
        self.opened.append(feed)
        return feed

    @property
    def asked(self) -> list[tuple[Any, ...]]:
        """Of all feeds."""
        return [one for feed in self.opened for one in feed.asked]


def key_of(generator: Any) -> object:
    """Stands in for `supply.key_of`: the generator's attributes."""
    if generator is None:
        return None
    return tuple(
        (name, value.tobytes() if isinstance(value, np.ndarray) else repr(value))
        for name, value in sorted(vars(generator).items())
    )


def instead_of_a_server(monkeypatch: Any, module: ModuleType) -> Feeds:
    """Have iterators open these feeds."""
    feeds = Feeds()
    monkeypatch.setattr(module, "open_feed", feeds)
    monkeypatch.setattr(module, "key_of", key_of)
    return feeds
