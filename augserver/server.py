"""The loop: sockets, dispatcher, supervisor, clock and signals meet here and nowhere else.

One thread, one wait. Everything that can happen wakes `zmq.Poller`: a consumer's message, a
worker's report, a worker's end, a dataset that was loaded, a signal, the program behind a private
server. Each turn takes what is there, lets the dispatcher decide, and sends what it decided.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import zmq

from augproto import segment as segments
from augproto.errors import (
    AugError,
    ConfigError,
    LocalProtocolError,
    RemoteProtocolError,
    SessionLost,
)
from augproto.faults import fault_of
from augproto.messages import (
    MAX_FRAME_BYTES,
    VERSION,
    AskStatus,
    Assign,
    Bye,
    Close,
    Done,
    Failed,
    Forget,
    Function,
    Heartbeat,
    Hello,
    Message,
    Open,
    Place,
    Ready,
    Status,
    Want,
    Welcome,
    decode,
    encode,
)
from augproto.session import Role, Session, State
from augserver import runtime
from augserver.config import Config
from augserver.conversation import Conversation, open_stream, spec_of, with_seeds
from augserver.crew import Crew
from augserver.datasets.arrays import ArrayDataset
from augserver.datasets.store import DatasetStore
from augserver.dispatcher import Dispatcher
from augserver.lifeline import Lifeline

#: How often (seconds) the dead, the silent and the stuck are looked for.
TICK = 0.25
#: Messages taken from the consumers' socket in one turn, so that workers get their turn too.
MESSAGES_PER_TURN = 256

_log = logging.getLogger("augserver.server")


class Server:
    """One augmentation server; a context manager around its processes, memory and sockets.

    Args:
        config: What to serve.
        lifeline: The program behind a private server; its end is this server's end.

    Raises:
        ConfigError: An address is taken or cannot be bound.
    """

    def __init__(self, config: Config, lifeline: Connection | None = None) -> None:
        self.config = with_seeds(config)
        self.addresses: list[str] = []
        self._stopping: str | None = None
        self._conversations: dict[bytes, Conversation] = {}
        self._by_stream: dict[int, Conversation] = {}
        self._dispatcher = Dispatcher()
        self._abandoned: list[Future[ArrayDataset]] = []
        self._next_stream = 1
        self._segments_named = 0
        self._name = f"{segments.PREFIX}{os.getuid()}-{os.getpid():x}{secrets.token_hex(3)}"
        self._ticked = 0.0
        runtime.sweep()
        segments.sweep()
        with contextlib.ExitStack() as started:
            folder = runtime.RuntimeFolder()
            started.callback(folder.close)
            self._wake_r, self._wake_w = socket.socketpair()
            self._wake_r.setblocking(False)
            self._wake_w.setblocking(False)
            started.callback(self._wake_r.close)
            started.callback(self._wake_w.close)
            self._poller = zmq.Poller()
            self._poller.register(self._wake_r.fileno(), zmq.POLLIN)
            self._datasets = DatasetStore(self._name_segment, self.wake)
            started.callback(self._datasets.close)
            self._socket = self._bind(folder, started)
            self._crew = Crew(self.config.workers, folder.path, self._poller)
            started.callback(self._crew.stop)
            started.callback(self._end_conversations)
            self._lifeline: Lifeline | None = None
            if lifeline is not None:
                self._lifeline = Lifeline(lifeline, self._datasets, self._crew)
                self._poller.register(lifeline.fileno(), zmq.POLLIN)
                self._lifeline.serving(self.addresses[0])
            self._resources = started.pop_all()

    def _bind(self, folder: runtime.RuntimeFolder, started: contextlib.ExitStack) -> Any:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        started.callback(context.destroy, linger=200)
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.LINGER, 200)
        router.setsockopt(zmq.SNDTIMEO, 0)
        listen = self.config.listen or (f"ipc://{folder.path / 'ctl.sock'}",)
        for address in listen:
            started.callback(runtime.SocketLock(address).close)
            before = os.umask(0o177)  # a socket's file is its owner's alone
            try:
                router.bind(address)
            except zmq.ZMQError as error:
                raise ConfigError(f"listen: cannot bind {address}: {error.strerror}") from error
            finally:
                os.umask(before)
            self.addresses.append(router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
        self._poller.register(router, zmq.POLLIN)
        return router

    def _name_segment(self) -> str:
        self._segments_named += 1
        return f"{self._name}-{self._segments_named}"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop."""
        for worker in self._crew.start(time.monotonic()):
            _log.debug("worker %d starts", worker)
        while self._stopping is None:
            self.turn()
        _log.info("stops: %s", self._stopping)

    def stop(self, reason: str) -> None:
        """Ask the loop to end; callable from a signal handler and from any thread."""
        self._stopping = self._stopping or reason
        self.wake()

    def wake(self) -> None:
        """End the loop's wait; callable from anywhere."""
        with contextlib.suppress(OSError):
            self._wake_w.send(b"\0")

    def turn(self) -> None:
        """One wait, and everything that came of it."""
        due = TICK - (time.monotonic() - self._ticked)
        wait = 0.0 if self._crew.busy else max(0.0, due)
        ready = dict(self._poller.poll(int(wait * 1000)))
        if self._wake_r.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_r.recv(4096)
            self._open_loaded()
        if self._lifeline is not None and self._lifeline.fileno() in ready:
            self._take_lifeline(self._lifeline)
        if self._socket in ready:
            self._take_consumers()
        for worker, message in self._crew.receive(ready):
            self._take_worker(worker, message)
        now = time.monotonic()
        self._bury(now)
        if now - self._ticked >= TICK:
            self._tick(now)
        for assignment in self._dispatcher.assign():
            self._crew.send(assignment.worker, Assign(assignment.stream, assignment.places), now)

    def _take_lifeline(self, lifeline: Lifeline) -> None:
        try:
            message = lifeline.take()
        except EOFError:
            self.stop("the program it belongs to has ended")
            return
        if isinstance(message, Function):
            self._crew.tell_all(message)

    def _tick(self, now: float) -> None:
        self._ticked = now
        self._crew.start(now)
        for conversation in list(self._conversations.values()):
            who = conversation.program or "a consumer"
            if conversation.dead:
                _log.info("%s is dead: its ring is freed", who)
                self._drop(conversation)
            elif now - conversation.session.heard_at > self.config.lease:
                # It may come back and look at what it leased, so nothing of that ring is ever
                # written again: it is unlinked and lives on in the consumer's own mapping.
                _log.warning("%s is silent: its ring is retired", who)
                self._drop(conversation)
        self._crew.kill_stuck(now, self.config.worker_deadline)

    # -- consumers ------------------------------------------------------------------------------

    def _take_consumers(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) != 2:
                continue  # no consumer of ours sends that
            self._take_frame(*frames)

    def _take_frame(self, identity: bytes, frame: bytes) -> None:
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
            self._take_message(conversation, message, now)
        except AugError as error:
            _log.info("%s: refused: %s", conversation.program or "a consumer", error)
            # The conversation, if there is one, goes on: a bad frame harms nobody but itself.
            self._send_raw(identity, encode(fault_of(error)))

    def _check_first(self, frame: bytes) -> None:
        # Some that have opened nothing, health checks among them, may come on top.
        if len(self._conversations) >= 2 * self.config.max_consumers + 64:
            raise ConfigError("this server has too many conversations (see max_consumers)")
        if not isinstance(decode(frame), Hello):
            raise SessionLost("this server does not know you: say hello again")

    def _take_message(self, conversation: Conversation, message: Message, now: float) -> None:
        match message:
            case Hello():
                conversation.program = f"{message.program[:200]} (pid {message.pid})"
                self._say(conversation, Welcome(VERSION, os.getpid(), self.config.lease))
            case Open():
                self._open(conversation, message)
            case Want():
                self._want(conversation, message)
            case Heartbeat():
                self._say(conversation, Heartbeat())
            case AskStatus():
                self._say(conversation, self.status())
            case Close():
                self._drop(conversation)

    def _open(self, conversation: Conversation, wish: Open) -> None:
        try:
            most = self.config.max_consumers
            if sum(c.opens for c in self._conversations.values()) >= most:
                raise ConfigError(
                    f"this server serves at most {most} consumers at once (max_consumers); "
                    "close one"
                )
            spec = spec_of(wish, self.config)
        except AugError as error:
            self._refuse(conversation, error)
            return
        conversation.wish = (wish, spec)
        conversation.loading = self._datasets.acquire(spec.data)
        self._open_loaded()

    def _open_loaded(self) -> None:
        """Open the streams whose datasets are there."""
        for abandoned in [future for future in self._abandoned if future.done()]:
            self._abandoned.remove(abandoned)
            if abandoned.exception() is None:
                self._datasets.release(abandoned.result())
        for conversation in list(self._conversations.values()):
            loading, wish = conversation.loading, conversation.wish
            if loading is None or wish is None or not loading.done():
                continue
            conversation.loading = conversation.wish = None
            try:
                dataset = loading.result()
            except Exception as error:  # whatever a file may do, it does to its consumer alone
                self._refuse(conversation, error)
                continue
            try:
                ringed = open_stream(
                    self._next_stream, *wish, dataset, self.config, self._name_segment
                )
            except (AugError, OSError) as error:
                self._datasets.release(dataset)
                self._refuse(conversation, error)
                continue
            self._next_stream += 1
            conversation.ringed = ringed
            opened = ringed.opened
            self._by_stream[opened.stream] = conversation
            self._dispatcher.open(opened.stream, slots=opened.slots, steps=opened.steps)
            self._crew.tell_all(ringed.define)
            self._say(conversation, opened)

    def _want(self, conversation: Conversation, message: Want) -> None:
        assert conversation.ringed is not None, "the session lets nobody want before Opened"
        conversation.holds = True
        stream = conversation.ringed.opened.stream
        for stale in self._dispatcher.release(stream, message.released):
            _log.debug("%s: %s", conversation.program, stale)
        self._dispatcher.want(stream, message.runs, message.seen)

    def _refuse(self, conversation: Conversation, error: Exception) -> None:
        self._say(conversation, fault_of(error))

    def _say(self, conversation: Conversation, message: Message) -> None:
        try:
            frame = conversation.session.send(message, time.monotonic())
        except LocalProtocolError as error:
            _log.error("%s: %s", conversation.program, error)
            return
        self._send_raw(conversation.identity, frame)

    def _send_raw(self, identity: bytes, frame: bytes) -> None:
        # Gone (EHOSTUNREACH) or not reading (EAGAIN): its lock and its lease decide what it is.
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([identity, frame], zmq.NOBLOCK)

    def _drop(self, conversation: Conversation) -> None:
        """Forget a consumer: closed, dead or silent. Its memory is unlinked, never written."""
        self._conversations.pop(conversation.identity, None)
        if conversation.loading is not None:
            self._abandoned.append(conversation.loading)
        if conversation.ringed is None:
            return
        ringed, conversation.ringed = conversation.ringed, None
        stream = ringed.opened.stream
        del self._by_stream[stream]
        self._dispatcher.close(stream)
        self._crew.tell_all(Forget(stream))
        ringed.segment.close()
        self._datasets.release(ringed.dataset)

    def status(self) -> Status:
        """How the server is."""
        return Status(
            streams=tuple(sorted(self.config.streams)),
            consumers=len(self._by_stream),
            workers_alive=self._crew.alive,
            workers_wanted=self._crew.wanted,
            batches=self._dispatcher.batches,
            restarts=self._crew.restarts,
        )

    def _end_conversations(self) -> None:
        for conversation in list(self._conversations.values()):
            if conversation.session.state not in (State.IDLE, State.CLOSED):
                self._say(conversation, Bye(self._stopping or "the server has failed"))
            self._drop(conversation)

    # -- workers --------------------------------------------------------------------------------

    def _take_worker(self, worker: int, message: Message) -> None:
        match message:
            case Ready():
                for conversation in self._by_stream.values():
                    if conversation.ringed is not None:
                        self._crew.send_quietly(worker, conversation.ringed.define)
                self._dispatcher.join(worker)
            case Done():
                announce = self._dispatcher.done(
                    worker, message.stream, message.entries, message.seconds
                )
                self._progress(worker)
                self._tell_consumer(message.stream, announce)
            case Failed():
                fault = self._dispatcher.failed(
                    worker,
                    message.stream,
                    message.place,
                    message=message.message,
                    sample=message.sample,
                    traceback=message.traceback,
                )
                self._progress(worker)
                self._tell_consumer(message.stream, fault)
            case _:
                raise RemoteProtocolError(f"worker {worker} said {message!r:.120}")

    def _suspect(self, worker: int) -> tuple[int, Place] | None:
        """What a dead worker was writing: a slot that is claimed at the sequence it was given.

        The header is evidence for the blame alone; the slot is free either way.
        """
        for stream, place in self._dispatcher.held(worker):
            conversation = self._by_stream.get(stream)
            if conversation is not None and conversation.ringed is not None:
                ring = conversation.ringed.ring
                if ring.being_written(place.slot, place.sequence):
                    return stream, place
        return None

    def _progress(self, worker: int) -> None:
        idle = self._dispatcher.load(worker) == 0
        self._crew.progress(worker, None if idle else time.monotonic())

    def _tell_consumer(self, stream: int, message: Message | None) -> None:
        if message is not None and stream in self._by_stream:
            self._say(self._by_stream[stream], message)

    def _bury(self, now: float) -> None:
        for worker, last_words in self._crew.reap(now):
            for message in last_words:
                self._take_worker(worker, message)
            for stream, fault in self._dispatcher.leave(worker, self._suspect(worker)):
                self._tell_consumer(stream, fault)
            self._crew.start(now)
