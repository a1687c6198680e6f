"""docs/migrating.md tells the truth: its names and defaults are the code's, its code runs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_own import image_data_generators, keras_module
from PIL import Image
from processes import python, serving

from augserver import health

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrating.md").read_text()
EXAMPLES = ROOT / "examples" / "migration"
ALONE = "AUGSERVER_WORKERS=1 python examples/migration/cats_and_dogs.py"
SERVE = "augserver serve --config examples/augserver.toml --listen ipc:///tmp/augserver.sock"
SHARING = "AUGSERVER_ADDRESS=ipc:///tmp/augserver.sock python examples/migration/sample_weights.py"

pytestmark = [pytest.mark.keras, pytest.mark.slow]


@pytest.fixture(scope="module")
def image() -> Any:
    keras_module("keras")
    return importlib.import_module("augclient.image")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def section(heading: str) -> str:
    (found,) = [part for part in PAGE.split("\n## ") if part.startswith(f"{heading}\n")]
    return found


def row(section: str, start: str) -> str:
    """The line of a table that begins with this."""
    (found,) = [line for line in section.splitlines() if line.startswith(f"| {start}")]
    return found


def named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# -- names and defaults ----------------------------------------------------------------------


def test_keras_s_arguments_are_all_in_the_table_in_keras_s_order(image: Any) -> None:
    theirs = next(image_data_generators()).ImageDataGenerator
    arguments = list(inspect.signature(theirs).parameters)
    assert len(arguments) == 23
    first_cell = row(section("The whole surface"), "`featurewise_center`").split("|")[1]
    assert named(first_cell) == arguments
    assert f"Keras's {len(arguments)}" in PAGE


def test_the_new_arguments_have_the_defaults_that_the_page_names(image: Any) -> None:
    signature = inspect.signature(image.ImageDataGenerator).parameters.values()
    new = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section("What is new"), re.MULTILINE))
    assert list(rows) == list(new)
    assert rows.pop("pool") == "not given"
    del new["pool"]  # None means something there
    assert {name: ast.literal_eval(text.strip("`")) for name, text in rows.items()} == new


def test_every_public_name_is_in_the_table(image: Any) -> None:
    names = set(named(section("The whole surface"))) | {"ImageDataGenerator"}
    assert not set(image.__all__) - names


def test_the_attributes_that_are_named_are_there(image: Any, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "1.png")
    datagen = image.ImageDataGenerator()
    x = np.zeros((4, 4, 4, 3), np.uint8)
    table = pandas.DataFrame({"filename": ["cat/1.png", "dog/1.png"], "class": ["cat", "dog"]})
    iterators = [
        datagen.flow((x, x[:, 0, 0]), x[:, 0, 0, 0], sample_weight=np.ones(4)),
        datagen.flow_from_directory(str(tmp_path)),
        datagen.flow_from_dataframe(table, str(tmp_path)),
    ]
    of_iterators = row(section("The whole surface"), "attributes of iterators")
    names = named(of_iterators.split("|")[1])
    assert len(names) > 30
    for name in names:
        assert any(hasattr(iterator, name) for iterator in iterators), name
    for name in named(row(section("The whole surface"), "attributes: all arguments")):
        assert hasattr(datagen, name)


def test_the_methods_whose_override_is_slow_are_those_of_the_page(image: Any) -> None:
    from augclient.image import watch

    (line,) = [
        line for line in section("Subclasses").splitlines() if line.endswith("this is slow.")
    ]
    assert named(line)[1:] == list(watch.METHODS)


def test_the_variables_of_the_environment_are_those_of_the_code() -> None:
    from augclient import access, consumer

    assert {
        access.KEY_VARIABLE,
        access.SERVER_KEY_VARIABLE,
        consumer.ADDRESS_VARIABLE,
        consumer.WORKERS_VARIABLE,
        consumer.MEMORY_VARIABLE,
    } == set(re.findall(r"AUGSERVER_\w+", PAGE))


def test_the_programs_are_as_many_as_the_page_says() -> None:
    programs = [path for path in EXAMPLES.glob("*.py") if path.stem != "sample_data"]
    assert len(programs) == 13
    assert "holds thirteen programs" in PAGE


def test_the_files_that_it_links_to_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


# -- commands and code -----------------------------------------------------------------------


def test_every_command_is_one_that_a_test_runs() -> None:
    lines = (line for block in blocks("sh") for line in block.splitlines())
    assert [line.partition("#")[0].strip() for line in lines] == [
        "pip install 'augserver[server,client]'",  # below
        "python examples/migration/cats_and_dogs.py",  # tests/system/test_migration.py
        ALONE,  # below
        SERVE,  # below
        SHARING,  # below
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"server", "client"} <= set(project["optional-dependencies"])


def a_backend() -> str:
    for backend in ("jax", "tensorflow"):  # the one that is imported sooner
        if importlib.util.find_spec(backend) is not None:
            return backend
    pytest.skip("neither JAX nor TensorFlow is installed")


def run(command: str) -> str:
    """What a command says: a variable of the environment, and a program for Python."""
    variable, _, program = command.split()
    done = subprocess.run(
        [sys.executable, program],
        cwd=ROOT,
        env=os.environ | dict([variable.split("=")]) | {"KERAS_BACKEND": a_backend()},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_example_runs_with_workers_from_the_environment() -> None:
    assert "validation accuracy" in run(ALONE)


def test_an_example_runs_on_a_server_that_others_use(tmp_path: Path) -> None:
    # As written, but with a socket of this test's own.
    address = f"ipc://{tmp_path}/s"
    with serving(address, *SERVE.split()[2:4]):
        assert "weights:" in run(SHARING.replace("ipc:///tmp/augserver.sock", address))
        _, status = health.ask(address, 10)
        assert status.batches >= 8  # an epoch of its 244 pictures, and what was made ahead


def test_the_page_s_own_code_runs() -> None:
    two_lines, subclass, sequence = blocks("python")
    assert two_lines.splitlines()[1] in subclass
    done = python(
        f"{two_lines}\n{subclass}\n{sequence}\n"
        "assert pictures.shape == (32, 32, 32, 3) and pictures.std() > 0 and len(train) == 2\n"
        "print('ran')",
        KERAS_BACKEND=a_backend(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ran"


def test_what_the_last_table_puts_side_by_side_gives_the_same() -> None:
    cells = dict(
        re.findall(r"^\| (.+?) \| `(.+)` \|$", section("Moving on to AugSequence"), re.MULTILINE)
    )
    statistics = cells["`datagen.fit(x)`, then `datagen.mean`, `datagen.std`"]
    whitening = cells["`datagen.zca_whitening_matrix`"]
    program = f"""
        import numpy as np
        from augclient import AugSequence
        from augclient.image import ImageDataGenerator

        x = np.random.default_rng(0).random((256, 6, 6, 3), np.float32)
        options = dict(batch_size=16, seed=3, workers=0, {cells["the very numbers of Keras"]})
        datagen = ImageDataGenerator(True, False, True)
        datagen.fit(x)
        (one,) = AugSequence(x, {statistics}, **options)[0]
        assert np.array_equal(one, next(datagen.flow(x, batch_size=16, seed=3)))
        datagen = ImageDataGenerator(True, zca_whitening=True)
        datagen.fit(x)
        mean = dict(featurewise_mean=datagen.mean)
        (one,) = AugSequence(x, {whitening}, transforms=mean, **options)[0]
        assert np.array_equal(one, next(datagen.flow(x, batch_size=16, seed=3)))
        extra, y, w = np.random.random((256, 2)), np.arange(256), np.ones(256)
        datagen = ImageDataGenerator()
        one = {cells["`flow((x, extra), y, sample_weight=w)`"].replace(" w)", " w, **options)")}[0]
        other = next(datagen.flow((x, extra), y, 16, seed=3, sample_weight=w))
        for a, b in zip((*one[0], *one[1:]), (*other[0], *other[1:]), strict=True):
            assert np.array_equal(a, b)
        print("same")
    """
    done = python(textwrap.dedent(program), KERAS_BACKEND=a_backend())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "same"
