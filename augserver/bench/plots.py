"""The plots, as SVG that goes into a page of any colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from augserver.bench.generation import Generation, who
from augserver.bench.timing import Summary
from augserver.bench.training import KERAS, OURS, Busy, Training

#: Readable on white and on black, and told apart by people who see colours otherwise.
COLOURS = {"ours": "#2f81c7", "other": "#d9822b", "more": ("#3a9a6b", "#b85c9e", "#8a8f3c")}
#: Stands for the page's own text colour until the drawing is done.
TEXT = "#767676"
#: Inches, at 72 points each: small enough to be legible where a page is narrow.
WIDTH, HEIGHT = 4.7, 3.3
#: Pictures of CIFAR-10's training set: what times are told for.
EPOCH = 50_000
#: Between the greatest and the least of the times.
LOGARITHMIC_FROM = 8


def _figure(draw: Callable[[Any], None], height: float = HEIGHT, rows: int = 1) -> str:
    """An SVG of `rows` plots, one above the other."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: Any = {
        "font.size": 11, "font.family": "sans-serif", "svg.fonttype": "none",
        "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": TEXT, "xtick.color": TEXT,
        "ytick.color": TEXT, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": TEXT, "grid.alpha": 0.25, "grid.linewidth": 0.6,
        "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "augserver",
    }  # fmt: skip
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            rows, 1, figsize=(WIDTH, height), squeeze=False, sharex=True, layout="constrained"
        )
        try:
            draw(axes[:, 0])
            written = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(written, format="svg", transparent=True, metadata=nothing)
        finally:
            pyplot.close(figure)
    return written.getvalue()


def inline(svg: str, name: str, title: str) -> str:
    """An SVG for a page: no prolog, names of its own, the page's text colour, and a title."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = svg.replace(TEXT, "currentColor")
    label = f'role="img" aria-labelledby="{name}-title"'
    return re.sub(
        r"^<svg\b([^>]*)>",
        lambda found: f'<svg {label}{found[1]}>\n <title id="{name}-title">{title}</title>',
        svg,
        count=1,
    )


def alone(svg: str) -> str:
    """An SVG as a file of its own: gray text, which can be read on white and on black."""
    return svg[svg.index("<svg") :]


def times(found: Generation) -> str:
    """Seconds for CIFAR-10's 50,000 pictures against the number of processes."""

    def draw(axes: Sequence[Any]) -> None:
        (plot,) = axes
        counts = list(found.ours)
        middle = [EPOCH / found.ours[n].median for n in counts]
        below = [m - EPOCH / found.ours[n].high for n, m in zip(counts, middle, strict=True)]
        above = [EPOCH / found.ours[n].low - m for n, m in zip(counts, middle, strict=True)]
        plot.errorbar(
            range(len(counts)), middle, [below, above], color=COLOURS["ours"], marker="o",
            capsize=4, label="augserver",
        )  # fmt: skip
        if found.keras is not None:
            plot.axhline(
                EPOCH / found.keras.median, color=COLOURS["other"], linestyle="--",
                label="Keras's class, 1 process",
            )  # fmt: skip
        plot.set_xticks(range(len(counts)), [str(n) for n in counts])
        plot.set_xlabel("worker processes")
        _seconds(plot, [*middle, *([EPOCH / found.keras.median] if found.keras else [])])
        _legend(plot)

    return _figure(draw)


def _seconds(plot: Any, values: Sequence[float]) -> None:
    """From zero on, or logarithmic where the least would lie on the axis."""
    if max(values) < LOGARITHMIC_FROM * min(values):
        plot.set_ylim(bottom=0)
        plot.set_ylabel("seconds")
        return
    from matplotlib import ticker

    plot.set_yscale("log")
    plot.set_ylabel("seconds, logarithmic")
    plot.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    plot.yaxis.set_major_formatter("{x:g}")
    plot.yaxis.set_minor_formatter(ticker.NullFormatter())
    plot.minorticks_off()


def speed_up_base(found: Generation) -> tuple[str, Summary]:
    """What 1 stands for: Keras's class, or without it ours with the fewest processes."""
    if found.keras is not None:
        return "Keras's ImageDataGenerator", found.keras
    least = min(found.ours)
    return who(least), found.ours[least]


def _beside_line(values: Sequence[float], place: int) -> tuple[tuple[int, int], str]:
    """Where a point's label does not lie on the line that goes through it: points, alignment."""
    falls = place > 0 and values[place - 1] > values[place]
    rises = place + 1 < len(values) and values[place + 1] > values[place]
    if falls and rises:
        if values[place] > max(values) / 6:
            return (0, -15), "center"
        falls = values[place - 1] > values[place + 1]  # no room below: on the less steep side
    return ((7, 5), "left") if falls else ((-7, 5), "right")


def speed_up(found: Generation) -> str:
    """Images a second, in those of `speed_up_base`, against the number of processes."""

    def draw(axes: Sequence[Any]) -> None:
        (plot,) = axes
        base = speed_up_base(found)[1].median
        counts = list(found.ours)
        middle = [found.ours[n].median / base for n in counts]
        below = [(found.ours[n].median - found.ours[n].low) / base for n in counts]
        above = [(found.ours[n].high - found.ours[n].median) / base for n in counts]
        plot.errorbar(
            range(len(counts)), middle, [below, above], color=COLOURS["ours"], marker="o",
            capsize=4, label="augserver",
        )  # fmt: skip
        if found.keras is not None:
            plot.axhline(1, color=COLOURS["other"], linestyle="--", label="1: Keras's class")
        for place, value in enumerate(middle):
            offset, align = _beside_line(middle, place)
            plot.annotate(
                f"{value:.1f}", (place, value), offset, textcoords="offset points", ha=align
            )
        plot.set_xticks(range(len(counts)), [str(n) for n in counts])
        plot.set_ylim(0, 1.1 * max(1.0, *(m + a for m, a in zip(middle, above, strict=True))))
        plot.set_xlim(-0.5, len(counts) - 0.5)
        plot.set_xlabel("worker processes")
        plot.set_ylabel("times as fast")
        _legend(plot)

    return _figure(draw)


def beside(found: Generation) -> str:
    """Images a second of everybody."""
    most = max(found.ours)
    rows: dict[str, Summary] = {who(most): found.ours[most], **found.others}

    def draw(axes: Sequence[Any]) -> None:
        (plot,) = axes
        names = sorted(rows, key=lambda name: rows[name].median)
        values = [rows[name].median for name in names]
        spread = [
            [rows[name].median - rows[name].low for name in names],
            [rows[name].high - rows[name].median for name in names],
        ]
        colours = [COLOURS["ours" if name.startswith("aug") else "other"] for name in names]
        plot.barh(range(len(names)), values, 0.5, xerr=spread, color=colours, ecolor=TEXT)
        plot.set_yticks([])
        plot.grid(visible=False, axis="y")
        for place, name in enumerate(names):
            # Above its bar: a name beside it would take half of a narrow page.
            plot.annotate(
                f"{name}: {values[place]:,.0f}", (0, place + 0.28), (2, 2),
                textcoords="offset points",
            )  # fmt: skip
        plot.set_ylim(-0.5, len(names) - 0.2)
        plot.set_xlim(left=0)
        plot.locator_params(axis="x", nbins=5)
        plot.xaxis.set_major_formatter("{x:,.0f}")
        plot.set_xlabel("images/s")

    return _figure(draw)


def trained(found: Training) -> str:
    """Images a second of fit at each batch size."""

    def draw(axes: Sequence[Any]) -> None:
        (plot,) = axes
        sizes = list(found.rates)
        for shift, name, colour in ((-0.2, OURS, "ours"), (0.2, KERAS, "other")):
            there = [n for n, size in enumerate(sizes) if name in found.rates[size]]
            if not there:
                continue
            rates = [found.rates[sizes[n]][name] for n in there]
            plot.bar(
                [n + shift for n in there], [rate.median for rate in rates], 0.36,
                yerr=[[r.median - r.low for r in rates], [r.high - r.median for r in rates]],
                color=COLOURS[colour], ecolor=TEXT, capsize=3, label=name,
            )  # fmt: skip
        plot.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        plot.grid(visible=False, axis="x")
        plot.yaxis.set_major_formatter("{x:,.0f}")
        plot.set_xlabel("batch size")
        plot.set_ylabel("images/s")
        _legend(plot)

    return _figure(draw)


def busy(found: Busy) -> str:
    """CPU use, and that of each GPU, over time."""
    gpus = watched_gpus(found)
    # Two that keep the processors busy lie on each other: the second is drawn with gaps.
    styles: Mapping[str, Any] = {
        OURS: {"color": COLOURS["ours"], "linewidth": 2.6},
        KERAS: {"color": COLOURS["other"], "linewidth": 1.6, "linestyle": (0, (4, 2.5))},
    }

    def draw(axes: Sequence[Any]) -> None:
        for name, usage in found.usage.items():
            axes[0].plot(usage.seconds, usage.cpu, label=name, **styles[name])
            for gpu, values in usage.gpus.items():
                axes[1 + gpus.index(gpu)].plot(usage.seconds, values, **styles[name])
        labels = ["CPU, all cores, %", *(f"GPU {gpu}, %" for gpu in gpus)]
        for label, plot in zip(labels, axes, strict=True):
            plot.set_ylim(0, 105)
            plot.set_ylabel(label)
        axes[-1].set_xlabel("seconds")
        _legend(axes[0])

    return _figure(draw, HEIGHT + 1.8 * len(gpus), 1 + len(gpus))


def watched_gpus(found: Busy) -> list[int]:
    """The numbers of the GPUs that told how busy they were."""
    return sorted({gpu for usage in found.usage.values() for gpu in usage.gpus})


def _legend(plot: Any) -> None:
    """Above the plot, where it covers nothing."""
    if not plot.get_legend_handles_labels()[0]:
        return
    plot.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2,
        handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip
