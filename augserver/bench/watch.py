"""How busy the processors are over time: what the notebook of 2017 drew as SysMonitor."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

#: Seconds between two looks.
INTERVAL = 0.25


@dataclass
class Usage:
    """What a watch saw: lists of equal length.

    Attributes:
        seconds: Since its start.
        cpu: Per cent of all cores.
        gpus: Per cent of each GPU, by its number; those that do not tell are left out.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    gpus: dict[int, list[float]] = field(default_factory=dict)

    def whole(self) -> Usage:
        """A copy without a last look that was not finished."""
        gpus = {n: list(seen) for n, seen in self.gpus.items()}
        length = min(map(len, (self.seconds, self.cpu, *gpus.values())))
        return Usage(
            self.seconds[:length], self.cpu[:length], {n: of[:length] for n, of in gpus.items()}
        )


class Watch:
    """Looks at CPU and GPU use in a thread of its own; a context manager.

    GPUs are watched where NVML answers, and left out otherwise.
    """

    def __init__(self) -> None:
        import psutil

        self._psutil: Any = psutil
        self._nvml, self._gpus = _nvml()
        self._seen = Usage(gpus={n: [] for n in self._gpus})
        self.usage = Usage()  # what was seen, once the block has ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="augserver-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _run(self) -> None:
        started = time.perf_counter()
        self._psutil.cpu_percent(None)  # this thread's next look is about the time from here
        while not self._stop.wait(INTERVAL):
            self._seen.seconds.append(time.perf_counter() - started)
            self._seen.cpu.append(float(self._psutil.cpu_percent(None)))
            for n, gpu in list(self._gpus.items()):
                try:
                    percent = float(self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
                except Exception:  # MIG slices and some virtual GPUs refuse; the others go on
                    del self._gpus[n], self._seen.gpus[n]
                else:
                    self._seen.gpus[n].append(percent)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(10 * INTERVAL + 5)
        self.usage = self._seen.whole()
        if self._nvml is not None:
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()


def _nvml() -> tuple[Any, dict[int, Any]]:
    """NVML and its devices by number; (None, {}) where there is neither library nor GPU."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no driver, no permission: then there is nothing to watch
        return None, {}
    devices = {}
    with contextlib.suppress(Exception):
        for n in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(Exception):  # one that has fallen off the bus
                devices[n] = nvml.nvmlDeviceGetHandleByIndex(n)
    return nvml, devices


def gpu_names() -> list[str]:
    """What GPUs there are, as NVML calls them."""
    nvml, gpus = _nvml()
    names = []
    for n, gpu in gpus.items():
        try:
            name = nvml.nvmlDeviceGetName(gpu)
        except Exception:
            name = f"GPU {n}, which does not tell its name"
        names.append(name.decode() if isinstance(name, bytes) else str(name))
    if nvml is not None:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()
    return names
