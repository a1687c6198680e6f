"""A ring whose slots come by message, for a consumer that does not map the server's memory.

It is on another host, or in a container of its own. The server sends a slot's bytes in pieces, and
then says as ever that the batch is there. A slot of one piece is handed out as it was received,
without a copy. Where ZeroMQ puts a message, its address is 8 more than a multiple of 16 (measured,
libzmq 4.3.5), so that TensorFlow and JAX copy the arrays once when they take them. (One below 8 KiB
lies anywhere, and is moved.) Of several pieces one slot is made, at a multiple of 64 as in shared
memory.

A batch that is kept costs this process memory and the ring nothing: where a lease would take the
last slot, the batch is handed out without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augclient.attachment import Attachment
from augclient.lease import struct_of
from augproto.errors import RemoteProtocolError
from augproto.layout import SLOT_HEADER_BYTES, aligned_empty
from augproto.messages import Entry, Opened, Piece, Release
from augproto.ring import carries

#: Bytes of which the address of a slot is a multiple: those of the widest numbers.
_ALIGNMENT = 8
_NOTHING: npt.NDArray[np.uint8] = np.empty(0, np.uint8)


@dataclass(slots=True)
class _Arrival:
    """A slot's bytes; `came` of them are here, from the first on."""

    sequence: int
    memory: npt.NDArray[np.uint8]
    came: int


class Frames(Attachment):
    """A ring of which every slot is here that the server has announced.

    Args:
        opened: What the server said of the stream.
        writable: Whether the arrays that are handed out may be written to.
    """

    kind = "frames"

    def __init__(self, opened: Opened, *, writable: bool) -> None:
        super().__init__(opened)
        self._writable = writable
        self._arrivals: dict[int, _Arrival] = {}

    def arrived(self, piece: Piece, data: Any) -> None:
        """Take a piece.

        Args:
            data: Its bytes, as any buffer; it is kept if the piece is a whole slot.

        Raises:
            RemoteProtocolError: It is not what comes next of a slot of this ring.
        """
        part: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8)
        place, size = piece.place, piece.size
        end = piece.offset + part.nbytes
        fits = SLOT_HEADER_BYTES <= size <= self._layout.slot_bytes and part.nbytes > 0
        ours = piece.stream == self.opened.stream and not piece.name
        if not (fits and ours and end <= size and place.slot < self.opened.slots):
            raise RemoteProtocolError(f"Piece: got {piece!r:.200}; wanted one of this ring's slots")
        if piece.offset == 0:
            usable = part.flags.writeable or not self._writable
            usable = usable and part.ctypes.data % _ALIGNMENT == 0
            memory = part if part.nbytes == size and usable else aligned_empty(size)
            self._arrivals[place.slot] = _Arrival(place.sequence, memory, 0)
        arrival = self._arrivals.get(place.slot)
        if (
            arrival is None
            or arrival.sequence != place.sequence
            or arrival.came != piece.offset
            or arrival.memory.nbytes != size
        ):
            raise RemoteProtocolError(
                f"Piece: got {piece!r:.200}; wanted what follows the pieces before it"
            )
        if arrival.memory is not part:
            arrival.memory[piece.offset : end] = part
        arrival.came = end
        if end == size and not self._writable:
            arrival.memory.flags.writeable = False

    def _whole(self, entry: Entry) -> bool:
        arrival = self._arrivals.get(entry.slot)
        return (
            arrival is not None
            and arrival.sequence == entry.sequence
            and arrival.came == arrival.memory.nbytes
            and entry.samples <= self._layout.batch_size
            and arrival.came >= self._layout.extent(entry.samples)
        )

    def _carries(self, entry: Entry) -> bool:
        return self._whole(entry) and carries(
            self._slot(entry.slot).data, 0, self.opened.stream, entry
        )

    def _slot(self, slot: int) -> npt.NDArray[np.uint8]:
        arrival = self._arrivals.get(slot)
        return _NOTHING if arrival is None else arrival.memory[: arrival.came]

    def _struct(self, slot: int) -> object:
        return struct_of(self._arrivals[slot].memory)

    def _spare(self, slot: int) -> npt.NDArray[np.uint8] | None:
        return self._arrivals[slot].memory

    def given_back(self, released: tuple[Release, ...]) -> None:
        """The arrays that are still alive hold their bytes; here they are forgotten."""
        for slot, sequence in released:
            arrival = self._arrivals.get(slot)
            if arrival is not None and arrival.sequence == sequence:
                del self._arrivals[slot]

    def close(self) -> None:
        """There is no lock: whoever says nothing is not heard."""
