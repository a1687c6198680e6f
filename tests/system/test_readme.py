"""The README tells the truth: its commands and its code run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from processes import python, serving, wait_until

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
KEYGENS = [f"augserver keygen {name}" for name in ("server", "trainer", "worker")]
SERVE_ALL = (
    "augserver serve --config examples/augserver.toml --listen tcp://*:5555 "
    "--listen-workers tcp://*:5556 --key server.key --allow-consumers trainer.pub "
    "--allow-workers worker.pub"
)
WORKER = "augserver worker --connect tcp://server:5556 --key worker.key --server-key server.pub"
CHECK = "augserver check-config examples/augserver.toml"


def test_every_command_is_one_that_a_test_runs() -> None:
    assert commands() == [
        "make demo",  # below, and tests/system/test_demo.py
        "make test",  # below; it is what runs this
        "docker compose up augserver",  # tests/system/test_compose.py
        "pip install -e '.[server,tensorflow]'",  # below
        SERVE,  # below
        HEALTH,  # below
        STATUS,  # below
        *KEYGENS,  # below
        SERVE_ALL,  # below
        WORKER,  # below
        CHECK,  # below
        "docker compose --profile workers up --scale worker=3",  # tests/system/test_compose.py
        "augserver bench --quick",  # tests/system/test_bench.py
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
        client = blocks("python")[3].replace("ipc:///tmp/augserver.sock", address)
        _run("from augclient import AugSequence\n" + client + "print(len(train))")


def test_the_lines_about_the_network_serve_a_consumer_with_a_worker_and_keys(
    tmp_path: Path,
) -> None:
    # As written, but on ports of this test's own, and on this machine.
    ports = {5555: _free_port(), 5556: _free_port()}

    def here(text: str) -> str:
        for port, own in ports.items():
            text = text.replace(f"//*:{port}", f"//0.0.0.0:{own}")
            text = text.replace(f"//server:{port}", f"//127.0.0.1:{own}")
        return text.replace("examples/", f"{ROOT}/examples/")

    def run(command: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", *here(command).split()]
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log, text=True)

    for command in (*KEYGENS, CHECK):
        assert run(command).wait(60) == 0, (tmp_path / "log").read_text()
    running = [run(SERVE_ALL), run(WORKER)]
    try:
        wait_until(lambda: "enlisted with" in (tmp_path / "log").read_text(), "a worker")
        program = f"import os\nos.chdir({str(tmp_path)!r})\nfrom augclient import AugSequence\n"
        _run(program + here(blocks("python")[4]) + "assert len(list(train.consumer.epoch(0)))")
    finally:
        for started in running[::-1]:
            started.terminate()
            assert started.wait(30) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def test_the_lines_of_an_old_program_give_kerass_pictures(tmp_path: Path) -> None:
    drawn = f"""
        import os, numpy as np, PIL.Image
        os.chdir({str(tmp_path)!r})
        rng = np.random.default_rng(3)
        for i in range(40):
            name = f"pets/train/{{'cat' if i % 2 else 'dog'}}/{{i}}.png"
            os.makedirs(os.path.dirname(name), exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8)).save(name)
    """
    compared = """
        from keras.src.legacy.preprocessing import image
        own = image.ImageDataGenerator(rotation_range=20, horizontal_flip=True, rescale=1 / 255)
        old = own.flow_from_directory("pets/train", target_size=(224, 224), batch_size=32, seed=1)
        for _ in range(3):
            for mine, kerass in zip(next(flow), next(old), strict=True):
                assert (mine == kerass).all()
    """
    _run(textwrap.dedent(drawn) + blocks("python")[2] + textwrap.dedent(compared))


def test_the_lines_for_other_loops_give_batches() -> None:
    drawn = """
        import keras, numpy as np
        from augclient import AugSequence
        x, y = np.zeros((256, 8, 8, 3), np.uint8), np.zeros((256, 1), np.uint8)
        augment = dict(rotation_range=15, rescale=1 / 255)
        train = AugSequence(x, y, batch_size=64, transforms=augment)
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        steps = []
        step = lambda x, y: steps.append(x.shape)
    """
    lines = blocks("python")[5]
    ends = "assert len(steps) == 40, steps\n"
    if importlib.util.find_spec("torch"):
        drawn += "    import torch\n"
        ends += "assert len([x.shape for x, y in loader]) == 4\n"
    else:
        lines = "".join(line for line in lines.splitlines(True) if "torch" not in line.lower())
    _run(textwrap.dedent(drawn) + lines + ends, "tensorflow")


def _run(program: str, *backends: str) -> None:
    wanted = backends or ("jax", "tensorflow")
    backend = next((b for b in wanted if importlib.util.find_spec(b)), None)
    if backend is None:
        pytest.skip(f"none of {', '.join(wanted)} is installed")
    done = python(program, KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3")
    assert done.returncode == 0, done.stderr


def test_the_files_that_it_links_to_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
