"""Pods of a manifest as plain processes: commands, environment, users, files, mounts and probes.

What a kubelet would do is done with `nsenter`, `unshare`, `chroot` and `setpriv`: each container
has a root file system of its own, read-only where the manifest says so, with this project and its
Python in the place of the image's, and no file of this machine besides; volumes are folders, or
memory where the manifest wants memory; Secrets and ConfigMaps are files of the manifest's modes;
nobody has capabilities. The network is that of a host (`hosts`). Limits of CPU and memory are not
imposed. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hosts import Host, without_hosts

ROOT = Path(__file__).parents[2]
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
#: What of this machine an image would bring along itself.
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")
_DEVICES = ("null", "zero", "full", "random", "urandom")


def without_pods() -> str | None:
    """Why there can be no pods here; None if there can."""
    for tool in ("nsenter", "unshare", "chroot", "setpriv"):
        if shutil.which(tool, path=_PATH) is None:
            return f"no `{tool}` here, to make pods with"
    if os.getuid():
        return "only root may be another user, as the containers of a pod are"
    return without_hosts()


@dataclass(frozen=True)
class Image:
    """What a Dockerfile's stage says of its containers.

    Attributes:
        entrypoint, cmd: What is run.
        env: Its environment.
        files: Other files of it: paths in the container by paths here.
    """

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of_stage(cls, stage: str, files: Mapping[str, Path]) -> Image:
        """A stage of this project's Dockerfile, with those before it that it is made from."""
        text = (ROOT / "Dockerfile").read_text()
        stages = {
            name: (parent, body)
            for parent, name, body in re.findall(
                r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL
            )
        }
        entrypoint: tuple[str, ...] = ()
        cmd: tuple[str, ...] = ()
        env: dict[str, str] = {}
        chain = [stage]
        while stages[chain[0]][0] in stages:
            chain.insert(0, stages[chain[0]][0])
        for name in chain:
            for key, rest in re.findall(r"^(ENV|ENTRYPOINT|CMD) (.*)", stages[name][1], re.M):
                if key == "ENV":
                    env |= dict(word.split("=", 1) for word in rest.split())
                elif key == "ENTRYPOINT":
                    entrypoint = tuple(json.loads(rest))
                else:
                    cmd = tuple(json.loads(rest))
        env["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        # In the place of the wheel: the tree that is under test.
        env["PYTHONPATH"] = ":".join(map(str, (ROOT, ROOT / "client", ROOT / "proto")))
        return cls(entrypoint, cmd, env, files)


class Pod:
    """One pod on a host; a context manager around its processes, which are killed at the end.

    Args:
        spec: Of the pod, as in the manifest.
        host: Where it runs.
        folder: For its volumes and logs.
        images: By the names that the manifest has.
        names: Of services, with their addresses.
        secrets, configs: Files of Secrets and ConfigMaps, by the names that the manifest has.
        volumes: Folders in the place of volumes.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        host: Host,
        folder: Path,
        *,
        images: Mapping[str, Image],
        names: Mapping[str, str],
        secrets: Mapping[str, Mapping[str, bytes]],
        configs: Mapping[str, Mapping[str, bytes]],
        volumes: Mapping[str, Path] | None = None,
    ) -> None:
        self._spec = spec
        self._host = host
        self._folder = folder
        self._images = images
        self._names = names
        self._given = volumes or {}
        self._secrets, self._configs = secrets, configs
        self._memory: dict[str, int] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        security = spec["securityContext"]
        self._user, self._group = security["runAsUser"], security["runAsGroup"]

    def __enter__(self) -> Pod:
        self._volumes = {volume["name"]: self._volume(volume) for volume in self._spec["volumes"]}
        # As a pod's: a process that does nothing holds what its containers share.
        mounts = "".join(
            f"mount -t tmpfs -o size={size},mode=2777,gid={self._group} tmpfs "
            f"{shlex.quote(str(self._volumes[name]))}\n"
            for name, size in self._memory.items()
        )
        script = f"{mounts}echo holds\nexec sleep infinity"
        self._pause = subprocess.Popen(
            self._host.command(
                "unshare", "--mount", "--propagation", "private", "sh", "-ec", script
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._pause.stdout is not None
        if self._pause.stdout.readline() != b"holds\n":
            self._pause.kill()
            raise AssertionError(f"no place for a pod in {self._folder}")
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for name in reversed(self._running):
                self.end(name)
        finally:
            self._pause.kill()
        self._pause.wait(10)
        assert self._pause.stdout is not None
        self._pause.stdout.close()

    # -- what a kubelet does --------------------------------------------------------------------

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Run a container of it."""
        container = self._container(name)
        root = self._folder / f"root-{name}"
        root.mkdir()
        command = [
            "nsenter", f"--target={self._pause.pid}", "--mount", "--net",
            "unshare", "--mount", "--propagation", "private",
            "sh", "-ec", self._script(container, root),
        ]  # fmt: skip
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env={**os.environ, "PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._running[name]

    def run(self, name: str, deadline: float = 60.0) -> None:
        """Run a container of it to its end, which has to be a good one."""
        assert self.start(name).wait(deadline) == 0, self.log(name).read_text()

    def probe(self, name: str, kind: str) -> subprocess.CompletedProcess[str]:
        """Ask a container's probe once."""
        container = self._container(name)
        probe = container[f"{kind}Probe"]
        target = self._running[name].pid
        return subprocess.run(
            ["nsenter", f"--target={target}", "--mount", "--net", "--root",
             *self._as_user(container, probe["exec"]["command"])],
            capture_output=True, text=True, timeout=probe["timeoutSeconds"] + 5, check=False,
        )  # fmt: skip

    def wait_until_started(self, name: str) -> None:
        """Ask its startup probe as often as the manifest says."""
        probe = self._container(name)["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            asked = self.probe(name, "startup")
            if asked.returncode == 0:
                return
            process = self._running[name]
            assert process.poll() is None, self.log(name).read_text()
            # What a kubelet does between two; ours need not be as slow, nor may they be endless.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(probe["periodSeconds"] / 3)
        raise AssertionError(f"{asked.stderr}\n{self.log(name).read_text()}")

    def end(self, name: str) -> int:
        """SIGTERM, and SIGKILL after the grace that the manifest gives; the exit code."""
        process = self._running[name]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._spec.get("terminationGracePeriodSeconds", 30))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        code = process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whom it has left behind
        return code

    def pid(self, name: str) -> int:
        """Of a container's first process."""
        return self._running[name].pid

    def log(self, name: str) -> Path:
        """What it has said."""
        return self._folder / f"{name}.log"

    # -- how ------------------------------------------------------------------------------------

    def _container(self, name: str) -> Mapping[str, Any]:
        (found,) = (
            container
            for container in [*self._spec.get("initContainers", ()), *self._spec["containers"]]
            if container["name"] == name
        )
        return dict(found)

    def _volume(self, volume: Mapping[str, Any]) -> Path:
        name = volume["name"]
        if name in self._given:
            return self._given[name]
        folder = self._folder / "volumes" / str(name)
        folder.mkdir(parents=True)
        mode = 0o2777
        match volume:
            case {"emptyDir": {"medium": "Memory", "sizeLimit": limit}}:
                self._memory[name] = int(limit[:-2]) * _UNITS[limit[-2:]]
            case {"secret": {"secretName": secret, "defaultMode": file_mode}}:
                self._write(folder, self._secrets[secret], file_mode)
                mode = 0o3777
            case {"configMap": {"name": config}}:
                self._write(folder, self._configs[config], 0o644)
                mode = 0o3777
            case {"emptyDir": _}:
                pass
            case _:
                raise AssertionError(f"no such volume is known here: {volume}")
        os.chown(folder, 0, self._group)  # fsGroup's
        folder.chmod(mode)
        return folder

    def _write(self, folder: Path, files: Mapping[str, bytes], mode: int) -> None:
        for name, data in files.items():
            path = folder / name
            path.write_bytes(data)
            os.chown(path, 0, self._group)
            path.chmod(mode)

    def _script(self, container: Mapping[str, Any], root: Path) -> str:
        """Make its root, mount what it mounts, and become it."""
        image = self._images[container["image"]]
        lines = list(_root_of(root, image, self._names))
        for mount in container["volumeMounts"]:
            source = self._volumes[mount["name"]] / mount.get("subPath", "")
            target = f"{root}{mount['mountPath']}"
            lines += _mounted(source, Path(target), read_only=bool(mount.get("readOnly")))
        # After the volumes: all of this may lie below /tmp, over which one is mounted.
        own = {sys.base_prefix, sys.prefix, str(ROOT)}
        for path in sorted(own):
            if not path.startswith("/usr/"):
                lines += _mounted(Path(path), Path(f"{root}{path}"), read_only=True)
        if container["securityContext"].get("readOnlyRootFilesystem"):
            lines.append(f"mount -o remount,ro {root}")
        words = list(container.get("command") or image.entrypoint)
        words += container.get("args") or (() if container.get("command") else image.cmd)
        lines.append(f"exec chroot {root} {shlex.join(self._as_user(container, words))}")
        return "\n".join(lines)

    def _as_user(self, container: Mapping[str, Any], command: list[str]) -> list[str]:
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        env = dict(self._images[container["image"]].env)
        env |= {e["name"]: e["value"] for e in container.get("env", ())}
        privileges = [] if security["allowPrivilegeEscalation"] else ["--no-new-privs"]
        return [
            "setpriv", f"--reuid={self._user}", f"--regid={self._group}",
            f"--groups={self._spec['securityContext']['fsGroup']}",
            "--inh-caps=-all", "--bounding-set=-all", *privileges,
            "env", "--ignore-environment", "--chdir=/srv/augserver",
            *(f"{name}={value}" for name, value in env.items()),
            *command,
        ]  # fmt: skip


def _root_of(root: Path, image: Image, names: Mapping[str, str]) -> Iterator[str]:
    """A container's root file system, as lines of a shell's program."""
    yield f"mount -t tmpfs -o mode=755 tmpfs {root}"
    for name in _SYSTEM:
        here = Path("/") / name
        if here.is_symlink():
            yield f"ln -s {os.readlink(here)} {root}/{name}"
        elif here.is_dir():
            yield from _mounted(here, root / name, read_only=True)
    for inside, path in image.files.items():
        yield from _mounted(path, Path(f"{root}{inside}"), read_only=True)
    yield f"mkdir -p {root}/etc/augserver {root}/srv/augserver {root}/tmp {root}/proc {root}/sys"
    for name in _ETC:
        if Path("/etc", name).exists():
            yield f"cp -r /etc/{name} {root}/etc/"
    lines = [f"{address} {name}" for name, address in {"localhost": "127.0.0.1", **names}.items()]
    yield f"printf '%s\\n' {shlex.join(lines)} > {root}/etc/hosts"
    yield f"mount --rbind /proc {root}/proc"
    yield f"mount --rbind /sys {root}/sys"
    yield f"mkdir -p {root}/dev/shm"
    for name in _DEVICES:
        yield f"touch {root}/dev/{name}; mount --bind /dev/{name} {root}/dev/{name}"
    yield f"mount -t tmpfs -o size=64m,mode=1777 tmpfs {root}/dev/shm"  # a container's own


def _mounted(source: Path, target: Path, *, read_only: bool) -> Iterator[str]:
    here, there = shlex.quote(str(source)), shlex.quote(str(target))
    if source.is_dir():
        yield f"mkdir -p {there}"
    else:
        yield f"mkdir -p {shlex.quote(str(target.parent))}; touch {there}"
    yield f"mount --bind {here} {there}"
    if read_only:
        yield f"mount -o remount,bind,ro {there}"
