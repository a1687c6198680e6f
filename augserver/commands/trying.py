"""For whoever wants to see it first: `augserver demo`, `augserver bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augproto.errors import ConfigError
from augserver.commands.options import Processes


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Pictures of your own: x_train, y_train, x_test, y_test, as CIFAR-10's.",
            show_default="pictures drawn by the demo",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = 4,
    workers: Processes = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="tensorflow, jax or torch.",
            show_default="KERAS_BACKEND, or the first that is installed",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE.png", help="The contact sheet.")] = Path(
        "augserver-demo.png"
    ),
    pictures: Annotated[
        int, typer.Option(min=64, help="How many to draw for training.", hidden=True)
    ] = 6000,
    make_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Only write the drawn pictures.", hidden=True),
    ] = None,
) -> None:
    """Train a small network on augmented pictures; nothing is downloaded."""
    if make_data is not None:
        from augserver import shapes

        if make_data.suffix != ".npz":
            raise ConfigError(f"make-data: got {str(make_data)!r}; wanted the name of a .npz file")
        shapes.draw_dataset(pictures).save(make_data)
        typer.echo(f"{make_data}: {make_data.stat().st_size} bytes")
        return
    from augserver import demo

    demo.run(
        data=data,
        epochs=epochs,
        workers=workers,
        backend=backend,
        output=output,
        pictures=pictures,
    )


def bench(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="CIFAR-10 (cifar-10-batches-py or a .npz) and folders of photographs by class.",
            show_default="pictures drawn by the program",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Get CIFAR-10 from keras.datasets.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Within three minutes on two cores.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="The most worker processes to try.", show_default="one for each core"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE.html", help="The report, one file.")] = Path(
        "augserver-bench.html"
    ),
    numbers: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE.json", help="The raw numbers.", show_default="beside the report"
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="One of the plots by itself.", hidden=True),
    ] = None,
    size: Annotated[str | None, typer.Option(help="full, quick or tiny.", hidden=True)] = None,
) -> None:
    """Measure on this machine what augserver gains, beside what Keras has, and draw it."""
    from augserver.bench import run

    try:
        run.run(
            data=data,
            download=download,
            output=output,
            json_output=numbers,
            svg=svg,
            processes=processes,
            size=size or ("quick" if quick else "full"),
        )
    except KeyboardInterrupt:
        typer.echo("augserver: interrupted; no report was written", err=True)
        raise typer.Exit(130) from None  # a shell's word for Ctrl-C
