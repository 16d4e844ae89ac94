"""Compose and Kubernetes files: valid, and consistent with each other and with what they mount."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgmonkey.cli.serve import command
from pgmonkey.config.directory import DirectoryLoader
from tests.containers.dockerfile import read
from tests.docs.snippets import ROOT

DOCKER = ROOT / "docker"
KUBERNETES = sorted((DOCKER / "kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
FINAL = read(DOCKER / "Dockerfile")[-1]


def documents(*kinds: str) -> list[dict[str, Any]]:
    return [
        document
        for path in KUBERNETES
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] in kinds
    ]


def run(*command: str | Path) -> str:
    program = Path(sys.executable).with_name(str(command[0]))
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def load(directory: Path) -> None:
    """Read a registry whose secrets have been made."""
    scan = DirectoryLoader(directory).scan()
    scan.raise_for_problems()
    assert scan.configs


def test_the_compose_file_is_valid() -> None:
    """compose.yaml is valid by the schema of the Compose specification."""
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")


def test_the_manifests_are_valid() -> None:
    """The manifests are valid by the schemas of Kubernetes, without unknown keys."""
    said = run("kubernetes-validate", "--strict", *KUBERNETES)
    validated = re.findall(r"passed for resource (\w+)/", said)
    assert sorted(validated) == ["configmap", "deployment", "deployment", "secret", "service"]


def test_compose_mounts_what_is_there() -> None:
    """Every path of a bind mount exists, every secret and volume is declared, ports stay local."""
    declared = COMPOSE["volumes"].keys()
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
                assert volume.endswith(":ro")
            else:
                assert source in declared
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    build = COMPOSE["services"]["pgmonkey"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"


def test_every_image_of_compose_has_a_version() -> None:
    """Every image is pulled by its version, none as `latest`."""
    images = {service["image"] for service in COMPOSE["services"].values()} - {"pgmonkey"}
    assert len(images) == 3
    assert all(re.search(r":v?\d", image) for image in images)


def test_the_registry_of_compose_loads(tmp_path: Path) -> None:
    """The registry of the Compose file has the hosts, users and secrets of its services."""
    directory = tmp_path / "registry.d"
    directory.mkdir()
    for path in (DOCKER / "registry.d").glob("*.yaml"):
        text = path.read_text()
        settings = yaml.safe_load(text)["connection_settings"]
        service = COMPOSE["services"][settings["host"]]
        assert service["environment"]["POSTGRES_USER"] == settings["user"]
        assert service["environment"]["POSTGRES_DB"] == settings["dbname"]
        secret = settings["password"]["from_file"]
        assert service["environment"]["POSTGRES_PASSWORD_FILE"] == secret
        assert Path(secret).name in COMPOSE["services"]["pgmonkey"]["secrets"]
        (tmp_path / Path(secret).name).write_text("value\n")
        (directory / path.name).write_text(text.replace("/run/secrets", str(tmp_path)))
    load(directory)


def test_the_registry_of_kubernetes_loads(tmp_path: Path) -> None:
    """The ConfigMap's databases read the keys of the Secret from where it is mounted."""
    (config,) = documents("ConfigMap")
    (secret,) = documents("Secret")
    mounts = {
        mount["name"]: mount["mountPath"]
        for deployment in documents("Deployment")
        for container in deployment["spec"]["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]
    }
    mounted = tmp_path / mounts["orders"].lstrip("/")
    mounted.mkdir(parents=True)
    for key, value in secret["stringData"].items():
        (mounted / key).write_text(value)
    directory = tmp_path / "registry.d"
    directory.mkdir()
    for name, text in config["data"].items():
        (directory / name).write_text(text.replace("/run/secrets", f"{tmp_path}/run/secrets"))
    load(directory)


@pytest.mark.parametrize("deployment", documents("Deployment"), ids=lambda d: d["metadata"]["name"])
def test_pods_run_as_the_image_does(deployment: dict[str, Any]) -> None:
    """The pods run as the image's user, with a read-only root and no privileges, on declared volumes."""
    pod = deployment["spec"]["template"]["spec"]
    user = pod["securityContext"]
    assert FINAL.user == f"{user['runAsUser']}:{user['runAsGroup']}"
    assert user["fsGroup"] == user["runAsGroup"]
    assert user["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        ports = {port["name"] for port in container["ports"]}
        probes = [container[key]["httpGet"] for key in container if key.endswith("Probe")]
        assert probes
        assert {probe["port"] for probe in probes} <= ports
        for mount in container["volumeMounts"]:
            assert mount["name"] in volumes
            assert mount["readOnly"]
            assert "subPath" not in mount


def test_selectors_find_their_pods() -> None:
    """Deployment, Service and PodMonitor select the labels and name the ports that the pods have."""
    pods = {d["metadata"]["name"]: d["spec"]["template"] for d in documents("Deployment")}
    for deployment in documents("Deployment"):
        template = pods[deployment["metadata"]["name"]]
        assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    labels = pods["pgmonkey"]["metadata"]["labels"]
    (container,) = pods["pgmonkey"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    (service,) = documents("Service")
    assert service["spec"]["selector"] == labels
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    (monitor,) = documents("PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_commands_exist() -> None:
    """Image and Compose start commands and options that exist."""
    options = {option for parameter in command.params for option in parameter.opts}
    for words in (FINAL.command, COMPOSE["services"]["pgmonkey"]["command"]):
        assert words[0] == "serve"
        assert {word for word in words if word.startswith("--")} <= options


def test_the_ports_agree() -> None:
    """Image, Compose, Kubernetes and Prometheus name the same port."""
    listen = FINAL.command[-1]
    port = int(listen.rpartition(":")[2])
    assert str(port) in " ".join(FINAL.healthcheck)
    (job,) = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
    assert job["static_configs"] == [{"targets": [f"pgmonkey:{port}"]}]
    assert COMPOSE["services"]["pgmonkey"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    exposed = {
        container_port["containerPort"]
        for deployment in documents("Deployment")
        for kind in ("initContainers", "containers")
        for container in deployment["spec"]["template"]["spec"].get(kind, ())
        if container["name"] == "pgmonkey"
        for container_port in container["ports"]
    }
    assert exposed == {port}
