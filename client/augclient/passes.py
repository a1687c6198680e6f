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
again. A *peek* hands out batches but consumes nothing:

* no `on_epoch_begin` came since the last batch before it: TensorFlow looks at one or two batches
  for their shapes, at the start of every fit, evaluate and predict; so does a user's `seq[0]`;
* one batch, after an `on_epoch_begin` that did not directly follow an `on_epoch_end`: JAX and
  PyTorch build a model that way. (predict begins like that, too. Of a sequence of a single batch
  it is taken for a peek and so never uses up an epoch, which does no harm.)
"""

from __future__ import annotations

import threading


class Passes:
    """Turns (what Keras does) into (epoch, step). TensorFlow calls it from several threads.

    Args:
        steps: Of an epoch.
        shuffled: Whether the stream's order is random, so that any index may get any step.
    """

    def __init__(self, steps: int, *, shuffled: bool) -> None:
        self._steps = steps
        self._shuffled = shuffled
        self._lock = threading.Lock()
        self._epoch = 0
        self._handed: dict[int, int] = {}
        self._armed = True  # a pass begins with the next batch
        self._begun = False  # on_epoch_begin came since the last batch
        self._after_end = False  # the last thing to happen was on_epoch_end
        self._building = False  # this pass, or the one about to begin, may build a model
        self._peek = True

    def num_batches_read(self) -> None:
        """Keras has read `num_batches`."""
        with self._lock:
            self._armed = True
            self._after_end = False

    def epoch_begins(self) -> None:
        """Keras has called `on_epoch_begin`."""
        with self._lock:
            self._begun = True
            self._building = not self._after_end
            self._after_end = False

    def epoch_ends(self) -> None:
        """Keras has called `on_epoch_end`."""
        with self._lock:
            self._after_end = True

    def get(self, index: int) -> tuple[int, int]:
        """Keras asks for a batch: its (epoch, step)."""
        with self._lock:
            if self._armed or (self._after_end and self._finished):
                self._begin()
            self._begun = self._after_end = False
            if index not in self._handed:
                self._handed[index] = len(self._handed) if self._shuffled else index
            return self._epoch, self._handed[index]

    @property
    def _finished(self) -> bool:
        return len(self._handed) == self._steps

    def _begin(self) -> None:
        # A batch right after on_epoch_end, without Keras's other signs, is a loop of the user's
        # own (`for i in range(len(seq)): seq[i]`, then on_epoch_end), as Sequences always had it.
        by_hand = self._after_end and not self._armed
        if self._finished and (by_hand or not self._peek):
            self._epoch += 1
        self._armed = False
        self._handed.clear()
        # A pass of several steps that only built a model handed out one of them: not finished.
        self._peek = not self._begun or (self._building and self._steps == 1)
