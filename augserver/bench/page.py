"""The report: one page of HTML that needs nothing else, and the same numbers as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from augserver.bench import plots
from augserver.bench.generation import Generation, who
from augserver.bench.timing import Summary
from augserver.bench.training import KERAS, OURS, Busy, Training

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.55 system-ui, sans-serif; max-width: 64rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; }
.lead { font-size: 1.15rem; max-width: 46rem; }
p, li, dd { max-width: 46rem; }
.plots { display: grid; gap: 1.5rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 1rem 0 0; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
svg { width: 100%; height: auto; max-width: 34rem; display: block; }
svg text { font-family: system-ui, sans-serif; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin-top: .75rem; font-size: .95rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .9rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid color-mix(in srgb, currentColor 22%, transparent); }
th:first-child, td:first-child { text-align: left; }
td:not(:first-child) { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { display: block; } dt { margin-top: .5rem; }
  table { font-size: .85rem; } th, td { padding-right: .5rem; }
  td:not(:first-child) { white-space: normal; } }
details { margin-top: 2rem; } pre { overflow-x: auto; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Report:
    """Everything that was measured, and on what.

    Attributes:
        machine: What it was measured on: words by subject.
        data: Where the pictures came from, by section.
        plan: Sizes and times.
    """

    machine: dict[str, str]
    data: dict[str, str]
    plan: dict[str, Any]
    generation: Generation
    training: Training
    photographs: Busy

    def as_json(self) -> str:
        """The raw numbers."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def page(report: Report) -> str:
    """The whole page."""
    title = "augserver on this machine"
    generation, training, busy = report.generation, report.training, report.photographs
    trained = [summary for of in training.rates.values() for summary in of.values()]
    waits = " A GPU that is not busy waits for data." if plots.watched_gpus(busy) else ""
    # A script ends at the first "</", whatever it says.
    raw = report.as_json().replace("</", "<\\/")
    sections = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{_e(summary(report))}</p>',
        _definitions(report.machine),
        "<h2>Small pictures, generation only</h2>",
        f"<p>{_e(report.data['small'])}; an epoch has {generation.epoch:,}, repeated where "
        f"there are fewer. Batches of {generation.batch_size} augmented float32 "
        "pictures are delivered to a loop in the main process, which touches each. 0 processes "
        "means that augserver computes in the main process itself. "
        f"{_e(_rounds(generation.ours.values()))}</p>",
        '<div class="plots">',
        _figure(
            "times", f"Seconds for {plots.EPOCH:,} pictures", plots.times(generation),
            _times_table(generation),
        ),
        _figure(
            "speed-up", f"Speed-up over {plots.speed_up_base(generation)[0]}",
            plots.speed_up(generation), _speed_up_table(generation),
        ),
        _figure(
            "beside", "Images a second, beside what Keras has", plots.beside(generation),
            _rates_table(generation),
        ),
        "</div>",
        _missing(generation.missing),
        "<h2>Small pictures, with training</h2>",
        f"<p>{_e(report.data['small'])}. A small convolutional network is trained by <code>fit"
        "</code>; what is counted are whole epochs after the first. Where both are equal the "
        f"network itself is what takes the time. {_e(_rounds(trained))}</p>",
        _figure(
            "trained", "Images a second of fit", plots.trained(training), _training_table(training)
        ) if trained else "",
        _missing(training.missing),
        "<h2>Photographs from disk, with training</h2>",
        f"<p>{_e(report.data['photographs'])}, resized to {busy.size[0]}×{busy.size[1]}, batch "
        f"{busy.batch_size}; first fed by augserver, then by Keras's class. Processors and GPUs "
        f"(where NVML answers) were looked at four times a second.{waits} One round.</p>",
        _figure("busy", "Use over time while fit runs", plots.busy(busy), _busy_table(busy))
        if busy.usage else "",
        _missing(busy.missing),
        "<details><summary>Raw numbers (JSON)</summary>",
        f"<pre>{html.escape(report.as_json())}</pre></details>",
        f'<script type="application/json" id="numbers">\n{raw}\n</script>',
    ]  # fmt: skip
    body = "\n".join(part for part in sections if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def summary(report: Report) -> str:
    """The answer in a sentence or two, losses included."""
    generation = report.generation
    count = max(generation.ours)
    rate = generation.ours[count].median
    said = (
        f"With {count} worker process{'es' * (count != 1)} augserver delivers {rate:,.0f} images/s"
    )
    if generation.keras is not None:
        said += (
            f", {rate / generation.keras.median:.1f} times Keras's own ImageDataGenerator in one "
            f"process ({generation.keras.median:,.0f})"
        )
    gains = [
        of[OURS].median / of[KERAS].median
        for of in report.training.rates.values()
        if {OURS, KERAS} <= set(of)
    ]
    if gains:
        least, most = f"{min(gains):.1f}", f"{max(gains):.1f}"
        said += f". Training on small pictures runs at {least} to {most} times its speed"
    rates = report.photographs.rates
    if {OURS, KERAS} <= set(rates):
        said += f", and on photographs from disk at {rates[OURS] / rates[KERAS]:.1f} times"
    return said + "."


def _figure(name: str, caption: str, svg: str, table: str) -> str:
    drawn = plots.inline(svg, name, f"{html.escape(caption)}; the numbers are in the table below")
    return (
        f"<figure><figcaption>{_e(caption)}</figcaption>\n{drawn}\n"
        f'<div class="scroll">{table}</div></figure>'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{_e(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _times_table(found: Generation) -> str:
    rows = [
        [str(n), f"{plots.EPOCH / s.median:.2f} s", f"{plots.EPOCH / s.high:.2f} – "
         f"{plots.EPOCH / s.low:.2f} s"]
        for n, s in found.ours.items()
    ]  # fmt: skip
    if found.keras is not None:
        s = found.keras
        rows.append(
            ["Keras's class", f"{plots.EPOCH / s.median:.2f} s", f"{plots.EPOCH / s.high:.2f} – "
             f"{plots.EPOCH / s.low:.2f} s"]
        )  # fmt: skip
    return _table(["processes", "median", "least – most"], rows)


def _speed_up_table(found: Generation) -> str:
    _, base = plots.speed_up_base(found)
    rows = [[str(n), f"{s.median / base.median:.2f}"] for n, s in found.ours.items()]
    return _table(["processes", "times as fast"], rows)


def _rates_table(found: Generation) -> str:
    ours = {who(n): s for n, s in found.ours.items()}
    rows = [
        [name, f"{s.median:,.0f}", f"{s.mean:,.0f} ± {s.deviation:,.0f}"]
        for name, s in (ours | found.others).items()
    ]
    return _table(["who", "images/s, median", "mean ± deviation"], rows)


def _training_table(found: Training) -> str:
    rows = []
    for size, of in found.rates.items():
        both = {OURS, KERAS} <= set(of)
        rows.append(
            [str(size), *(f"{of[n].median:,.0f}" if n in of else "–" for n in (OURS, KERAS)),
             f"{of[OURS].median / of[KERAS].median:.2f}" if both else "–"]
        )  # fmt: skip
    return _table(["batch size", "augserver, images/s", "Keras's class, images/s", "ratio"], rows)


def _busy_table(found: Busy) -> str:
    rows = []
    for name, rate in found.rates.items():
        usage = found.usage[name]
        cpu = Summary.of(usage.cpu or [0.0])
        gpus = ", ".join(
            f"{n}: {Summary.of(seen or [0.0]).mean:.0f} %" for n, seen in usage.gpus.items()
        )
        rows.append([name, f"{rate:,.0f}", f"{cpu.mean:.0f} %", gpus or "none"])
    return _table(["who", "images/s", "CPU, mean", "GPU, mean"], rows)


def _rounds(summaries: Iterable[Summary]) -> str:
    rounds = min((summary.rounds for summary in summaries), default=0)
    if not rounds:
        return ""
    several = "medians, with the least and the greatest" if rounds > 1 else "one answer each"
    return f"{rounds} round{'s' * (rounds != 1)} in turns; {several}."


def _missing(missing: dict[str, str]) -> str:
    if not missing:
        return ""
    items = "".join(f"<li>{_e(who)}: {_e(reason)}</li>" for who, reason in missing.items())
    return f"<p>Not measured:</p><ul>{items}</ul>"


def _definitions(words: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{_e(k)}</dt><dd>{_e(v)}</dd>" for k, v in words.items()) + "</dl>"


def _e(text: str) -> str:
    return html.escape(text, quote=False)
