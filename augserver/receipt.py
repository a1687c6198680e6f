"""A batch that comes by message: which of its bytes are here, and whether that is all of them.

Its sender sits on another host and is a process that may be killed, cut off or hostile. So nothing
is written outside the slot, the slot's header is this server's own word, and a batch is whole when
every byte of every sample has come, and not before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from augproto.errors import RemoteProtocolError
from augproto.layout import SLOT_HEADER_BYTES, Layout
from augproto.messages import Entry, Piece, Place, Script
from augproto.ring import Header, Ring
from augserver.conversation import Ringed

#: Stretches of a slot that may lie apart from each other while its bytes come.
MAX_STRETCHES = 4096


@dataclass(slots=True)
class Receipt:
    """What has come of one batch.

    Attributes:
        place: Where it belongs.
        script: What it is made of, if its consumer says so.
        reasons: Why some of its samples could not be read here.
    """

    ringed: Ringed
    place: Place
    script: Script | None = None
    reasons: dict[int, str] = field(default_factory=dict)
    _stretches: list[tuple[int, int]] = field(default_factory=list)

    def take(self, piece: Piece, payload: memoryview) -> None:
        """Write a piece into the slot; its header's bytes are left out.

        Raises:
            RemoteProtocolError: It is none of this batch.
        """
        ring: Ring = self.ringed.ring
        most, end = ring.layout.slot_bytes, piece.offset + len(payload)
        if not (len(payload) > 0 and end <= piece.size <= most):
            raise RemoteProtocolError(
                f"Piece: got {len(payload)} bytes from {piece.offset} on, of {piece.size}; wanted "
                f"some within the {most} of a slot"
            )
        start = max(piece.offset, SLOT_HEADER_BYTES)
        if start < end:
            came = np.frombuffer(payload, np.uint8)[start - piece.offset :]
            ring.slot(self.place.slot)[start:end] = came
            self._note(start, end)

    def finish(self, stream: int, entry: Entry) -> None:
        """Stamp the slot as whole.

        Raises:
            RemoteProtocolError: It is not.
            ConfigError: There can be no such batch.
        """
        recipe, ring = self.ringed.recipe, self.ringed.ring
        whole = recipe.count(entry.epoch, entry.step, self.script)
        least = 1 if recipe.spec.bad_samples == "skip" else whole
        if not least <= entry.samples <= whole:
            raise RemoteProtocolError(
                f"Done: got a batch of {entry.samples} samples; wanted {least} to {whole}"
            )
        lacking = self._lacking(ring.layout, entry.samples)
        if lacking is not None:
            raise RemoteProtocolError(
                f"Done: of a batch of {entry.samples} samples the bytes {lacking[0]} to "
                f"{lacking[1]} have not come; wanted all before it"
            )
        header = Header(stream, entry.epoch, entry.step, entry.sequence, entry.samples)
        ring.claim(entry.slot, header)
        ring.commit(entry.slot, header)

    def _lacking(self, layout: Layout, samples: int) -> tuple[int, int] | None:
        """The first stretch of so many samples' bytes of which some have not come."""
        stretches = sorted(self._stretches)
        merged: list[tuple[int, int]] = []
        for start, end in stretches:
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        for f in layout.fields:
            start, end = f.offset, f.offset + samples * f.sample_bytes
            if start < end and not any(low <= start and end <= high for low, high in merged):
                return start, end
        return None

    def _note(self, start: int, end: int) -> None:
        last = self._stretches[-1] if self._stretches else None
        if last is not None and last[0] <= start <= last[1]:
            self._stretches[-1] = last[0], max(end, last[1])  # as they come: one after the other
        elif len(self._stretches) < MAX_STRETCHES:
            self._stretches.append((start, end))
        else:
            raise RemoteProtocolError(
                f"Piece: got more than {MAX_STRETCHES} stretches of a batch that do not meet; "
                "wanted them one after the other"
            )
