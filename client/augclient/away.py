"""What a consumer thinks of a server that does not answer. Sans-I/O: time is an argument.

A server that others use may be restarted, moved or cut off, and a stream is a pure function: so
its consumers wait for it, each batch for as long as whoever asks for it is willing to. Two
heartbeats without an answer are noticed and said, once. A conversation is given up when its answer
is owed for much longer, since until then a server may just be busy; a greeting is given up sooner,
since nothing is lost by greeting again.
"""

from __future__ import annotations

import logging

from augproto.errors import ServerLost
from augproto.session import BEAT

#: Seconds that an answer is owed before it is noticed.
NOTICE = 2 * BEAT
#: Seconds for the answer to a greeting that follows a goodbye: it may have met the same server,
#: which takes nothing any more. Others get `NOTICE`; with every try it is twice as long.
AFTER_BYE = 0.5

_log = logging.getLogger("augclient.link")


class Parted(Exception):
    """This conversation is over; another one is to be begun. Never seen outside the link."""


class Patience:
    """Whether one server answers, since when it does not, and how long that is waited for.

    Args:
        address: The server's.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._since: float | None = None
        self._noticed = False
        self._bye = ""
        self._tries = 0

    @property
    def away(self) -> bool:
        """Whether it is known to be gone, or has owed an answer for longer than is usual."""
        return self._noticed

    def heard(self) -> None:
        """It has said something."""
        if self._noticed:
            _log.warning("the server at %s answers again", self._address)
        self._since, self._noticed, self._bye = None, False, ""

    def welcomed(self) -> None:
        """It has answered a greeting."""
        self._tries = 0

    def ended(self, reason: str, now: float) -> None:
        """It has said goodbye."""
        self._since, self._noticed, self._bye = now, True, reason
        _log.warning(
            "the server at %s has ended (%s); waits for the next one", self._address, reason
        )

    def look(self, silent: float, now: float, limit: float, *, greeting: bool) -> None:
        """Notice a silence, and end a conversation in which it lasts too long.

        Args:
            silent: Seconds for which an answer has been owed in this conversation.
            limit: So many seconds are the most.
            greeting: Whether the answer is that to a Hello.

        Raises:
            Parted: It is time for another conversation.
        """
        if silent <= 0:
            return
        if self._since is None:
            self._since = now - silent
        if not self._noticed and now - self._since > NOTICE:
            self._noticed = True
            _log.warning(
                "the server at %s has not answered for %.0f s; waits for it",
                self._address,
                now - self._since,
            )
        if greeting:
            limit = min(limit, (AFTER_BYE if self._bye else NOTICE) * 2**self._tries)
        if silent > limit:
            self._tries += 1
            raise Parted

    def lost(self, now: float, waited: str) -> ServerLost | None:
        """What is to be said to whoever has waited long enough; None if it answers.

        Args:
            waited: For what, and for how long.
        """
        if not self._noticed or self._since is None:
            return None
        if self._bye:
            return ServerLost(
                f"the server at {self._address} has ended: {self._bye}. None has come in its place "
                f"for {now - self._since:.0f} s; {waited}; to do: start it again, or wait longer "
                "(timeout=)"
            )
        return ServerLost(
            f"the server at {self._address} has not answered for {now - self._since:.0f} s: it was "
            f"killed, stopped, or its machine is gone; {waited}; to do: `augserver health` there, "
            "and its log; or wait longer (timeout=)"
        )
