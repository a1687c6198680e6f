"""Trains on the streams of a server that runs already; AUGSERVER_ADDRESS says where.

    augserver serve --config examples/augserver.toml --listen ipc:///tmp/aug.sock &
    AUGSERVER_ADDRESS=ipc:///tmp/aug.sock python examples/train.py

The program holds no data, draws nothing at random and needs neither scipy nor Pillow: the server
does. `docker compose run --rm trainer` is this program in a container of its own.
"""

import os

import keras

from augclient import AugSequence

EPOCHS = 2


def main() -> None:
    """Two epochs over the server's streams."""
    print(f"Trains on {keras.backend.backend()}, served at {os.environ['AUGSERVER_ADDRESS']}")
    train = AugSequence(stream="shapes")
    test = AugSequence(stream="shapes-test")
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, validation_data=test, epochs=EPOCHS, verbose=2)
    print(f"Done: {EPOCHS} epochs of {train.consumer.samples} pictures, seed {train.consumer.seed}")


if __name__ == "__main__":
    main()
