"""The server's side of all consumers: who says what, opens what, and who is dropped.

Sockets stay outside: frames come in with an identity, and go out through a function. Whatever one
consumer says or does ends in an answer to it alone.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from augproto.codec import decode, encode
from augproto.errors import (
    AugError,
    ConfigError,
    LocalProtocolError,
    NotAllowed,
    RemoteProtocolError,
    SessionLost,
)
from augproto.faults import fault_of
from augproto.messages import (
    MAX_BAD,
    VERSION,
    Announce,
    AreFiles,
    AskStatus,
    Bad,
    Bye,
    Close,
    Define,
    Enlist,
    Fault,
    Filled,
    Forget,
    Heartbeat,
    Hello,
    Message,
    Offer,
    Open,
    Place,
    Status,
    Upload,
    Walk,
    Want,
    Welcome,
)
from augproto.ring import MAX_SLOTS
from augproto.session import Role, Session, State
from augproto.spec import HANDED, MAX_EPOCH, Spec
from augserver import shipping
from augserver.config import Config
from augserver.conversation import Conversation, Ringed, open_stream, roots_of, spec_of
from augserver.crew import Crew
from augserver.datasets.arrays import ArrayDataset
from augserver.datasets.handed import HandedStore
from augserver.datasets.looking import Lookout
from augserver.datasets.store import DatasetStore
from augserver.dispatcher import Dispatcher
from augserver.memory import Memory
from augserver.remotes import Remotes

#: Seconds of silence after which a conversation that has opened nothing is forgotten.
GREETING = 5.0
#: Bad samples that are remembered; whoever has more of them knows enough.
MOST_BAD = 10_000

#: Said to all of a former server's consumers, who then greet: no matter for the log.
_UNKNOWN = "this server does not know you: say hello again"

_log = logging.getLogger("augserver.server")


class Consumers:
    """All conversations of a server.

    Args:
        config: What is served, and to how many.
        dispatcher, crew: Whom an opened, wanted or dropped stream concerns.
        wake: Ends the loop's wait; called when a dataset was loaded.
        send: Puts frames on the wire to the consumer of that identity, without waiting; tells
            whether they got there.
        remotes: Whom an opened or dropped stream concerns, too.
    """

    def __init__(
        self,
        config: Config,
        dispatcher: Dispatcher,
        crew: Crew,
        wake: Callable[[], None],
        send: Callable[..., bool],
        remotes: Remotes,
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._crew = crew
        self._send = send
        self._remotes = remotes
        self._conversations: dict[bytes, Conversation] = {}
        self._by_stream: dict[int, Conversation] = {}
        self._abandoned: list[Future[ArrayDataset]] = []
        self._bad: dict[tuple[str, int], Bad] = {}
        self._next_stream = 1
        self._memory = Memory(
            most=config.max_total_bytes, workers=config.workers, private=config.private
        )
        self.datasets = DatasetStore(self._memory, wake, config.cache_bytes, private=config.private)
        self._handed = HandedStore(self._memory, self.datasets.submit, config)
        self._lookout = Lookout(config, wake)

    # -- what consumers say ---------------------------------------------------------------------

    def take(self, identity: bytes, frame: bytes) -> None:
        """Take a frame, whatever is in it."""
        now = time.monotonic()
        conversation = self._conversations.get(identity)
        fresh = conversation is None
        if conversation is None:
            conversation = Conversation(identity, Session(Role.SERVER, now))
        try:
            if fresh:
                self._check_first(frame)
            message = conversation.session.receive(frame, now)
            self._conversations[identity] = conversation
            self._answer(conversation, message)
        except AugError as error:
            level = logging.DEBUG if str(error) == _UNKNOWN else logging.INFO
            _log.log(level, "%s: refused: %s", conversation.program or "a consumer", error)
            # The conversation, if there is one, goes on: a bad frame harms nobody but itself.
            self._send(identity, encode(fault_of(error)))
        except Exception as error:  # a hole in what is checked harms nobody else either
            _log.exception("%s: a frame met an error", conversation.program or "a consumer")
            text = f"the server could not take this: {type(error).__name__}: {error}"
            self._send(identity, encode(fault_of(RemoteProtocolError(text))))

    def _check_first(self, frame: bytes) -> None:
        # Some that have opened nothing, health checks among them, may come on top.
        if len(self._conversations) >= 2 * self._config.max_consumers + 64:
            raise ConfigError("this server has too many conversations (see max_consumers)")
        first = decode(frame)
        if isinstance(first, Enlist):
            raise NotAllowed(
                "this address is for consumers (listen); workers dial one of the server's "
                "`listen_workers`"
            )
        if not isinstance(first, Hello):
            raise SessionLost(_UNKNOWN)

    def _answer(self, conversation: Conversation, message: Message) -> None:
        match message:
            case Hello():
                shown = "".join(c if c.isprintable() else "?" for c in message.program[:200])
                conversation.program = f"{shown} (pid {message.pid})"
                door = self._handed.door
                self._say(conversation, Welcome(VERSION, os.getpid(), self._config.lease, door))
            case Offer() | Upload() | Filled():
                self._hand_over(conversation, message)
            case Walk() | AreFiles():
                self._look(conversation, message)
            case Open():
                self._open(conversation, message)
            case Want():
                self._want(conversation, message)
            case Heartbeat():
                self._say(conversation, Heartbeat())
            case AskStatus():
                self._say(conversation, self.status())
            case Close():
                self.drop(conversation)

    def _hand_over(self, conversation: Conversation, message: Offer | Upload | Filled) -> None:
        try:
            if isinstance(message, Offer):
                self._check_number(conversation)
            self._handed.take(conversation.identity, message)
        except AugError as error:
            self._say(conversation, fault_of(error))
        self._answer_late()
        conversation.hands = self._handed.knows(conversation.identity)

    def _look(self, conversation: Conversation, message: Walk | AreFiles) -> None:
        try:
            self._lookout.take(conversation.identity, message)
        except AugError as error:
            self._say(conversation, fault_of(error))

    def _answer_late(self) -> None:
        """Tell who waits for what took its time."""
        for who, answer in [*self._handed.answers(), *self._lookout.answers()]:
            conversation = self._conversations[who]
            conversation.hands = self._handed.knows(who)
            said = fault_of(answer) if isinstance(answer, Exception) else answer
            self._say(conversation, said)

    def _check_number(self, conversation: Conversation) -> None:
        most = self._config.max_consumers
        opens = sum(c.opens for c in self._conversations.values() if c is not conversation)
        if opens + len(self._abandoned) >= most:
            raise ConfigError(
                f"this server serves at most {most} consumers at once (max_consumers); close one"
            )

    def _check_described(self, conversation: Conversation, wish: Open) -> None:
        most = self._config.max_streams
        if wish.spec is None or most is None or self._config.private:
            return
        others = [c for c in self._conversations.values() if c is not conversation]
        if sum(c.opens and c.describes for c in others) >= most:
            names = ", ".join(sorted(self._config.streams)) or "none"
            raise ConfigError(
                f"open: this server has at most {most} streams that consumers describe themselves "
                f"open at once (max_streams); wait for one to be closed, or take one of its "
                f"config (stream=), which are: {names}"
            )

    def _open(self, conversation: Conversation, wish: Open) -> None:
        handed = self._handed.of(conversation.identity)
        try:
            self._check_number(conversation)
            self._check_described(conversation, wish)
            spec = spec_of(wish, self._config, handed[0] if handed is not None else None)
        except AugError as error:
            self._say(conversation, fault_of(error))
            return
        conversation.wish = (wish, spec)
        conversation.describes = wish.spec is not None
        roots = roots_of(wish, self._config)
        if roots is not None and handed is not None and spec.data[0].startswith(HANDED):
            conversation.loading = self.datasets.join(handed[1], spec, roots)
        else:
            conversation.loading = self.datasets.acquire(spec, roots)
        self.open_loaded()

    def open_loaded(self) -> None:
        """Open the streams whose datasets are there, and answer who hands over or looks."""
        self._answer_late()
        for abandoned in [future for future in self._abandoned if future.done()]:
            self._abandoned.remove(abandoned)
            if abandoned.exception(0) is None:
                self.datasets.release(abandoned.result(0))
        for conversation in list(self._conversations.values()):
            loading, wish = conversation.loading, conversation.wish
            if loading is not None and wish is not None and loading.done():
                conversation.loading = conversation.wish = None
                try:
                    dataset = loading.result(0)
                except Exception as error:  # what a file may do, it does to its consumer alone
                    self._say(conversation, fault_of(error))
                    continue
                try:
                    self._open_stream(conversation, *wish, dataset)
                except Exception as error:  # what a spec may do, too
                    self.datasets.release(dataset)
                    self._say(conversation, fault_of(error))

    def _open_stream(
        self, conversation: Conversation, wish: Open, spec: Spec, dataset: ArrayDataset
    ) -> None:
        ringed = open_stream(self._next_stream, wish, spec, dataset, self._config, self._memory)
        self._next_stream += 1
        conversation.ringed = ringed
        opened = ringed.opened
        self._by_stream[opened.stream] = conversation
        self._dispatcher.open(
            opened.stream, slots=opened.slots, steps=opened.steps, span=opened.span
        )
        self._crew.tell_all(ringed.define)
        self._remotes.open(ringed, time.monotonic())
        self._say(conversation, opened)

    def _want(self, conversation: Conversation, message: Want) -> None:
        assert conversation.ringed is not None, "the session lets nobody want before Opened"
        conversation.holds = True
        beyond = [run.epoch for run in message.runs if run.epoch > MAX_EPOCH]
        if beyond:
            raise RemoteProtocolError(
                f"Want.runs: got epoch {beyond[0]}; wanted at most {MAX_EPOCH}, the last one"
            )
        if len(message.released) > MAX_SLOTS:
            raise RemoteProtocolError(
                f"Want.released: got {len(message.released)}; wanted at most {MAX_SLOTS}, which is "
                "as many as a ring has slots"
            )
        stream = conversation.ringed.opened.stream
        self._dispatcher.want(stream, message.runs, message.seen, message.scripts)
        for stale in self._dispatcher.release(stream, message.released):
            _log.debug("%s: %s", conversation.program, stale)

    # -- what consumers are told ----------------------------------------------------------------

    def tell(self, stream: int, message: Message | None) -> None:
        """Tell a stream's consumer, if there is anything to tell and anybody to hear it."""
        conversation = self._by_stream.get(stream)
        if message is None or conversation is None or conversation.ringed is None:
            return
        if not conversation.ringed.opened.frames:
            self._say(conversation, message)
        elif not self._ship(conversation, conversation.ringed, message):
            # Whoever shares no memory has lost what was not sent. It opens anew if it lives.
            _log.info("%s takes nothing any more: its ring is freed", conversation.program)
            self.drop(conversation)

    def _ship(self, conversation: Conversation, ringed: Ringed, message: Message) -> bool:
        """Say it to a consumer that shares no memory, after the batches that it names; whether all
        of it got on its way."""
        entries = message.entries if isinstance(message, Announce) else ()
        now = time.monotonic()
        for piece, data in shipping.pieces(ringed.opened.stream, ringed.ring, entries):
            if not self._send(conversation.identity, conversation.session.send(piece, now), data):
                return False
        return self._say(conversation, message)

    def _say(self, conversation: Conversation, message: Message) -> bool:
        """Whether it got on its way."""
        try:
            frame = conversation.session.send(message, time.monotonic())
        except LocalProtocolError as error:
            _log.error("%s: %s", conversation.program, error)
            return False
        return self._send(conversation.identity, frame)

    def status(self) -> Status:
        """How the server is."""
        cached = self.datasets.cached()
        return Status(
            streams=tuple(sorted(self._config.streams)),
            consumers=len(self._by_stream),
            workers_alive=self._crew.alive,
            workers_wanted=self._crew.wanted,
            batches=self._dispatcher.batches,
            restarts=self._crew.restarts,
            bad_samples=len(self._bad),
            bad=tuple(itertools.islice(self._bad.values(), MAX_BAD)),
            cached_samples=cached.samples,
            cache_places=cached.places,
            cache_bytes=cached.size,
            remote=self._remotes.working,
            by_frames=sum(
                c.ringed is not None and c.ringed.opened.frames for c in self._by_stream.values()
            ),
        )

    def note_bad(self, stream: int, bad: Iterable[Bad]) -> None:
        """Remember samples that batches had to do without, each once, and say so."""
        for sample in bad:
            conversation = self._by_stream.get(stream)
            if conversation is None or conversation.ringed is None or len(self._bad) >= MOST_BAD:
                return
            key = (conversation.ringed.opened.fingerprint, sample.sample)
            if key not in self._bad:
                self._bad[key] = sample
                # A private server's program is told by its own consumer.
                if not self._config.private and len(self._bad) <= MAX_BAD:
                    where = f" ({sample.path})" if sample.path else ""
                    _log.warning("bad sample %d%s: %s", sample.sample, where, sample.reason)

    def definitions(self) -> list[Define]:
        """Of all open streams, for a worker that is new."""
        return [c.ringed.define for c in self._by_stream.values() if c.ringed is not None]

    def being_written(
        self, held: list[tuple[int, Place]]
    ) -> tuple[tuple[int, Place], int | None] | None:
        """Which of these a dead worker was writing, and the sample that it was at, if it said.

        That is a slot claimed at the sequence it was given. The header is evidence for the blame
        alone; the slot is free either way.
        """
        for stream, place in held:
            conversation = self._by_stream.get(stream)
            if conversation is not None and conversation.ringed is not None:
                ring = conversation.ringed.ring
                if ring.being_written(place.slot, place.sequence):
                    return (stream, place), ring.noted(place.slot)
        return None

    def path(self, stream: int, sample: int) -> str:
        """Of the file of a stream's sample; empty where it has none, or none so numbered."""
        conversation = self._by_stream.get(stream)
        if conversation is None or conversation.ringed is None:
            return ""
        return conversation.ringed.recipe.path(sample)

    # -- how consumers go -----------------------------------------------------------------------

    def drop_dead_and_silent(self, now: float) -> None:
        """Free the rings of the dead, retire those of the silent."""
        for conversation in list(self._conversations.values()):
            who = conversation.program or "a consumer"
            if conversation.dead:
                _log.info("%s is dead: its ring is freed", who)
                self.drop(conversation)
            elif now - conversation.session.heard_at > self._patience(conversation):
                # It may come back and look at what it leased, so nothing of that ring is ever
                # written again: it is unlinked and lives on in the consumer's own mapping.
                if conversation.opens:
                    _log.warning("%s is silent: its ring is retired", who)
                self.drop(conversation)

    def _patience(self, conversation: Conversation) -> float:
        """Seconds of silence; who has opened nothing loses nothing by greeting again."""
        return self._config.lease if conversation.opens else min(self._config.lease, GREETING)

    def retire(self, stream: int, why: str) -> None:
        """Take a stream's ring out of use; its consumer opens another and goes on where it was."""
        conversation = self._by_stream[stream]
        _log.warning("%s: its ring is retired: %s", conversation.program, why)
        self._say(conversation, Fault("SessionLost", f"this ring is retired ({why}): open again"))
        self.drop(conversation)

    def drop(self, conversation: Conversation) -> None:
        """Forget a consumer: closed, dead or silent. Its memory is unlinked, never written."""
        self._conversations.pop(conversation.identity, None)
        if conversation.loading is not None:
            self._abandoned.append(conversation.loading)
        self._handed.leave(conversation.identity)
        self._lookout.leave(conversation.identity)
        if conversation.ringed is None:
            return
        ringed, conversation.ringed = conversation.ringed, None
        stream = ringed.opened.stream
        del self._by_stream[stream]
        self._dispatcher.close(stream)
        self._crew.tell_all(Forget(stream))
        self._remotes.close_stream(stream)
        ringed.segment.close()
        self.datasets.release(ringed.dataset)

    def close(self, reason: str) -> None:
        """Say goodbye to everybody and give everything back."""
        for conversation in list(self._conversations.values()):
            if conversation.session.state not in (State.IDLE, State.CLOSED):
                self._say(conversation, Bye(reason))
            self.drop(conversation)
        self._lookout.close()
        self.datasets.close()
        self._memory.close()
