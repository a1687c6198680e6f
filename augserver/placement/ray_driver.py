"""A program of its own, which talks to Ray: `... ray_driver PARENT ADDRESS SECONDS FLEET`.

Its parent (`ray_workers`) gives it time, and ends it when that is over: of what Ray's client waits
for, not everything has a deadline. It prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from augserver.forkserver import die_with_parent
from augserver.placement.fleet import Fleet, Placed
from augserver.placement.ray_actor import RayWorker

NAMESPACE = "augserver"
#: Seconds for a worker's answer, and for one to say goodbye.
_ANSWER_SECONDS, _GOODBYE_SECONDS = 2.0, 5.0
#: Seconds between two looks at those that are not enlisted yet.
_BETWEEN = 0.2


def scale(fleet: Fleet) -> None:
    """Have as many workers of it as are wanted, told what it says: no more, no fewer, no others."""
    assert fleet.workers is not None
    wanted = {fleet.name_of(number) for number in range(fleet.workers)}
    present = set(_names(fleet))
    _end(sorted(present - wanted))
    make = ray.remote(RayWorker)
    for number in range(fleet.workers):
        name = fleet.name_of(number)
        if name in present:
            continue
        make.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=fleet.num_cpus,
            resources=dict(fleet.resources),
            max_restarts=-1,
            scheduling_strategy="SPREAD",  # the loss of a node is the loss of as few as can be
            max_concurrency=2,
        ).remote(fleet.to_word(), number)


def _names(fleet: Fleet) -> list[str]:
    """Of all its workers, whatever they were told, in the order of their numbers."""
    found = {name: fleet.number_of(name) for name in ray.util.list_named_actors()}
    numbered = [(number, name) for name, number in found.items() if number is not None]
    return [name for _, name in sorted(numbered)]


def _end(names: list[str]) -> None:
    actors = [actor for name in names if (actor := _actor(name)) is not None]
    goodbyes = [actor.end.remote() for actor in actors]
    if goodbyes:  # one that is not placed, or lost, never answers
        ray.wait(goodbyes, num_returns=len(goodbyes), timeout=_GOODBYE_SECONDS)
    for actor in actors:
        ray.kill(actor, no_restart=True)


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:  # gone since
        return None


def placed(fleet: Fleet) -> list[Placed]:
    """What has become of each."""
    asked = []
    for name in _names(fleet):
        actor = _actor(name)
        if actor is not None:
            asked.append((fleet.number_of(name) or 0, actor.state.remote()))
    answers = [answer for _, answer in asked]
    if answers:
        ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_SECONDS)
    return [_heard(fleet, number, answer) for number, answer in asked]


def _heard(fleet: Fleet, number: int, answer: Any) -> Placed:
    try:
        return Placed(**ray.get(answer, timeout=0))
    except GetTimeoutError:
        remark = f"no node has room for it yet{_wants(fleet)}, or its node does not answer"
        return Placed(number, "waiting", remark=remark)
    except ActorUnavailableError:
        return Placed(number, "lost", remark="its node or process is gone; Ray starts it again")
    except RayError as error:
        return Placed(number, "failed", remark=_last_line(error))


def _wants(fleet: Fleet) -> str:
    if fleet.workers is None:  # whoever only asks has not said it
        return ""
    amounts = {"CPU": fleet.num_cpus, **fleet.resources}
    return f" (it wants {', '.join(f'{amount:g} {name}' for name, amount in amounts.items())})"


def _last_line(error: Exception) -> str:
    if "No module named 'augserver" in str(error):
        return "its node has no augserver: pip install 'augserver[ray]' there"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else type(error).__name__


def main(parent: int, address: str, wait: float, word: str) -> None:
    """Do what is wanted, wait for it to have happened, and print what has.

    Args:
        parent: Who has started this, and is to be outlived by nothing that is done here.
    """
    die_with_parent(parent)
    fleet = Fleet.of_word(word)
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    end = time.monotonic() + wait
    if fleet.workers is not None:
        scale(fleet)
    found = placed(fleet)
    while fleet.workers is not None and time.monotonic() < end:
        if len(found) == fleet.workers and all(p.state in ("enlisted", "failed") for p in found):
            break
        time.sleep(_BETWEEN)
        found = placed(fleet)
    print(json.dumps([dataclasses.asdict(each) for each in found]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4])
