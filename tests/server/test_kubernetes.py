"""The manifests are what Kubernetes takes, what kustomize puts together, what clusters want."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests import APPLIED, KUBERNETES, containers, documents, generators, pod_specs
from pods import Image

from augserver.cli import app
from augserver.config import load, parse

#: The oldest with sidecars, and the newest whose schemas the validator has.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
#: Values that a schema can be wrong about, each of which has to be found.
BROKEN: dict[str, tuple[str, str]] = {
    "a word that no schema has": ("readinessProbe:", "redinessProbe:"),
    "text for a number": ("periodSeconds: 3\n", 'periodSeconds: "3"\n'),
    "a number for text": ('value: "2"', "value: 2"),
}

ALL = [
    pytest.param(
        applied, document, id=f"{applied}-{document['kind']}-{document['metadata']['name']}"
    )
    for applied in APPLIED
    for document in documents(KUBERNETES / applied)
]
PODS = [
    pytest.param(pod, id=f"{applied}-{name}")
    for applied in APPLIED
    for name, pod in pod_specs(KUBERNETES / applied).items()
]


# -- schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("applied", "document"), ALL)
def test_every_document_is_what_the_published_schemas_say(
    applied: str, document: dict[str, Any], version: str
) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def _validate_all(found: list[dict[str, Any]]) -> None:
    for document in found:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("what", BROKEN)
def test_the_validator_finds_what_is_wrong(what: str) -> None:
    text = (KUBERNETES / "workers" / "workers.yaml").read_text()
    old, new = BROKEN[what]
    assert old in text
    broken = list(yaml.safe_load_all(text.replace(old, new)))
    with pytest.raises(kubernetes_validate.ValidationError):
        _validate_all(broken)


# -- kustomize -----------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_named_by_a_kustomization() -> None:
    named = set()
    for path in KUBERNETES.glob("*/kustomization.yaml"):
        said = yaml.safe_load(path.read_text())
        named |= {path, *(path.parent / name for name in said.get("resources", ()))}
        for generator in said.get("configMapGenerator", ()):
            named |= {path.parent / name for name in generator["files"]}
    files = {
        path
        for path in KUBERNETES.rglob("*")
        if path.is_file() and path.suffix not in (".key", ".pub")
    }
    assert files <= named
    assert all(path.resolve().exists() for path in named)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no `kubectl` here, to kustomize with")
@pytest.mark.parametrize("applied", APPLIED)
def test_kustomize_makes_valid_documents_whose_names_fit(applied: str, tmp_path: Path) -> None:
    """With keys, which are made for it; it gives Secrets and ConfigMaps names of their own."""
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder, ignore=shutil.ignore_patterns("*.key", "*.pub"))
    for _, generator in generators(KUBERNETES / applied, "secret"):
        for name in generator["files"]:
            (folder / "keys" / name).write_text(name)
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder / applied)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    for document in made:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    names = {(d["kind"], d["metadata"]["name"]) for d in made}
    pods = [d["spec"]["template"]["spec"] for d in made if "template" in d.get("spec", {})]
    mounted = [volume for pod in pods for volume in pod["volumes"]]
    for volume in mounted:
        if "secret" in volume:
            assert ("Secret", volume["secret"]["secretName"]) in names
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
    assert any(re.fullmatch(r"augserver-\w{10}", name) for kind, name in names if kind != "Secret")


# -- what a cluster wants ------------------------------------------------------------------------


@pytest.mark.parametrize("pod", PODS)
def test_no_container_is_root_writes_to_its_image_or_may_become_more(pod: dict[str, Any]) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["fsGroup"] == 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("pod", PODS)
def test_every_container_says_what_it_needs_and_what_it_may_take(pod: dict[str, Any]) -> None:
    for container in containers(pod):
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    for volume in pod["volumes"]:
        if volume.get("emptyDir"):
            assert "sizeLimit" in volume["emptyDir"]


@pytest.mark.parametrize("pod", PODS)
def test_what_runs_for_long_is_probed_by_commands_that_there_are(pod: dict[str, Any]) -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands
                if command.callback is not None}  # fmt: skip
    commands = {name.replace("_", "-") for name in commands}
    for container in containers(pod):
        if container["image"] != "augserver" or container["name"] == "kernels":
            continue
        assert container["args"][0] in commands
        assert "readinessProbe" in container
        assert "startupProbe" in container
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in container:
                program, command = container[kind]["exec"]["command"]
                assert program == "augserver"
                assert command in commands


@pytest.mark.parametrize("pod", PODS)
def test_every_volume_is_there_and_every_memory_is_bounded(pod: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {m["name"] for container in containers(pod) for m in container["volumeMounts"]}
    assert mounted == set(volumes)
    for container in containers(pod):
        for mount in container["volumeMounts"]:
            if mount["mountPath"] == "/dev/shm":
                assert volumes[mount["name"]]["emptyDir"]["medium"] == "Memory"
    for volume in volumes.values():
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440


@pytest.mark.parametrize("applied", APPLIED)
def test_selectors_services_and_the_autoscaler_find_what_they_mean(applied: str) -> None:
    found = list(documents(KUBERNETES / applied))
    templates = {
        d["metadata"]["name"]: d["spec"]["template"] for d in found if "template" in d["spec"]
    }
    labels = [template["metadata"]["labels"] for template in templates.values()]
    for document in found:
        spec, kind = document["spec"], document["kind"]
        if kind == "Service":
            (chosen,) = (
                t for t in templates.values()
                if spec["selector"].items() <= t["metadata"]["labels"].items()
            )  # fmt: skip
            ports = {
                port["name"]: port["containerPort"]
                for container in containers(chosen["spec"])
                for port in container.get("ports", ())
            }
            assert {p["name"]: p["port"] for p in spec["ports"]} == ports
            # By number: names of a sidecar's ports are not known everywhere.
            assert all(p["targetPort"] == p["port"] for p in spec["ports"])
        elif kind in ("Deployment", "PodDisruptionBudget"):
            wanted = spec["selector"]["matchLabels"]
            assert sum(wanted.items() <= each.items() for each in labels) == 1
        elif kind == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in templates
            (deployment,) = (
                d for d in found
                if d["kind"] == "Deployment"
                and d["metadata"]["name"] == spec["scaleTargetRef"]["name"]
            )  # fmt: skip
            assert "replicas" not in deployment["spec"], "they are the autoscaler's"
        elif kind == "NetworkPolicy":
            wanted = spec["podSelector"]["matchLabels"]
            assert any(wanted.items() <= each.items() for each in labels)


def test_the_autoscaler_s_target_is_four_fifths_of_a_pod_s_workers() -> None:
    found = {d["kind"]: d["spec"] for d in documents(KUBERNETES / "workers")}
    (worker,) = found["Deployment"]["template"]["spec"]["containers"]
    env = {each["name"]: each["value"] for each in worker["env"]}
    (metric,) = found["HorizontalPodAutoscaler"]["metrics"]
    target = metric["external"]["target"]["averageValue"]
    assert int(target.removesuffix("m")) == 800 * int(env["AUGSERVER_WORKERS"])
    page = (KUBERNETES.parents[1] / "docs" / "kubernetes.md").read_text()
    assert metric["external"]["metric"]["name"] in page, "the page says where it comes from"


@pytest.mark.parametrize("applied", APPLIED)
def test_the_config_listens_where_the_manifest_says_with_keys_that_are_there(applied: str) -> None:
    ((folder, generator),) = generators(KUBERNETES / applied, "configMap")
    (name,) = generator["files"]
    config = parse(load(folder / name), Path("/srv/augserver"), {})
    ((pod, container),) = (
        (pod, container)
        for pod in pod_specs(KUBERNETES / applied).values()
        for container in containers(pod)
        if container.get("args") == ["serve"]
    )
    ports = {str(port["containerPort"]) for port in container["ports"]}
    heard = (*config.listen, *config.listen_workers, config.metrics)
    assert ports == {a.rpartition(":")[2] for a in heard if not a.startswith("ipc://")}
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    (secret,) = (
        v["secret"] for v in pod["volumes"] if v["name"] == mounts["/etc/augserver/server"]
    )
    (files,) = (
        generator["files"]
        for _, generator in generators(KUBERNETES / applied, "secret")
        if generator["name"] == secret["secretName"]
    )
    wanted = (config.key, *config.allow_consumers, *config.allow_workers)
    assert {path.removeprefix("/etc/augserver/server/") for path in wanted} <= set(files)
    env = {each["name"]: each["value"] for each in container["env"]}
    assert env["AUGSERVER_ADDRESS"] in config.listen, "the probes ask there"
    assert env["AUGSERVER_LISTEN"] == "", "or the image's own would win over the config"


def test_the_images_that_the_rehearsal_runs_are_the_dockerfile_s() -> None:
    server = Image.of_stage("server", {})
    assert server.entrypoint == ("augserver",)
    assert server.cmd == ("serve",)
    assert server.env["NUMBA_CACHE_DIR"] == "/run/augserver/kernels"
    assert Image.of_stage("trainer", {}).cmd == ("python", "train.py")
