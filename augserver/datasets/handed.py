"""What programs hand over to a server that others use: arrays, and lists of files to be read here.

The server makes the room, as for a private server's program. Who proves that it may write there
(it has read the key at the server's door) does so itself, and is bounded by memory alone; what
others upload is bounded by the config as well. Arrays are known by their fingerprint *and* by a
secret of the program that brought them: its consumers share them, and nobody else can name them.
They live as long as one of these conversations does, and half-done ones no longer.

Everything here is called in the server's loop; what takes its time is done by the threads that
load datasets, and `answers` tells what has come of it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from augproto.errors import ConfigError, NoRoom, NotAllowed, RemoteProtocolError
from augproto.messages import (
    DOOR_KEY_BYTES,
    MAX_PART_BYTES,
    Filled,
    Message,
    Offer,
    Room,
    Taken,
    Upload,
)
from augproto.segment import Segment
from augserver.config import Config
from augserver.datasets.arrays import ArrayDataset, attach, hold, places, reserve
from augserver.datasets.paths import is_list, list_paths
from augserver.limits import mib
from augserver.memory import Memory

#: Characters of the secret that a program's hand-overs are known by: it is no name to be guessed.
MIN_OWNER = 16
#: Bytes of the segment at the door: a page.
DOOR_BYTES = 4096


class Submit(Protocol):
    """Has something done in another thread, which ends the loop's wait."""

    def __call__(self, load: Callable[[], ArrayDataset], /) -> Future[ArrayDataset]:
        """Its future."""


class Door:
    """A key in a segment: who can read it is of this user and shares this shared memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._segment: Segment | None = None
        self._key = ""

    def make(self) -> str:
        """The segment's name; it is made if there is none yet. Empty where memory has no room."""
        if self._segment is None:
            try:
                self._segment = self._memory.segment(DOOR_BYTES)
            except NoRoom:
                return ""
            key = secrets.token_bytes(DOOR_KEY_BYTES)
            self._segment.map()[:DOOR_KEY_BYTES] = np.frombuffer(key, np.uint8)
            self._key = key.hex()
        return self._segment.name

    def opens(self, key: str) -> bool:
        """Whether somebody has read it."""
        return bool(self._key) and hmac.compare_digest(key.encode(), self._key.encode())


@dataclass(slots=True)
class _Claim:
    """One conversation's hand-over: what it offered, and whether it is owed an answer."""

    offer: Offer
    trusted: bool
    owed: bool = True


@dataclass(slots=True)
class _Arrays:
    """Arrays of one program, on their way or whole.

    Attributes:
        claims: The conversations that have offered them, in that order; the first one fills them.
        working: Room being made, or a list being looked through.
        room: To be filled; `written` bytes of it are, where it is `uploaded` by message.
        dataset: Whole.
    """

    size: int
    claims: dict[bytes, _Claim] = field(default_factory=dict)
    working: Future[ArrayDataset] | None = None
    room: ArrayDataset | None = None
    listing: bool = False
    uploaded: bool = False
    written: int = 0
    dataset: ArrayDataset | None = None

    @property
    def filler(self) -> bytes:
        """Who fills them."""
        return next(iter(self.claims))


class HandedStore:
    """All that was handed over.

    Args:
        memory: Where it will lie.
        submit: To the threads that load datasets.
        config: Bounds what is uploaded, and where listed files lie.
    """

    def __init__(self, memory: Memory, submit: Submit, config: Config) -> None:
        self._memory = memory
        self._submit = submit
        self._config = config
        self._door = Door(memory)
        if not config.private:
            self._door.make()
        self._arrays: dict[tuple[str, str], _Arrays] = {}
        self._of: dict[bytes, tuple[str, str]] = {}
        self._taken: list[tuple[bytes, Taken]] = []
        self._abandoned: list[Future[ArrayDataset]] = []

    @property
    def door(self) -> str:
        """The name of the segment with the key; a private server needs none."""
        return "" if self._config.private else self._door.make()

    def knows(self, who: bytes) -> bool:
        """Whether a conversation hands something over, or has done so."""
        return who in self._of

    def take(self, who: bytes, message: Offer | Upload | Filled) -> None:
        """Take what a consumer says; `answers` has the answer, now or later.

        Raises:
            ConfigError: These are no arrays that can be in a batch.
            NotAllowed: They are more than may be uploaded, or nothing may be handed over here.
            RemoteProtocolError: It is not this one's turn, or no part of what was offered.
        """
        match message:
            case Offer():
                self._offer(who, message)
            case Upload():
                self._upload(who, message)
            case Filled():
                self._filled(who, message.name)

    def _offer(self, who: bytes, offer: Offer) -> None:
        if self._config.private:
            raise NotAllowed("Offer: a private server's program hands over through its own pipe")
        if len(offer.owner) < MIN_OWNER:
            raise RemoteProtocolError(
                f"Offer.owner: got {len(offer.owner)} characters; wanted at least {MIN_OWNER}, at "
                "random: who knows them may use the arrays"
            )
        self.leave(who)
        _, size = places(offer.arrays, "")
        is_list(offer.arrays)
        trusted = self._door.opens(offer.key)
        key = (offer.owner, offer.name)
        if key not in self._arrays:
            if not trusted:
                self._check_upload(size)
            self._arrays[key] = _Arrays(size)
        elif any(claim.offer.arrays != offer.arrays for claim in self._arrays[key].claims.values()):
            raise ConfigError("Offer.arrays: others of this owner have that name already")
        self._of[who] = key
        self._arrays[key].claims[who] = _Claim(offer, trusted)
        self._begin(self._arrays[key])

    def _check_upload(self, size: int) -> None:
        held = sum(arrays.size for arrays in self._arrays.values() if arrays.uploaded)
        most = self._config.max_upload_bytes
        if size > most - held:
            raise NotAllowed(
                f"arrays of {mib(size)} by message: this server takes {mib(most)} in all "
                f"(max_upload_bytes), of which {mib(held)} are in use. Share its memory (the same "
                "user, and its /dev/shm: AUGSERVER_SHM_DIR), save them to files below its roots "
                "(data=), or raise max_upload_bytes"
            )

    def _begin(self, arrays: _Arrays) -> None:
        """Make room for the first who offers, if nobody is at it."""
        if arrays.working or arrays.room or arrays.dataset:
            return
        claim = arrays.claims[arrays.filler]
        offer, arrays.uploaded, arrays.written = claim.offer, not claim.trusted, 0
        arrays.working = self._submit(lambda: reserve(offer.name, offer.arrays, self._memory))

    def _upload(self, who: bytes, part: Upload) -> None:
        arrays = self._filled_by(who, part.name)
        segment = arrays.room.segment if arrays.room else None
        end = part.offset + len(part.data)
        if segment is None or not arrays.uploaded:
            raise RemoteProtocolError("Upload: no room for it was made")
        if part.offset != arrays.written or end > segment.size or len(part.data) > MAX_PART_BYTES:
            raise RemoteProtocolError(
                f"Upload: got {len(part.data)} bytes from {part.offset} on; wanted them from "
                f"{arrays.written} on, at most {MAX_PART_BYTES} and up to {segment.size}"
            )
        segment.map()[part.offset : end] = np.frombuffer(part.data, np.uint8)
        arrays.written = end
        self._taken.append((who, Taken(part.name, end)))

    def _filled(self, who: bytes, name: str) -> None:
        arrays = self._filled_by(who, name)
        room = arrays.room
        if room is None or room.segment is None:
            raise RemoteProtocolError("Filled: no room for it was made")
        if arrays.uploaded and arrays.written != room.segment.size:
            raise RemoteProtocolError(
                f"Filled: got {arrays.written} bytes; wanted {room.segment.size}"
            )
        arrays.claims[who].owed = True
        if is_list(arrays.claims[who].offer.arrays):
            arrays.listing = True
            arrays.working = self._submit(lambda: self._list(room))
        else:
            arrays.room, arrays.dataset = None, room
            room.handed = True

    def _filled_by(self, who: bytes, name: str) -> _Arrays:
        arrays = self._arrays.get(self._of.get(who, ("", "")))
        if arrays is None or self._of[who][1] != name or arrays.filler != who or arrays.working:
            raise RemoteProtocolError(f"{name!r:.80}: it was not offered, or its room not awaited")
        return arrays

    def _list(self, room: ArrayDataset) -> ArrayDataset:
        # Copied, sizes and times added: what the program could still write is looked at no more.
        mark, arrays = list_paths(attach(room.sources), self._config.roots)
        dataset = hold(mark, arrays, self._memory)
        dataset.handed = True
        return dataset

    def answers(self) -> list[tuple[bytes, Message | Exception]]:
        """Who is to be told what by now."""
        said: list[tuple[bytes, Message | Exception]] = list(self._taken)
        self._taken.clear()
        for abandoned in [future for future in self._abandoned if future.done()]:
            self._abandoned.remove(abandoned)
            if abandoned.exception(0) is None:
                abandoned.result(0).close()
        for arrays in list(self._arrays.values()):
            if arrays.working is not None and arrays.working.done():
                said += self._worked(arrays, arrays.working)
            if arrays.dataset is None:
                continue
            for who, claim in arrays.claims.items():
                if claim.owed:
                    claim.owed = False
                    said.append((who, Room(claim.offer.name, ())))
        return said

    def _worked(
        self, arrays: _Arrays, working: Future[ArrayDataset]
    ) -> list[tuple[bytes, Message | Exception]]:
        arrays.working = None
        filler, listing = arrays.filler, arrays.listing
        arrays.listing = False
        claim = arrays.claims[filler]
        try:
            made = working.result(0)
        except Exception as error:
            self.leave(filler)  # the next one who offers them may have more luck
            return [(filler, error.with_traceback(None))]  # whose frames hold this list
        if listing:
            if arrays.room is not None:
                arrays.room.close()
            arrays.room, arrays.dataset = None, made
            return []
        arrays.room = made
        claim.owed = False
        shown = "" if arrays.uploaded or made.segment is None else made.segment.name
        return [
            (filler, Room(claim.offer.name, tuple(s._replace(path=shown) for s in made.sources)))
        ]

    def of(self, who: bytes) -> tuple[str, ArrayDataset] | None:
        """What a conversation has handed over: the name, and the whole dataset."""
        key = self._of.get(who)
        dataset = None if key is None else self._arrays[key].dataset
        return None if key is None or dataset is None else (key[1], dataset)

    def leave(self, who: bytes) -> None:
        """A conversation is over, or offers something else."""
        key = self._of.pop(who, None)
        if key is None:
            return
        arrays = self._arrays[key]
        filled = arrays.filler == who
        del arrays.claims[who]
        if arrays.claims and (arrays.dataset is not None or not filled):
            return
        if arrays.working is not None:
            self._abandoned.append(arrays.working)
        for held in (arrays.room, arrays.dataset):
            if held is not None:
                held.close()
        arrays.working = arrays.room = arrays.dataset = None
        arrays.listing = False
        if arrays.claims:
            self._begin(arrays)
        else:
            del self._arrays[key]
