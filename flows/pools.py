"""Create the work pools of deploy/prefect/ on Prefect's server: `python -m flows.pools docker` or `kubernetes`.

A pool's template of jobs is that of the installed provider (extra `workers`). To Kubernetes' are added the project's
folder from a volume claim, shared memory, GPUs, the secret with the servers' addresses and passwords, and time to write
a checkpoint where a pod is evicted. Pools that exist stay as they are; `--renew` gives them the template of now.
"""

import signal
import sys
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from bigr.runtime.errors import EXIT_USER_ERROR, BigrError
from flows import alert
from flows.deploy import FLOW, connected
from flows.guard import GRACE_S

POOLS = ("bigr-cpu", "bigr-gpu")


def docker() -> dict[str, Any]:
    """The template of jobs of Docker, as it is. Raises `ImportError` without the extra `workers`."""
    from prefect_docker.worker import DockerWorker

    return DockerWorker.get_default_base_job_template()


def kubernetes() -> dict[str, Any]:
    """The template of jobs of Kubernetes, with the variables `claim`, `gpus` and `secret`. Raises like `docker`."""
    from prefect_kubernetes.worker import KubernetesWorker

    template = KubernetesWorker.get_default_base_job_template()
    template["variables"]["properties"] |= {
        "claim": {"type": "string", "default": "bigr-project", "description": "Claim of the volume with the project"},
        "gpus": {"type": "integer", "default": 0, "description": "GPUs of a pod"},
        "secret": {"type": "string", "default": "bigr", "description": "Secret whose keys become the environment"},
    }
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pod["securityContext"] = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}
    pod["terminationGracePeriodSeconds"] = int(GRACE_S) + 30
    pod["volumes"] = [
        {"name": "project", "persistentVolumeClaim": {"claimName": "{{ claim }}"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    (container,) = pod["containers"]
    container["workingDir"] = "/project"
    container["envFrom"] = [{"secretRef": {"name": "{{ secret }}"}}]
    container["volumeMounts"] = [
        {"name": "project", "mountPath": "/project"},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    container["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpus }}"
    return template


TEMPLATES: dict[str, Callable[[], dict[str, Any]]] = {"docker": docker, "kubernetes": kubernetes}


def ensure(client: SyncPrefectClient, kind: str, renew: bool) -> None:
    """Create the pools. Raises `BigrError` where one of that name is of another kind, or the extra is missing."""
    try:
        template = TEMPLATES[kind]()
    except ImportError:
        raise BigrError(f"Pools of {kind} need the extra workers: pip install '.[workers]'") from None
    for name in POOLS:
        try:
            pool = client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
            continue
        if pool.type != kind:
            raise BigrError(f"The work pool {name} is of type {pool.type}, not {kind}; rename or delete it")
        if renew:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def main() -> int:
    """Exit status 2 for an error of the user's."""
    kind, *rest = sys.argv[1:] or [""]
    try:
        if kind not in TEMPLATES or rest not in ([], ["--renew"]):
            raise BigrError(f"Name the kind of pools: python -m flows.pools {' or '.join(TEMPLATES)} [--renew]")
        with connected(patience_s=10) as client:
            ensure(client, kind, bool(rest))
            alert.register(client, FLOW)
    except BigrError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    sys.stdout.write(
        f"The work pools {' and '.join(POOLS)} are there; deploy/prefect/{kind}.yaml has their deployments\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
