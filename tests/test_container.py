"""deploy/: the image, the compose file and the jobs of work pools, read as far as that goes without Docker."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from ruamel.yaml import YAML

from flows import pools
from flows.guard import GRACE_S
from tests.compose import PASSWORDS, interpolated, services

ROOT = Path(__file__).parents[1]
IMAGE = "registry.example/bigr:1"
CONTEXT = {"BIGR_IMAGE": IMAGE, "BIGR_NAMESPACE": "research", "PROJECT": "/srv/bigr"}


def test_the_dockerfile_has_no_finding() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout


def test_the_image_takes_in_the_code_and_neither_data_nor_passwords() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    taken = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in taken)
    assert not taken & {
        ".credentials",
        ".prefect",
        ".env",
        "deploy",
        "data",
        "models",
        "mlflow.db",
        "mlartifacts",
        ".git",
    }
    needed = {
        "bigr",
        "flows",
        "params.yaml",
        "dvc.yaml",
        "prefect.yaml",
        "pyproject.toml",
        "requirements.lock",
        "README.md",
    }
    assert needed | {"LICENSE"} <= taken


def test_the_compose_file_is_one() -> None:
    from compose_spec import PyCompose

    described = PyCompose.from_json(json.dumps(interpolated())).to_spec()
    assert described.services.keys() == services().keys()


@pytest.mark.parametrize("password", PASSWORDS)
def test_the_compose_file_starts_nothing_without_a_password(password: str) -> None:
    with pytest.raises(KeyError, match=password):
        interpolated(**{password: ""})


def test_no_password_is_in_the_compose_file() -> None:
    known = {name: f"value-of-{name}" for name in PASSWORDS}
    for name, service in services(**known).items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY", key) and "CONFIG" not in key:
                assert "value-of-" in str(value), f"{name}: {key}"


def test_what_the_compose_file_publishes_is_on_loopback_and_every_service_says_whether_it_works() -> None:
    known = services()
    for name, service in known.items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert ("healthcheck" in service) != (name == "bucket"), name
        assert re.search(r":[\w.-]+$", service["image"]) or "build" in service, name
        for other, condition in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other == "bucket" else "service_healthy"
            assert other in known and condition["condition"] == expected


# The jobs of work pools


def deployments(kind: str) -> list[dict[str, Any]]:
    """The deployments for pools of this kind, with what the environment says."""
    text = (ROOT / "deploy" / "prefect" / f"{kind}.yaml").read_text()
    for name, value in CONTEXT.items():
        text = text.replace(f"{{{{ ${name} }}}}", value)
    assert "{{ $" not in text
    return list(YAML(typ="safe").load(text)["deployments"])


def job(kind: str, deployment: dict[str, Any]) -> Any:
    """The provider's own configuration of a job of the deployment, validated as the worker does."""
    template = pools.TEMPLATES[kind]()
    variables = deployment["work_pool"]["job_variables"]
    jsonschema.validate(variables, template["variables"] | {"additionalProperties": False})
    if kind == "docker":
        from prefect_docker.worker import DockerWorkerJobConfiguration as Configuration
    else:
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):  # a client that has nothing to ask
        return asyncio.run(Configuration.from_template_and_values(template, variables))


@pytest.mark.parametrize("kind", pools.TEMPLATES)
def test_deployments_of_pools_are_the_flow_with_parameters_that_it_takes(kind: str) -> None:
    from flows.pipeline import pipeline

    data, train = deployments(kind)
    for deployment in (data, train):
        assert (ROOT / deployment["entrypoint"].partition(":")[0]).exists()
        pipeline.validate_parameters(deployment["parameters"])
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert (data["work_pool"]["name"], train["work_pool"]["name"]) == pools.POOLS
    assert data["parameters"]["stages"] == ["dataset", "shards"]


def test_a_pod_has_the_project_its_passwords_shared_memory_and_gpus_only_where_it_trains() -> None:
    for deployment, gpus in zip(deployments("kubernetes"), (0, 8), strict=True):
        manifest = job("kubernetes", deployment).job_manifest
        assert "{{" not in json.dumps(manifest)
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert (container["image"], manifest["metadata"]["namespace"]) == (IMAGE, "research")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
        assert container["envFrom"] == [{"secretRef": {"name": "bigr"}}]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounted["/project"]["persistentVolumeClaim"] == {"claimName": "bigr-project"}
        assert mounted["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["terminationGracePeriodSeconds"] > GRACE_S  # the stage's own time to write a checkpoint


def test_the_manifest_of_a_pod_is_one_that_kubernetes_own_client_reads() -> None:
    from kubernetes_asyncio import client

    for deployment in deployments("kubernetes"):
        manifest = job("kubernetes", deployment).job_manifest
        api = client.ApiClient.__new__(client.ApiClient)
        api.configuration = client.Configuration()
        response = type("Response", (), {"data": json.dumps(manifest)})
        read = api._ApiClient__deserialize(json.loads(response.data), "V1Job")
        assert api.sanitize_for_serialization(read)["spec"]["template"]["spec"]["volumes"]


def test_a_container_has_the_project_and_gpus_only_where_it_trains() -> None:
    data, train = (job("docker", deployment) for deployment in deployments("docker"))
    for configuration in (data, train):
        assert configuration.image == IMAGE and configuration.volumes == ["/srv/bigr:/project"]
    assert data.container_create_kwargs is None
    (asked,) = train.container_create_kwargs["device_requests"]
    assert asked["Capabilities"] == [["gpu"]]


@pytest.mark.parametrize("words", [[], ["swarm"], ["docker", "--now"]])
def test_a_kind_of_pools_that_is_none_is_told_in_one_line(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.pools", *words], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "docker or kubernetes" in done.stderr
