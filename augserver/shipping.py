"""A batch as pieces, for a consumer that shares no memory with the server.

The pieces are views of the slot, and nothing is copied: the slot is the consumer's until it says
that it has done with it, which it does not before all of it has arrived. A conversation may be
over before: then the ring is given up, its memory is written by nobody any more, and the views
that ZeroMQ still has keep it mapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from augproto.messages import MAX_PIECE_BYTES, Entry, Piece, Place
from augproto.ring import Ring


def pieces(stream: int, ring: Ring, entries: Iterable[Entry]) -> Iterator[tuple[Piece, memoryview]]:
    """Each piece with its bytes: header and samples of every batch, without what is unused."""
    for entry in entries:
        size = ring.layout.extent(entry.samples)
        slot, place = ring.slot(entry.slot).data, Place(*entry[:4])
        for offset in range(0, size, MAX_PIECE_BYTES):
            yield (
                Piece(stream, place, "", offset, size),
                slot[offset : min(offset + MAX_PIECE_BYTES, size)],
            )
