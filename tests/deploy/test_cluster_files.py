"""Manifests, the batch script and the images: what they ask for suffices for the runs they name."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from deploy.planning.hardware import MB
from deploy.planning.placement import DRIVER_MB, RAY_MB
from deploy.run_folder.opening import open_run

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERAY, SBATCH = DEPLOY / "kuberay", DEPLOY / "slurm/varkd.sbatch"
GROUPS = ("learner", "teacher", "rollout")
RUNS = {
    path.name: yaml.safe_load(path.read_text())
    for path in (KUBERAY / "raycluster.yaml", KUBERAY / "rayjob.yaml")
}


def closed(*required, **properties):
    """JSON schema of an object with these fields and no others."""
    kinds = {str: "string", int: "integer", bool: "boolean"}
    found = {
        name: kind if isinstance(kind, dict) else {"type": kinds[kind]}
        for name, kind in properties.items()
    }
    return {
        "type": "object",
        "properties": found,
        "required": list(required),
        "additionalProperties": False,
    }


def many(item):
    return {"type": "array", "items": item, "minItems": 1}


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
REFERENCE = closed("name", name=str, optional=bool)
CONTAINER = closed(
    *("name", "image", "resources", "securityContext"),
    name=str,
    image=str,
    workingDir=str,
    env=many(closed("name", name=str, value=str)),
    envFrom=many(closed("secretRef", secretRef=REFERENCE)),
    ports=many(closed("name", "containerPort", name=str, containerPort=int)),
    resources=closed("requests", "limits", requests=TEXTS, limits=TEXTS),
    securityContext=closed(
        *("runAsNonRoot", "allowPrivilegeEscalation", "capabilities"),
        runAsNonRoot={"const": True},
        allowPrivilegeEscalation={"const": False},
        capabilities=closed("drop", drop={"const": ["ALL"]}),
    ),
    volumeMounts=many(closed("name", "mountPath", name=str, mountPath=str)),
)
VOLUME = closed(
    *("name", "persistentVolumeClaim"),
    name=str,
    persistentVolumeClaim=closed("claimName", claimName=str),
)
TEMPLATE = closed(
    *("metadata", "spec"),
    metadata=closed("labels", labels=TEXTS),
    spec=closed(
        *("containers", "restartPolicy"),
        restartPolicy={"const": "Never"},
        automountServiceAccountToken=bool,
        containers=many(CONTAINER),
        volumes=many(VOLUME),
    ),
)
CLUSTER = closed(
    *("rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions"),
    rayVersion=str,
    authOptions=closed("mode", mode={"const": "token"}),
    enableInTreeAutoscaling=bool,
    autoscalerOptions=closed("version", version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=int),
    headGroupSpec=closed(
        *("rayStartParams", "template"),
        serviceType={"const": "ClusterIP"},
        rayStartParams=TEXTS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=many(
        closed(
            *("groupName", "rayStartParams", "template"),
            groupName=str,
            labels=TEXTS,
            rayStartParams=TEXTS,
            template=TEMPLATE,
            replicas=int,
            minReplicas=int,
            maxReplicas=int,
        )
    ),
)
JOB = closed(
    *("entrypoint", "rayClusterSpec"),
    entrypoint=str,
    backoffLimit=int,
    rayClusterSpec=CLUSTER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=bool,
    ttlSecondsAfterFinished=int,
)
"""The fields of ray.io/v1 that are used here, as KubeRay 1.6 has them; no manifest has others."""


def cluster_of(document):
    return document["spec"].get("rayClusterSpec", document["spec"])


def command_of(document):
    annotations = document["metadata"].get("annotations", {})
    return annotations.get("varkd-run") or document["spec"]["entrypoint"]


def planned(command):
    """The run that `varkd distill ...` would be, and what `--dry-run` says of it."""
    from deploy.planning.plan import plan_run

    words = shlex.split(command)
    assert words[:2] == ["varkd", "distill"]
    config, workspace = open_run(Path(words[2]), [word for word in words[3:] if "=" in word])
    return config, plan_run(config, workspace, timed=True)


def megabytes(text):
    return int(text.removesuffix("Gi")) * 1024


@pytest.fixture(scope="module")
def manifest():
    """The cluster that both manifests describe, with its run and that run's plan."""
    job, cluster = RUNS["rayjob.yaml"], RUNS["raycluster.yaml"]
    assert cluster_of(job) == cluster_of(cluster)
    assert shlex.split(command_of(job)) == shlex.split(command_of(cluster))
    return cluster_of(job), *planned(command_of(job))


def test_manifests_have_fields_that_kuberay_knows():
    for name, schema in (("rayjob.yaml", JOB), ("raycluster.yaml", CLUSTER)):
        found = RUNS[name]
        assert (found["apiVersion"], found["kind"].lower()) == ("ray.io/v1", Path(name).stem)
        errors = Draft202012Validator(schema).iter_errors(found["spec"])
        assert [f"{error.json_path}: {error.message}" for error in errors] == []
    pinned = (DEPLOY.parent / "constraints/cpu.txt").read_text()
    assert f"ray=={cluster_of(found)['rayVersion']}\n" in pinned
    storage = yaml.safe_load((KUBERAY / "storage.yaml").read_text())
    assert storage["metadata"]["name"] in str(cluster_of(found))


def test_every_group_has_room_for_its_role(manifest):
    """CPUs and GPUs as Ray counts them; memory of a pod with all that may land there."""
    cluster, config, plan = manifest
    label = config.cluster.role_label
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert [(name, group["labels"]) for name, group in groups.items()] == [
        (name, {label: name}) for name in GROUPS
    ]
    anywhere = sum(need.bundles.count * need.host_mb for need in plan.needs if need.is_anywhere)
    data_mb = plan.nodes[0].parts_mb["token data"]
    assert data_mb > 1000
    for need in plan.needs[:3]:
        group, count = groups[need.bundles.section], need.bundles.count
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        each = -(-count // group["replicas"])
        start, store_mb, memory_mb = pod(group)
        assert each * need.cpus <= int(start["num-cpus"])
        assert each * need.gpus <= int(start["num-gpus"])
        assert store_mb >= anywhere + data_mb * (need.bundles.section == "rollout")
        assert memory_mb >= RAY_MB + each * need.host_mb + anywhere + store_mb
    alike = Counter(node.labels[label] for node in plan.nodes)
    assert alike == {name: groups[name]["replicas"] for name in GROUPS}, "as the dry run has them"
    rollout, workers = groups["rollout"], config.rollout
    most = int(rollout["rayStartParams"]["num-gpus"]) * rollout["maxReplicas"]
    assert workers.workers < workers.most_workers <= most / workers.gpus
    start, store_mb, memory_mb = pod(cluster["headGroupSpec"])
    assert (start["num-cpus"], start["num-gpus"]) == ("0", "0")
    assert store_mb >= data_mb + anywhere
    assert memory_mb >= RAY_MB + DRIVER_MB + data_mb + anywhere + store_mb


def pod(group):
    """(`ray start` parameters, shared memory in MB, memory in MB) of a group's pods, which ask
    Kubernetes for what they tell Ray."""
    start = group["rayStartParams"]
    (container,) = group["template"]["spec"]["containers"]
    wanted = container["resources"]
    assert wanted["requests"] == wanted["limits"]
    assert wanted["limits"].get("nvidia.com/gpu", "0") == start["num-gpus"]
    assert start["num-cpus"] in ("0", wanted["limits"]["cpu"])
    return start, int(start["object-store-memory"]) / MB, megabytes(wanted["limits"]["memory"])


def test_the_batch_script_asks_for_what_its_run_takes():
    text = SBATCH.read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.M))
    usage = re.sub(r" \\\n# +", " ", text)
    lines = re.findall(r"^#   sbatch (.*)deploy/slurm/varkd.sbatch (.+)$", usage, re.M)
    assert [options for options, _ in lines] == ["", "--nodes=2 "]
    for options, words in lines:
        config, plan = planned(f"varkd {words}")
        nodes = int(options.partition("=")[2] or asked["nodes"])
        assert config.cluster.nodes == len(plan.nodes) == nodes
        for node in plan.nodes:
            assert node.hardware.gpus <= int(asked["gpus-per-node"])
            assert node.hardware.cpus - node.cpus <= int(asked["cpus-per-task"])
            assert node.memory_mb <= int(asked["mem"].removesuffix("G")) * 1024


FAKES = {
    "scontrol": 'printf "first\\nsecond\\n"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1 127.0.0.1",
    "ray": 'echo "ray $* $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >>"$LOG"; exec sleep 60',
    "varkd": """
echo "varkd $* at $RAY_ADDRESS $RAY_AUTH_MODE $(wc -c <"$RAY_AUTH_TOKEN_PATH")" >>"$LOG"
trap 'echo told >>"$LOG"; exit 7' TERM
[ "$1" = wait ] || exit 3
while true; do sleep 0.05; done
""",
}


@pytest.mark.parametrize(("argument", "told", "code"), [("fail", False, 3), ("wait", True, 7)])
def test_the_batch_script_starts_ray_and_ends_as_its_command_does(tmp_path, argument, told, code):
    for name, script in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)},
        **{"VARKD_TOKENS": str(tmp_path), "SLURM_JOB_ID": "41007", "SLURM_CPUS_PER_TASK": "8"},
        **{"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "2"},
    }
    batch = subprocess.Popen(
        ["bash", SBATCH, argument, "a b"], env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 20
        while told and not (log.exists() and log.read_text().count("\n") == 3):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if told:
            batch.send_signal(signal.SIGTERM)
        assert batch.wait(20) == code
    finally:
        if batch.poll() is None:
            os.killpg(batch.pid, signal.SIGKILL)
    said = sorted(log.read_text().splitlines())
    assert said.pop() == f"varkd {argument} a b at 10.0.0.1:21007 token 64"
    assert ("told" in said) is told
    if told:  # else Ray may have been ended before it began
        common = "--num-cpus=8 --num-gpus=2 --disable-usage-stats --block 600"
        assert said[:2] == [
            f"ray start --address=10.0.0.1:21007 {common}",
            "ray start --head --node-ip-address=10.0.0.1 --port=21007 --dashboard-host=127.0.0.1 "
            f"--temp-dir=/tmp/ray-41007 {common}",
        ]
    assert not list(tmp_path.glob(".varkd-token-*"))


def test_images_copy_what_is_there_and_run_as_nobody_special():
    text = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    assert [stage.split()[2] for stage in stages] == ["base", "cpu", "gpu"]
    sent = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for word in line.split()]
    assert sorted(copied) == sorted(line[1:] for line in sent if line.startswith("!"))
    assert all((DEPLOY.parent / name).exists() for name in copied)
    for stage in stages[1:]:
        assert "\nUSER 1000\n" in stage.partition("RUN pip install")[2]
        assert "-c constraints/cpu.txt ." in stage
