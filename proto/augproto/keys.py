"""Keys of ZeroMQ's CURVE: who may come in beyond this machine, and whom a peer has before it.

A key is a pair of files: NAME.key holds the secret and stays with its owner, NAME.pub is public and
goes to whoever is to recognise him. Both are certificates as pyzmq's `zmq.auth` reads them. Client
and worker have a key of their own and the server's public one; the server has its own and those
that it lets in. Only this file reads or writes any.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
import zmq.auth

from augproto.errors import ConfigError

SECRET, PUBLIC = ".key", ".pub"
#: Bytes of a key as text (Z85).
_Z85 = 40
#: A certificate is a few lines; what is longer is something else.
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Keys:
    """What a consumer or a worker shows, and what its server has to show.

    Attributes:
        public, secret: Its own pair, as Z85 text.
        server: The server's public key.
    """

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes

    @classmethod
    def of(
        cls, key: str | os.PathLike[str] | None, server_key: str | os.PathLike[str] | None
    ) -> Keys | None:
        """From files; None where neither is named.

        Args:
            key: The secret file of whoever connects.
            server_key: The server's public file.

        Raises:
            ConfigError: One is missing, or a file holds no key or is open to others.
        """
        if key is None and server_key is None:
            return None
        if key is None or server_key is None:
            missing = "key, a secret file of one's own" if key is None else "server_key"
            raise ConfigError(
                f"keys: got key={key!r:.200} and server_key={server_key!r:.200}; wanted both, or "
                f"neither (in a command: --key and --server-key); missing is {missing}"
            )
        public, secret = load_secret(Path(key))
        return cls(public, secret, load_public(Path(server_key)))

    def apply(self, socket: Any) -> None:
        """Have a ZeroMQ socket use them in every connection that it makes from now on."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server)


def load_secret(path: Path) -> tuple[bytes, bytes]:
    """The pair (public, secret) in a secret file.

    Raises:
        ConfigError: It holds none, or is open to others than its owner. (A file that root gives to
            a group, as Kubernetes does with `defaultMode: 0440`, is open to none whom its
            administrator has not named.)
    """
    public, secret, status = _load(path)
    if secret is None:
        raise ConfigError(f"key: {path} holds a public key alone; wanted NAME{SECRET}, the secret")
    others = 0o077 if status.st_uid == os.getuid() else 0o007
    if os.getuid() == 0 and status.st_uid == 0 and not status.st_mode & 0o037:
        others = 0o007  # provisioned for a group, and read by root
    if status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"key: {path} has mode {mode:04o}, so others than its owner can read it; to do: chmod "
            f"600 {path} (mounted secrets: mode 0440, and the group of whoever reads it)"
        )
    return public, secret


def load_public(path: Path) -> bytes:
    """The public key in a file.

    Raises:
        ConfigError: It holds none, or a secret one, which is nobody else's to have.
    """
    public, secret, _ = _load(path)
    if secret is not None:
        raise ConfigError(
            f"key: {path} holds a secret key; wanted NAME{PUBLIC}, the public one of whoever is to "
            "be recognised. A secret that has left its owner should be made anew"
        )
    return public


def load_allowed(paths: Iterable[str]) -> frozenset[bytes]:
    """The public keys in files, and in all .pub files of folders.

    Raises:
        ConfigError: A file holds none, or there is none at all.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.glob(f"*{PUBLIC}")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(
            f"keys: no {PUBLIC} file in {', '.join(paths) or 'an empty list'}; wanted the public "
            "keys of those who may come in (augserver keygen NAME makes a pair)"
        )
    return frozenset(map(load_public, files))


def _load(path: Path) -> tuple[bytes, bytes | None, os.stat_result]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise ConfigError(
                f"key: {path} is no key file; wanted one that `augserver keygen` made"
            )
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise ConfigError(f"key: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"key: {path} holds no key of ZeroMQ's CURVE ({error})") from error
    for key in (public, secret):
        if key is not None and len(key) != _Z85:
            raise ConfigError(
                f"key: {path}: got a key of {len(key)} characters; wanted {_Z85}, in Z85"
            )
    return public, secret, status


def paths_of(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a pair lies: the secret file and the public one."""
    return folder / f"{name}{SECRET}", folder / f"{name}{PUBLIC}"


def generate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a pair of files; returns the secret one and the public one.

    Raises:
        ConfigError: They cannot be written, or are there already: a key is never written over.
    """
    bare = name and name == os.path.basename(name) and not name.startswith(".")
    if not bare or name.endswith((SECRET, PUBLIC)):
        raise ConfigError(
            f"keygen: got the name {name!r:.80}; wanted one for two files, without / and without "
            f"{SECRET} or {PUBLIC}, which they end in"
        )
    public, secret = zmq.curve_keypair()
    paths = paths_of(folder, name)
    head = f"#   augserver: {name}'s "
    texts = (
        f"{head}SECRET key of ZeroMQ's CURVE. It stays with {name}.\n"
        f'curve\n    public-key = "{public.decode()}"\n    secret-key = "{secret.decode()}"\n',
        f"{head}public key of ZeroMQ's CURVE, for those who are to recognise {name}.\n"
        f'curve\n    public-key = "{public.decode()}"\n',
    )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in paths:
            if path.exists():
                raise FileExistsError(
                    0,
                    "is there already, and may be in use; to do: another name, or --keep",
                    str(path),
                )
        for path, text, mode in zip(paths, texts, (0o600, 0o644), strict=True):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            with os.fdopen(fd, "w") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"keygen: cannot write {error.filename}: {error.strerror}") from error
    return paths
