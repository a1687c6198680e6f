"""A server's figures, as Prometheus fetches them while somebody trains."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import numpy as np
from processes import python, serving, wait_until

from augclient import Consumer

SAMPLES, BATCH = 96, 8


def _figure(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else float("nan")


def test_a_server_s_figures_follow_its_consumers(tmp_path: Path) -> None:
    x = np.zeros((SAMPLES, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "zeros.npz", x=x, y=np.zeros(SAMPLES))
    config = tmp_path / "augserver.toml"
    config.write_text(f'[server]\nworkers = 1\nmetrics = "127.0.0.1:0"\nroots = ["{tmp_path}"]\n')
    address = f"ipc://{tmp_path}/ctl.sock"
    with serving(address, "--config", str(config)) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = re.fullmatch(r"figures for Prometheus at (http://127\.0\.0\.1:\d+/metrics)\n", said)
        assert found, said
        url = found[1]
        wait_until(
            lambda: _figure(url, 'augserver_workers{where="local"}') == 1, "the worker is there"
        )
        assert _figure(url, "augserver_batches_total") == 0
        with Consumer(
            data=tmp_path / "zeros.npz", x="x", batch_size=BATCH, slots=4, address=address
        ) as consumer:
            assert sum(1 for _ in consumer.epochs(1)) == SAMPLES // BATCH
            wait_until(
                lambda: _figure(url, "augserver_batches_total") >= SAMPLES // BATCH,
                "its batches are counted",
            )
            assert _figure(url, 'augserver_consumers{memory="shared"}') == 1
            # It holds none and wants no more: nothing is left to do.
            wait_until(lambda: _figure(url, "augserver_backlog_batches") == 0, "no backlog")
        wait_until(lambda: _figure(url, 'augserver_consumers{memory="shared"}') == 0, "it has gone")


def test_where_no_figures_are_wanted_nothing_of_prometheus_is_even_imported() -> None:
    program = """
import sys
from augserver.config import Config
from augserver.server import Server
with Server(Config(workers=0)) as server:
    assert server.figures is None
    assert not [name for name in sys.modules if "prometheus" in name]
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
