"""What Ray runs on a node: an agent with one worker, as `augserver worker --workers 1` has.

The agent replaces a worker that dies, and tells the server of what; Ray replaces the agent, when
its process or its node is gone. Neither holds anything that matters.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
import threading
import time
from typing import Any

import ray

from augproto.errors import AugError, VersionMismatch
from augserver.agent import Agent
from augserver.dial import Orders
from augserver.placement.fleet import Fleet

#: Seconds for the agent to end.
_END_SECONDS = 3.0
#: Seconds before a process ends whose agent has failed: Ray starts the next one at once.
_PAUSE_SECONDS = 1.0

_log = logging.getLogger("augserver.ray")


class RayWorker:
    """The actor.

    Args:
        word: The fleet, as a word.
        number: Of this worker in it.
    """

    def __init__(self, word: str, number: int) -> None:
        logging.basicConfig(level=logging.INFO, format="augserver: %(message)s")
        self._fleet = Fleet.of_word(word)
        self._number = number
        self._node = f"{ray.util.get_node_ip_address()} ({socket.gethostname()})"
        self._agent: Agent | None = None
        self._ended = False
        self._error = ""
        # In one thread from beginning to end: what it starts dies with that.
        self._thread = threading.Thread(target=self._run, name="augserver-agent", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        fleet = self._fleet
        orders = Orders(fleet.server, fleet.allow_transforms, fleet.key, fleet.server_key)
        origin = f"Ray's worker {self._number} of {fleet.name}"
        try:
            _check_version(fleet.version)
            _ = orders.keys  # what is wrong with them is wrong for ever
            with Agent(orders, 1, origin) as agent:
                self._agent = agent
                if not self._ended:
                    agent.run()
        except AugError as error:
            # It would fail again: stay and say so, in the place of a loop of restarts.
            _log.error("%s", error)
            self._error = f"{type(error).__name__}: {error}"
        except Exception:
            _log.exception("the agent has failed; Ray starts another")
            time.sleep(_PAUSE_SECONDS)
            os._exit(1)

    def state(self) -> dict[str, Any]:
        """How it is, as the fields of a `Placed`."""
        placed: dict[str, Any] = {"number": self._number, "node": self._node, "pid": os.getpid()}
        pulse = self._agent.pulse if self._agent is not None else None
        if self._error:
            return placed | {"state": "failed", "remark": self._error}
        if pulse is None or not pulse.alive:
            remark = pulse.trouble if pulse is not None else ""
            return placed | {"state": "starting", "remark": remark}
        state = "enlisted" if pulse.enlisted else "dialling"
        return placed | {"state": state, "remark": pulse.trouble}

    def end(self) -> None:
        """Have the worker say goodbye, so that what it holds goes to others at once."""
        self._ended = True
        if self._agent is not None:
            self._agent.stop("Ray's fleet has no place for it any more")
        self._thread.join(_END_SECONDS)


def _check_version(wanted: str) -> None:
    here = importlib.metadata.version("augserver")
    if here != wanted:
        raise VersionMismatch(
            f"the node {socket.gethostname()} has augserver {here}, whoever asked for workers has "
            f"{wanted}: install the same version on both"
        )
