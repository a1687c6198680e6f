"""How much is measured: what fits into an evening, or into three minutes."""

from __future__ import annotations

from dataclasses import dataclass

#: Of the benchmark of 2017, more or less: one resampling, one flip, one scale.
TRANSFORMS: dict[str, object] = {
    "rotation_range": 45,
    "width_shift_range": 0.1,
    "height_shift_range": 0.1,
    "horizontal_flip": True,
    "rescale": 1 / 255,
}


@dataclass(frozen=True)
class Plan:
    """Sizes and times.

    Attributes:
        rounds: How often everybody is asked the same, in turns.
        seconds: Of a window in which images are counted.
        warm_up: Seconds before it.
        train_seconds: Of training in one round, at least; it ends with an epoch.
        batch_sizes: Of the training on CIFAR-10.
        use_seconds: Of the training on photographs, at least.
        epoch: Pictures of an epoch where no model is trained, at least: fewer are repeated. Those
            who begin every epoch with new processes would suffer from short ones.
        pictures, photographs: How many are drawn where no data is named.
        photograph_size: Height and width to which files are resized.
    """

    rounds: int
    seconds: float
    warm_up: float
    train_seconds: float
    batch_sizes: tuple[int, ...]
    use_seconds: float
    epoch: int
    pictures: int
    photographs: int
    photograph_size: tuple[int, int]


FULL = Plan(5, 3.0, 1.0, 10.0, (32, 256, 1024, 4096), 60.0, 50_000, 50_000, 2000, (224, 224))
QUICK = Plan(3, 0.8, 0.3, 1.5, (32, 256, 1024, 4096), 8.0, 50_000, 10_000, 256, (150, 150))
#: For tests: everything once, nothing to be quoted.
TINY = Plan(1, 0.1, 0.0, 0.1, (32, 64), 0.6, 0, 256, 24, (32, 32))
PLANS = {"full": FULL, "quick": QUICK, "tiny": TINY}


def process_counts(most: int) -> tuple[int, ...]:
    """Numbers of worker processes to try: 0, the powers of two, and the most."""
    counts = [0]
    power = 1
    while power < most:
        counts.append(power)
        power *= 2
    return (*counts, most)
