"""Functions that need no import and no handing over: `keras:MODE:DATA_FORMAT`.

They are what most programs give Keras as preprocessing_function: the `preprocess_input` of a model
of keras.applications (keras 3.15, keras/src/applications/imagenet_utils.py). A worker that imported
Keras for it would take seconds and hundreds of megabytes. They draw nothing, run no code of a
user's, and so are allowed on any server.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.errors import ConfigError
from augproto.transforms import NAMED_FUNCTIONS

Picture = NDArray[Any]

#: Of ImageNet: blue, green, red of 0..255 (caffe); red, green, blue of 0..1 (torch).
CAFFE_MEAN = (103.939, 116.779, 123.68)
TORCH_MEAN = (0.485, 0.456, 0.406)
TORCH_STD = (0.229, 0.224, 0.225)


def named(name: str) -> Callable[[Picture], Picture]:
    """The function of that name: it changes its picture in place where Keras's does.

    As there, "caffe" returns a view that runs backwards through the channels; a later sum in
    float32 follows memory, so a copy would round in another way.

    Raises:
        ConfigError: There is none.
    """
    if name not in NAMED_FUNCTIONS:
        wanted = ", ".join(NAMED_FUNCTIONS)
        raise ConfigError(f"transforms.function: got {name!r:.80}; wanted one of {wanted}")
    change = {"caffe": _caffe, "tf": _tf, "torch": _torch}[name.split(":")[1]]
    return partial(_in_floats, change, _channel_axis(name))


def fits(name: str, shape: tuple[int, int, int]) -> bool:
    """Whether pictures of that shape have the three channels that a named function changes."""
    return name.split(":")[1] == "tf" or shape[_channel_axis(name)] >= 3


def _channel_axis(name: str) -> int:
    """As the name says, whatever the pictures' own is: so it is in Keras."""
    return 0 if name.endswith(":channels_first") else 2


def _in_floats(
    change: Callable[[Picture, int], Picture], channel_axis: int, picture: Picture
) -> Picture:
    if picture.dtype.kind != "f":
        picture = picture.astype(np.float32)
    return change(picture, channel_axis)


def _tf(picture: Picture, channel_axis: int) -> Picture:
    picture /= 127.5
    picture -= 1.0
    return picture


def _torch(picture: Picture, channel_axis: int) -> Picture:
    picture /= 255.0
    planes = np.moveaxis(picture, channel_axis, 0)
    for plane, mean, deviation in zip(planes, TORCH_MEAN, TORCH_STD, strict=False):
        plane -= mean
        plane /= deviation
    return picture


def _caffe(picture: Picture, channel_axis: int) -> Picture:
    picture = np.flip(picture, channel_axis)
    # A fourth channel (which comes first now) has no mean: Keras leaves it alone, and so the rest
    # gets the means of its neighbours.
    for plane, mean in zip(np.moveaxis(picture, channel_axis, 0), CAFFE_MEAN, strict=False):
        plane -= mean
    return picture
