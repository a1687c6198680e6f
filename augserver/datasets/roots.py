"""What a consumer may name lies below a server's roots, through whatever links."""

from __future__ import annotations

import os
from collections.abc import Sequence

from augproto.errors import NotAllowed


class Roots:
    """Folders below which files must lie; each folder on the way is resolved once.

    Args:
        roots: The folders; they may be links themselves.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._real = [os.path.realpath(root) for root in roots]
        self._folders: dict[str, str] = {}

    def check(self, path: str) -> None:
        """Refuse a path outside them, also through links and `..`.

        Raises:
            NotAllowed: It lies elsewhere.
        """
        real = self._resolved(path)
        if not any(os.path.commonpath([real, root]) == root for root in self._real):
            allowed = ", ".join(self._roots) or "none (the server's config names no roots)"
            raise NotAllowed(f"data: {path!r} is not below a folder this server allows: {allowed}")

    def _resolved(self, path: str) -> str:
        folder, name = os.path.split(path)
        if os.path.islink(path) or name in ("", os.curdir, os.pardir):
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def check_roots(paths: Sequence[str], roots: Sequence[str]) -> None:
    """Refuse paths outside some folders.

    Raises:
        NotAllowed: One lies elsewhere.
    """
    known = Roots(roots)
    for path in paths:
        known.check(path)
