"""The README tells the truth: its commands and its code run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from processes import python, serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = (line for block in blocks("sh") for line in block.splitlines())
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


SERVE = "augserver serve --config examples/augserver.toml --listen ipc:///tmp/augserver.sock"
HEALTH = "augserver health --connect ipc:///tmp/augserver.sock"
STATUS = "augserver status --connect ipc:///tmp/augserver.sock"


def test_every_command_is_one_that_a_test_runs() -> None:
    assert commands() == [
        "make demo",  # below, and tests/system/test_demo.py
        "make test",  # below; it is what runs this
        "docker compose up augserver",  # tests/system/test_compose.py
        "pip install -e '.[server,tensorflow]'",  # below
        SERVE,  # below
        HEALTH,  # below
        STATUS,  # below
    ]


@pytest.mark.parametrize(
    ("target", "runs"), [("demo", ".venv/bin/augserver demo"), ("test", ".venv/bin/pytest")]
)
def test_the_two_commands_of_make_run_what_they_say(target: str, runs: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    # A make above this test (make test) would have this one announce its folders.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    told = subprocess.run(
        [make, "--dry-run", target],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == runs


def test_the_extras_that_are_named_exist() -> None:
    named = {
        extra for extras in re.findall(r"(?:augserver|\.)\[([a-z,]+)\]", README)
        for extra in extras.split(",")
    }  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"server", "tensorflow"} <= named <= set(project["optional-dependencies"])


def test_the_standalone_server_and_its_health_check(tmp_path: Path) -> None:
    # As written, but with a socket of this test's own.
    address = f"ipc://{tmp_path}/s"
    with serving(address, *SERVE.split()[2:4]):
        for asked, answer in ((HEALTH, "healthy: pid"), (STATUS, "pid")):
            words = asked.replace("ipc:///tmp/augserver.sock", address).split()
            done = subprocess.run(
                [sys.executable, "-m", *words],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(answer)
        client = blocks("python")[2].replace("ipc:///tmp/augserver.sock", address)
        _run("from augclient import AugSequence\n" + client + "print(len(train))")


def test_the_ten_lines_train() -> None:
    drawn = """
        import keras, numpy as np
        def load_data():
            x = np.zeros((256, 32, 32, 3), np.uint8)
            y = np.zeros((256, 1), np.uint8)
            return (x, y), (x[:64], y[:64])
        keras.datasets.cifar10.load_data = load_data  # the real one downloads
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    """
    lines = blocks("python")[0].replace("epochs=10", "epochs=1")
    assert len([line for line in lines.splitlines() if line.strip()]) <= 10
    _run(textwrap.dedent(drawn) + lines)


def test_the_lines_about_files_train(tmp_path: Path) -> None:
    drawn = f"""
        import os, keras, numpy as np, PIL.Image
        from augclient import AugSequence
        os.chdir({str(tmp_path)!r})
        for i in range(64):
            name = f"pets/train/{{'cat' if i % 2 else 'dog'}}/{{i}}.png"
            os.makedirs(os.path.dirname(name), exist_ok=True)
            PIL.Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(name)
        open("pets/train/cat/broken.jpg", "w").close()
        paths = ["pets/train/cat/1.png", "pets/train/dog/2.png"]
        labels = np.array([[1.0, 0.0], [0.0, 1.0]])
        augment = dict(rotation_range=15, rescale=1 / 255)
    """
    trained = """
        model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
        model.fit(train, epochs=1)
        model.fit(listed, epochs=1)
    """
    _run(textwrap.dedent(drawn) + blocks("python")[1] + textwrap.dedent(trained))


def _run(program: str) -> None:
    backend = next((b for b in ("jax", "tensorflow") if importlib.util.find_spec(b)), None)
    if backend is None:
        pytest.skip("neither JAX nor TensorFlow is installed")
    done = python(program, KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3")
    assert done.returncode == 0, done.stderr


def test_the_files_that_it_links_to_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
