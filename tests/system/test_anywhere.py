"""A private server starts from wherever Python runs: a script, `python -c`, a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import alive, descendants, python, wait_until

# No `if __name__ == "__main__"`, a function of the script's own, and a module beside the script
# that is named like one of the standard library's.
SCRIPT = """
import numpy as np
from augclient import Consumer
import beside

def twice(picture):
    return picture * beside.FACTOR

consumer = Consumer(np.ones((8, 4, 4, 3), np.uint8), batch_size=4, function=twice, workers=2)
print(consumer.get(0, 0).x.max())
"""


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("FACTOR = 2")
    (tmp_path / "random.py").write_text("raise ImportError('the user has a random.py of his own')")
    (tmp_path / "script.py").write_text("import sys; p = sys.path.pop(0)\nimport random\n"
                                        "sys.path.insert(0, p)\n" + SCRIPT)  # fmt: skip
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["-c", "-"])
def test_a_program_without_a_file(how: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("FACTOR = 3")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT] if how == "-c" else [sys.executable, "-"],
        input=None if how == "-c" else SCRIPT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3.0\n"), done.stderr


def test_a_notebook(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    (tmp_path / "beside.py").write_text("FACTOR = 5")
    cells = [SCRIPT, "consumer.get(3, 1).x.max()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    with client.setup_kernel():
        kernel = client.km.provisioner.pid
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        below = descendants(kernel)
        assert len(below) >= 4
    assert "5.0" in str(notebook.cells[0].outputs)
    assert "5.0" in str(notebook.cells[1].outputs)
    wait_until(lambda: not any(alive(pid) for pid in below), "the notebook's server to end")


def test_workers_never_import_keras_or_tensorflow() -> None:
    program = (
        "import numpy as np, sys\nfrom augclient import Consumer\n"
        "def loaded(picture):\n"
        "    import sys\n"
        "    heavy = {'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
        "    return picture\n"
        "c = Consumer(np.ones((8, 4, 4, 3), np.uint8), batch_size=4, function=loaded)\n"
        "print(c.get(0, 0).x.max())"
    )
    done = python(program)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


def test_a_function_that_imports_a_framework_works_and_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("ONE = 1")  # stands in for the real one's seconds
    program = (
        "import numpy as np\nfrom augclient import Consumer\nimport jax\n"
        "def plus(picture):\n    return picture + jax.ONE\n"
        "c = Consumer(np.ones((8, 4, 4, 3), np.uint8), batch_size=4, function=plus)\n"
        "print(c.get(0, 0).x.max())"
    )
    done = python(program, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
    assert "imports jax, in every worker" in done.stderr
