"""What comes in pieces, put together: the inputs of a remote worker's batches (sans-I/O)."""

from __future__ import annotations

from dataclasses import dataclass

from augproto.errors import RemoteProtocolError
from augproto.messages import Inputs, Piece, Place

#: Bytes of one `Inputs`; more comes from a broken or hostile server.
MAX_INPUT_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Arrived:
    """Inputs that are whole: what was announced, and its bytes by name."""

    inputs: Inputs
    loads: dict[str, bytearray]


class Intake:
    """The inputs that were announced and are not whole yet."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, Place], Arrived] = {}
        self._left: dict[tuple[int, Place], int] = {}

    def begin(self, inputs: Inputs) -> Arrived | None:
        """Something is announced; returned at once if nothing is to come.

        Raises:
            RemoteProtocolError: It is too much, or two of its loads have one name.
        """
        size = sum(load.size for load in inputs.loads)
        names = {load.name for load in inputs.loads}
        if size > MAX_INPUT_BYTES or len(names) != len(inputs.loads):
            raise RemoteProtocolError(
                f"Inputs: got {size} bytes in {len(inputs.loads)} loads of {len(names)} names; "
                f"wanted at most {MAX_INPUT_BYTES}, each of a name of its own"
            )
        # Grown piece by piece: what was only announced takes no memory.
        arrived = Arrived(inputs, {load.name: bytearray() for load in inputs.loads})
        if not size:
            return arrived
        key = inputs.stream, inputs.place
        self._open[key], self._left[key] = arrived, size
        return None

    def add(self, piece: Piece, data: memoryview) -> Arrived | None:
        """The next bytes of something; returned when it is whole.

        One that belongs to nothing has come late, and is left alone.

        Raises:
            RemoteProtocolError: It does not continue what it belongs to.
        """
        key = piece.stream, piece.place
        arrived = self._open.get(key)
        if arrived is None:
            return None
        sizes = {load.name: load.size for load in arrived.inputs.loads}
        load = arrived.loads.get(piece.name)
        if (
            load is None
            or piece.offset != len(load)
            or piece.size != sizes[piece.name]
            or piece.offset + len(data) > piece.size
        ):
            raise RemoteProtocolError(
                f"got {piece!r:.200} with {len(data)} bytes; wanted the next ones of "
                f"{arrived.inputs.loads!r:.200}"
            )
        load += data
        self._left[key] -= len(data)
        if self._left[key]:
            return None
        del self._open[key], self._left[key]
        return arrived

    def clear(self) -> None:
        """Forget everything."""
        self._open.clear()
        self._left.clear()
