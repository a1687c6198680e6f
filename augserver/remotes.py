"""Who has dialled in: the workers on other hosts, as long as they are heard.

A worker says who it is every second, whole each time, so nothing is lost where a message is. Known
by its own name, it may come by another connection at any moment. Silent for longer than its lease,
or unreachable, it has left: it never writes a slot, so what it held is given to others at once.
What it sends afterwards harms nothing, and when it is heard again it begins anew.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence

from augproto.codec import decode, encode
from augproto.errors import (
    AugError,
    ConfigError,
    NotAllowed,
    RemoteProtocolError,
    VersionMismatch,
)
from augproto.faults import fault_of
from augproto.messages import (
    VERSION,
    Bad,
    Bye,
    Dismiss,
    Enlist,
    Enlisted,
    Forget,
    Hello,
    Message,
    Piece,
    Probed,
    Resign,
    Working,
)
from augserver.afar import FIRST_REMOTE
from augserver.config import Config
from augserver.conversation import Ringed
from augserver.dispatcher import Dispatcher
from augserver.feeder import Feeder, unsuited
from augserver.losses import Loss
from augserver.remote import House, Presence, Remote
from augserver.sharing import Assignment
from augserver.standing import Standings

#: Seconds for which a worker that has left is remembered, and an heir may tell of what it died.
REMEMBERED = 60.0
#: Bytes a second that a link is believed to carry at least, before its worker is called stuck.
LEAST_RATE = 1 << 20
#: The first batch may have kernels to compile: so many times the deadline.
FIRST_TIMES = 3
#: Seconds for which the loop may have been away; what was silent meanwhile was not heard, no more.
AWAY = 1.0
#: Connections whose nonsense is remembered, so that each is complained of once.
MOST_COMPLAINTS = 10_000

_NAME = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger("augserver.server")


class Remotes:
    """All remote workers of a server.

    Args:
        config: How many, and how long they may be silent.
        dispatcher: Whom a worker that comes and goes concerns.
        send: Puts frames on the wire to that identity, without waiting; tells whether they got
            there.
        wake: Ends the loop's wait; called when inputs were read.
        ask: Has a local worker probe a stream.
        tell: Tells a stream's consumer.
        note_bad: Is told of samples that batches had to do without.
    """

    def __init__(
        self,
        config: Config,
        dispatcher: Dispatcher,
        send: Callable[..., bool],
        wake: Callable[[], None],
        ask: Callable[[int, int], None],
        tell: Callable[[int, Message | None], None],
        note_bad: Callable[[int, Iterable[Bad]], None],
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._send = send
        self._feeder = Feeder(wake)
        self._standings = Standings(dispatcher.idlest, ask, dispatcher.admit)
        self._house = House(dispatcher, self._standings, self._feeder, tell, note_bad, self._say)
        self._tell = tell
        self._by_name: dict[str, Remote] = {}
        self._by_number: dict[int, Remote] = {}
        self._by_identity: dict[bytes, Remote] = {}
        self._ringed: dict[int, Ringed] = {}
        self._next = FIRST_REMOTE + 1
        self._complained: set[bytes] = set()
        self._looked: float | None = None

    # -- what they say --------------------------------------------------------------------------

    def take(self, identity: bytes, frames: Sequence[bytes | memoryview], now: float) -> None:
        """Take a message, whatever is in it."""
        try:
            message = decode(bytes(frames[0])) if frames else None
            if len(frames) != 1 + isinstance(message, Piece):
                raise RemoteProtocolError(
                    f"a message of {len(frames)} frames; wanted one, and one more after a Piece"
                )
            if isinstance(message, Enlist):
                self._enlist(identity, message, now)
                return
            if isinstance(message, Hello):
                raise NotAllowed(
                    "this address is for workers (listen_workers); consumers connect to one of "
                    "the server's `listen`"
                )
            remote = self._by_identity.get(identity)
            if remote is None or remote.presence is not Presence.PRESENT or message is None:
                return  # of a time before this server, or before it was given up: it enlists anew
            remote.heard = now
            if isinstance(message, Resign):
                self._leave(remote, f"ends: {_shown(message.reason)}", Presence.LEFT, now)
            else:
                payload = memoryview(frames[1]) if len(frames) > 1 else None
                remote.take(message, payload, now)
        except AugError as error:
            self._complain(identity, str(error))
            self._send(identity, encode(fault_of(error)))
        except Exception as error:  # a hole in what is checked harms nobody else either
            _log.exception("a remote worker's message met an error")
            text = f"the server could not take this: {type(error).__name__}: {error}"
            self._send(identity, encode(fault_of(RemoteProtocolError(text))))

    def _complain(self, identity: bytes, why: str) -> None:
        if identity in self._complained:
            return
        if len(self._complained) >= MOST_COMPLAINTS:
            self._complained.clear()
        self._complained.add(identity)
        remote = self._by_identity.get(identity)
        _log.warning("%s: refused: %s", remote or "a stranger at the door for workers", why)

    def _enlist(self, identity: bytes, said: Enlist, now: float) -> None:
        if said.version[:1] != VERSION[:1]:
            raise VersionMismatch(
                f"this server speaks protocol {_dotted(VERSION)}, the worker "
                f"{_dotted(said.version)}; both need the same first number: install the same "
                "version of augserver"
            )
        if not _NAME.fullmatch(said.worker):
            raise RemoteProtocolError(
                f"Enlist.worker: got {said.worker!r:.80}; wanted 32 hexadecimal digits"
            )
        remote = self._by_name.get(said.worker)
        if remote is not None and remote.presence is Presence.DISMISSED:
            self._send(identity, encode(Dismiss("this process has been dismissed: end it")))
            return
        if said.heir:
            self._mourn(said, now)
        present = remote is not None and remote.presence is Presence.PRESENT
        if remote is not None and present and remote.identity == identity:
            if said.begun > remote.begun:
                remote.begun, remote.moved = said.begun, now
            remote.heard = now
            self._say(remote, encode(Enlisted(VERSION, self._config.worker_lease, False)))
            return
        if remote is not None and present:
            self._leave(remote, "comes by another connection", Presence.LEFT, now)
        other = self._by_identity.get(identity)
        if other is not None and other is not remote and other.presence is Presence.PRESENT:
            self._leave(other, "goes by another name", Presence.LEFT, now)
        if len(self._present()) >= self._config.max_workers:
            raise ConfigError(
                f"this server has {self._config.max_workers} remote workers, as many as it takes "
                "(max_workers)"
            )
        self._join(identity, said, now)

    def _join(self, identity: bytes, said: Enlist, now: float) -> None:
        remote = self._by_name.get(said.worker)
        if remote is None:
            remote = Remote(self._house, said.worker, self._next, identity)
            self._by_name[said.worker] = self._by_number[self._next] = remote
            self._next += 1
        back = " again" if remote.presence is Presence.SILENT else ""
        self._by_identity.pop(remote.identity, None)
        self._by_identity[identity] = remote
        remote.identity, remote.presence = identity, Presence.PRESENT
        remote.host, remote.pid = _shown(said.host)[:200], said.pid
        remote.machine, remote.begun = _shown(said.machine), said.begun
        remote.origin = _shown(said.origin)[:200]
        remote.heard = remote.moved = now
        remote.forget()
        self._dispatcher.join(remote.number, remote=True)
        _log.info("%s is there%s: %s", remote, back, remote.machine)
        if not self._say(remote, encode(Enlisted(VERSION, self._config.worker_lease, True))):
            return
        to_probe = self._standings.join(remote.number, str(remote))
        for stream, ringed in list(self._ringed.items()):
            self._introduce(remote, ringed, now, probe=stream in to_probe)

    def _introduce(self, remote: Remote, ringed: Ringed, now: float, *, probe: bool) -> None:
        if probe and remote.presence is Presence.PRESENT:
            remote.define(ringed)
            remote.probe(ringed, now)
            remote.send_ready()
            self._standings.ask()

    def _mourn(self, said: Enlist, now: float) -> None:
        """A successor tells of what a worker has died: over the first thing that it owed."""
        dead = self._by_name.get(said.heir)
        if dead is None or dead.mourned:
            return
        cause = _shown(said.cause) or "ended"
        if dead.presence is Presence.PRESENT:
            self._leave(dead, cause, Presence.LEFT, now)
        dead.mourned = True
        if dead.lost and now - dead.left <= REMEMBERED:
            stream, place = dead.lost[0]
            loss = Loss(f"on {dead.host} {cause}", None, said.traceback)
            _log.warning(
                "%s %s; stream %d, epoch %d, step %d is suspected%s",
                dead, cause, stream, place.epoch, place.step,
                f"\n{said.traceback}" if said.traceback else "",
            )  # fmt: skip
            for of, fault in self._dispatcher.blame(stream, place, loss):
                self._tell(of, fault)

    # -- what they are told ---------------------------------------------------------------------

    def open(self, ringed: Ringed, now: float) -> None:
        """A stream is open: all are to probe it."""
        stream = ringed.opened.stream
        self._ringed[stream] = ringed
        why = unsuited(ringed.recipe) if self._config.listen_workers else None
        self._standings.open(stream, why)
        for remote in self._present():
            self._introduce(remote, ringed, now, probe=why is None)

    def close_stream(self, stream: int) -> None:
        """A stream is over."""
        self._ringed.pop(stream, None)
        self._standings.close(stream)
        for remote in self._present():
            remote.drop(stream)
            self._say(remote, encode(Forget(stream)))

    def assign(self, assignment: Assignment, now: float) -> None:
        """Give one of them an assignment; what it is made of is read first."""
        remote = self._by_number[assignment.worker]
        ringed = self._ringed.get(assignment.stream)
        if remote.presence is Presence.PRESENT and ringed is not None:
            remote.assign(assignment, ringed, now)
            remote.send_ready()

    def send_ready(self) -> None:
        """Send what was read since."""
        for remote in self._present():
            remote.send_ready()

    def referred(self, worker: int, probed: Probed) -> None:
        """A local worker has probed a stream."""
        self._standings.referred(worker, probed)

    def local_left(self, worker: int) -> None:
        """A local worker is gone."""
        self._standings.local_left(worker)

    def _say(self, remote: Remote, *frames: bytes | memoryview) -> bool:
        if self._send(remote.identity, *frames):
            return True
        if remote.presence is Presence.PRESENT:
            why = "cannot be reached: its process or connection is gone, or it does not read"
            self._leave(remote, why, Presence.LEFT, self._looked or remote.heard)
        return False

    # -- how they go ----------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Look for the silent, the stuck and the unreachable; to be called now and then."""
        away = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        for remote in self._present():
            if away > AWAY:  # it was this process that did not listen
                remote.heard += away
                remote.moved += away
            if now - remote.heard > self._config.worker_lease:
                why = f"was silent for {self._config.worker_lease:g} s"
                self._leave(remote, why, Presence.SILENT, now)
            elif remote.holds and now - remote.moved > self._patience(remote):
                why = f"got on with nothing for more than {self._patience(remote):.0f} s"
                self._say(remote, encode(Dismiss(why)))
                self._leave(remote, why, Presence.DISMISSED, now)
            elif remote.holds:  # a connection whose other end is gone shows where something is sent
                self._say(remote, encode(Enlisted(VERSION, self._config.worker_lease, False)))
        gone = [
            remote
            for remote in self._by_name.values()
            if remote.presence is not Presence.PRESENT and now - remote.left > REMEMBERED
        ]
        for remote in gone:
            del self._by_name[remote.name], self._by_number[remote.number]
            if self._by_identity.get(remote.identity) is remote:
                del self._by_identity[remote.identity]
        self._standings.ask()

    def _patience(self, remote: Remote) -> float:
        deadline = self._config.worker_deadline * (1 if remote.proven else FIRST_TIMES)
        return deadline + remote.supply.under_way / LEAST_RATE

    def _leave(self, remote: Remote, why: str, how: Presence, now: float) -> None:
        remote.presence, remote.left, remote.mourned = how, now, False
        remote.lost = [
            at for at in self._dispatcher.held(remote.number)
            if self._dispatcher.owns(remote.number, *at)
        ]  # fmt: skip
        others = f"; {len(remote.lost)} batches go to others" if remote.lost else ""
        _log.log(
            logging.INFO if how is Presence.LEFT and not remote.lost else logging.WARNING,
            "%s %s%s", remote, why, others,
        )  # fmt: skip
        # A cable that was pulled is nobody's fault, and neither is a host that was switched off.
        self._dispatcher.leave(remote.number, guess=False)
        self._standings.leave(remote.number)
        remote.forget()

    def _present(self) -> list[Remote]:
        return [r for r in self._by_name.values() if r.presence is Presence.PRESENT]

    @property
    def working(self) -> tuple[Working, ...]:
        """A row for each, also of those that have fallen silent a short time ago."""
        rows = []
        for remote in self._by_name.values():
            if remote.presence is Presence.PRESENT:
                state, remark = self._standings.state(remote.number)
            elif remote.presence is Presence.SILENT:
                state, remark = "silent", ""
            else:
                continue
            number = remote.number - FIRST_REMOTE
            rows.append(
                Working(
                    number, remote.host, remote.pid, state, remote.batches, remark, remote.origin
                )
            )
        return tuple(rows)

    def close(self, reason: str) -> None:
        """Say goodbye to all of them."""
        for remote in self._present():
            self._send(remote.identity, encode(Bye(reason)))
        self._feeder.close()


def _shown(text: str) -> str:
    """What somebody else says, for a line of the log."""
    return "".join(c if c.isprintable() else "?" for c in text[:1000])


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
