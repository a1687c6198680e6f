"""How a consumer gets at the slots' bytes: in memory that it shares with the server, or as frames.

Decided at every opening, since a server may come back as another container that shares its memory
no more, or again: whoever can read the key at a server's door can map its rings.
"""

from __future__ import annotations

import logging
import os

from augclient.attachment import Attachment, Shared
from augclient.away import Parted
from augclient.frames import Frames
from augproto.errors import ConfigError
from augproto.keys import Keys
from augproto.messages import Opened, Welcome
from augproto.segment import HOME, attach, directory

#: What a consumer may ask for.
AUTO, SHARED, FRAMES = "auto", "shared", "frames"
#: The environment's names for the files of keys.
KEY_VARIABLE, SERVER_KEY_VARIABLE = "AUGSERVER_CLIENT_KEY", "AUGSERVER_SERVER_KEY"
#: The version from which on there are frames.
FRAMES_SINCE = (1, 4)
#: Openings in a row whose memory cannot be mapped, until that is not a server's end in between.
TRIES = 3

Path = str | os.PathLike[str]

_log = logging.getLogger("augclient.link")


def checked(memory: object) -> str:
    """One of the three words.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(memory, str) or memory not in (AUTO, SHARED, FRAMES):
        raise ConfigError(f"memory: got {memory!r:.80}; wanted 'auto', 'shared' or 'frames'")
    return memory


def keys(key: Path | None, server_key: Path | None) -> Keys | None:
    """What a server is shown that asks for keys; by default what the environment names.

    Raises:
        ConfigError: One of the two is missing, or a file holds no key or is open to others.
    """
    return Keys.of(
        key or os.environ.get(KEY_VARIABLE), server_key or os.environ.get(SERVER_KEY_VARIABLE)
    )


class Access:
    """The way to one server's slots.

    Args:
        address: The server's.
        memory: What is asked for: "auto", "shared" or "frames".
        writable: Whether the arrays are to be written to.
        private: Whether it is this program's own server, whose memory is always shared.
    """

    def __init__(self, address: str, memory: str, *, writable: bool, private: bool) -> None:
        self._address = address
        self._memory = memory
        self._writable = writable
        self._private = private
        # A private server is of this machine and this user; another may be in a container.
        self._folder = HOME if private else directory()
        self._refused: Exception | None = None
        self._failures = 0
        self._told = False

    def by_frames(self, welcome: Welcome) -> bool:
        """Whether frames are to be asked for.

        Raises:
            ConfigError: What was asked for cannot be had.
            Parted: That may be another's end, and should be asked again.
        """
        has_frames = welcome.version[:2] >= FRAMES_SINCE
        if self._memory == FRAMES and not has_frames:
            raise ConfigError(
                f"memory='frames': the server at {self._address} speaks protocol "
                f"{'.'.join(map(str, welcome.version))}; wanted 1.4 or later"
            )
        if self._memory == FRAMES:
            return True
        if self._private or not has_frames or not welcome.door:
            return False
        if self._failures >= TRIES:  # the door could be read, but no ring be mapped
            return self._memory == AUTO
        try:
            attach(welcome.door, self._folder, writable=self._writable)
        except (OSError, ValueError) as error:
            self._refused = error
            if self._memory == AUTO:
                return True
            self._fail(error)
        return False

    def attach(self, opened: Opened) -> Attachment:
        """The ring that was opened.

        Raises:
            ConfigError: What was asked for cannot be had.
            Parted: Its server may have ended meanwhile.
        """
        if opened.frames:
            if self._memory == AUTO and not self._told:
                self._told = True
                _log.warning(
                    "the memory of the server at %s is not shared with this program (%s), so "
                    "batches come by message, which takes longer",
                    self._address,
                    self._refused,
                )
            return Frames(opened, writable=self._writable)
        try:
            attachment = Shared(opened, self._folder, writable=self._writable)
        except OSError as error:
            if self._private:
                raise
            self._refused = error
            self._fail(error)
            raise
        self._failures, self._told = 0, False
        return attachment

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        if self._failures < TRIES or self._memory == AUTO:
            raise Parted
        raise ConfigError(
            f"memory='shared': the memory of the server at {self._address} cannot be mapped here "
            f"({error}); wanted the same host, user and /dev/shm. In containers say `ipc: "
            "service:...`, or mount the server's /dev/shm and set AUGSERVER_SHM_DIR; elsewhere "
            "memory='frames'"
        ) from error
