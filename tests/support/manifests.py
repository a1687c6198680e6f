"""The manifests under deploy/kubernetes, and what kustomize would make of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
#: What is applied; the others are parts of these.
APPLIED = ("service", "sidecar")


def kustomization(folder: Path) -> dict[str, Any]:
    """Of a folder."""
    loaded = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    """Everything that a folder applies, but for what is generated."""
    for name in kustomization(folder).get("resources", ()):
        path = folder / name
        if path.is_dir():
            yield from documents(path)
        else:
            yield from yaml.safe_load_all(path.read_text())


def generators(folder: Path, kind: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Its generators of that kind ("secret" or "configMap"), each with the folder of its files."""
    said = kustomization(folder)
    for generator in said.get(f"{kind}Generator", ()):
        yield folder, generator
    for name in said.get("resources", ()):
        if (folder / name).is_dir():
            yield from generators(folder / name, kind)


def pod_specs(folder: Path) -> dict[str, dict[str, Any]]:
    """The pods of everything that makes some, by its name."""
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]
        for document in documents(folder)
        if "template" in document["spec"]
    }


def containers(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a pod, those that come first among them."""
    return [*pod.get("initContainers", ()), *pod["containers"]]
