"""Which batch Keras means by an index. Sans-I/O: a machine fed with what Keras does.

`fit`, `evaluate` and `predict` walk over a Sequence in *passes*, and say neither when a pass
begins nor which epoch it is: batch indices are permuted, index 0 (and 1) is probed before
training, hooks come too early, twice or not at all. One signal was right in every recorded trace
of three backends: `num_batches` is read directly before a pass takes its first batch.

So a pass begins at the first batch asked for after such a read. In a shuffled stream the k-th
distinct index of a pass gets step k, so that batches are used in the order in which they are made;
asked again within the pass, an index gives the same batch. In an unshuffled stream the step is the
index, so that predict and evaluate come out in order.

The epoch advances when a pass has handed out all its steps; a pass that was broken off is begun
again. What is fetched before the first `on_epoch_begin` is a peek and consumes nothing; so is a
pass of one batch that is over (`on_epoch_end`) without a second read of `num_batches` having
followed: JAX and PyTorch build a model that way.
"""

from __future__ import annotations


class Passes:
    """Turns (what Keras does) into (epoch, step).

    Args:
        steps: Of an epoch.
        shuffled: Whether the stream's order is random, so that any index may get any step.
    """

    def __init__(self, steps: int, *, shuffled: bool) -> None:
        self._steps = steps
        self._shuffled = shuffled
        self._epoch = 0
        self._handed: dict[int, int] = {}
        self._armed = True
        self._begun = False
        self._peek = True

    @property
    def epoch(self) -> int:
        """The epoch of the current pass."""
        return self._epoch

    def num_batches_read(self) -> None:
        """Keras has read `num_batches`."""
        self._armed = True

    def epoch_begins(self) -> None:
        """Keras has called `on_epoch_begin`."""
        self._begun = True

    def get(self, index: int) -> tuple[int, int]:
        """Keras asks for a batch: its (epoch, step)."""
        if self._armed:
            self._armed = False
            if len(self._handed) == self._steps and not self._peek:
                self._epoch += 1
            self._handed.clear()
            self._peek = not self._begun
        if index not in self._handed:
            self._handed[index] = len(self._handed) if self._shuffled else index
        return self._epoch, self._handed[index]
