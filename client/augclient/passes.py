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
again, or, where nobody counts on finding its batches again (`again=False`), is over as well: a
program that trains a few steps at a time must not see the same few batches for ever. A *peek*
hands out batches but consumes nothing:

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
        again: Whether a pass that was broken off is begun again.

    Attributes:
        begun: How many passes have begun, peeks among them.
    """

    def __init__(self, steps: int, *, shuffled: bool, again: bool = True) -> None:
        self.steps = steps
        self.shuffled = shuffled
        self.begun = 0
        self._again = again
        self._lock = threading.Lock()
        self._epoch = 0
        self._handed: dict[int, int] = {}
        self._armed = True  # a pass begins with the next batch
        self._begun = False  # on_epoch_begin came since the last batch
        self._after_end = False  # the last thing to happen was on_epoch_end
        self._building = False  # the pass about to begin may build a model
        self._builds = False  # ... and so may the one that has begun
        self._peek = True
        self._watched = False  # Keras was seen here

    def num_batches_read(self) -> None:
        """Keras has read `num_batches`."""
        with self._lock:
            self._armed = self._watched = True
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
                self._handed[index] = len(self._handed) if self.shuffled else index
            return self._epoch, self._handed[index]

    @property
    def finished(self) -> bool:
        """The pass has handed out all its steps, and was no peek."""
        with self._lock:
            return self._finished and self._over

    @property
    def over(self) -> bool:
        """If another pass began now, it would be the next epoch's."""
        with self._lock:
            return self._over

    @property
    def outside(self) -> bool:
        """A batch that is asked for now is not Keras's: nothing says that a pass is under way.

        In no recorded trace does Keras ask directly after `on_epoch_end`; but TensorFlow, which
        asks ahead, may do so within a pass.
        """
        with self._lock:
            return not self._watched or (self._after_end and (self._finished or self._peek))

    @property
    def _finished(self) -> bool:
        return len(self._handed) == self.steps

    @property
    def _over(self) -> bool:
        handed = len(self._handed)
        if self._peek:
            # A program's own loop over range(num_batches): Keras never looks at more than two.
            return not self._again and handed > 2
        return self._finished or (not self._again and handed > int(self._builds))

    def _begin(self) -> None:
        # A batch right after on_epoch_end, without Keras's other signs, is a loop of the user's
        # own (`for i in range(len(seq)): seq[i]`, then on_epoch_end), as Sequences always had it.
        by_hand = self._after_end and not self._armed
        if self._over or (self._finished and by_hand):
            self._epoch += 1
        self.begun += 1
        self._armed = False
        self._handed.clear()
        # A pass of several steps that only built a model handed out one of them: not finished.
        self._peek = not self._begun or (self._building and self.steps == 1)
        self._builds = self._building
