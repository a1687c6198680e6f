"""Datasets that a server's config names once, for all streams that are made of them.

A table [datasets.NAME] says what the data are: files, names of arrays, how files become pictures.
A stream of the config says `dataset = "NAME"` and how its batches are made, and so does a consumer,
which need not know where the server's files lie. Whatever a stream says wins over its dataset.
"""

from __future__ import annotations

from collections.abc import Mapping

from augproto import checks
from augproto.errors import ConfigError
from augproto.spec import Spec

#: The fields of a spec that are about data. All others are about a stream.
KEYS = (
    "data", "x", "y", "sample_weight", "images", "pictures", "target_size", "interpolation",
    "data_format", "whitening", "bad_samples", "cache",
)  # fmt: skip


def checked(table: Mapping[str, object]) -> dict[str, object]:
    """The fields of a table [datasets.NAME] whose paths are absolute.

    Raises:
        ConfigError: A key is none of `KEYS`, or a value is one that no stream may have.
    """
    for key in table:
        if key not in KEYS:
            raise ConfigError(f"unknown field {key!r:.80}; the fields are {', '.join(KEYS)}")
    fields = dict(table)
    # Names of arrays and a size may come with the stream; what is here is held against the rules.
    if fields.get("pictures") is not None:
        fields.setdefault("target_size", (1, 1))
    elif "data" in fields:
        fields.setdefault("x", "x")
    Spec.from_wire(fields)
    return dict(table)


def merged(dataset: Mapping[str, object], stream: Mapping[str, object]) -> dict[str, object]:
    """The fields of a dataset, and over them those of a stream; `pictures` key by key."""
    fields = {**dataset, **stream}
    below, above = dataset.get("pictures"), stream.get("pictures")
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        fields["pictures"] = {**below, **above}
    return fields


def table_of(name: object, datasets: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    """The dataset of that name.

    Raises:
        ConfigError: There is none.
    """
    if not isinstance(name, str) or name not in datasets:
        known = ", ".join(sorted(datasets)) or "none"
        raise checks.refuse("dataset", name, f"one of this server's datasets, which are: {known}")
    return datasets[name]


def resolved(spec: Spec, datasets: Mapping[str, Mapping[str, object]]) -> Spec:
    """A consumer's spec with the dataset that it names put in; one that names none, as it is.

    Raises:
        ConfigError: There is no such dataset, or the two do not fit together.
    """
    if spec.dataset is None:
        return spec
    asked = {key: value for key, value in spec.to_wire().items() if key != "data"}
    fields = merged(table_of(spec.dataset, datasets), asked)
    try:
        return Spec.from_wire(fields)
    except ConfigError as error:
        raise ConfigError(f"dataset {spec.dataset!r:.80}: {error}") from error
