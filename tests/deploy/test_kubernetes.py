"""The manifests: built by kustomize, valid for Kubernetes' own schemas, closed, and the same commands as in compose."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import socket
import subprocess
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from launcher import cli
from launcher.capacity import Node
from launcher.plan import make_plan
from launcher.run_directory import RunDirectory
from replay_service.access import Role
from replay_service.connection import RedisEndpoint, check
from replay_service.credentials import write_credentials
from replay_service.errors import RedisUnavailable
from tests.certificates import OPENSSL, Authority
from tests.conftest import WaitUntil
from tests.deploy import compose_file, images
from tests.ports import free_port

FOLDER = images.ROOT / "deploy" / "kubernetes"
VERSION = "1.36"
MONITORED = "overlays/monitored"  # made by `tree`
WITHOUT_RAY = ("base", "overlays/cpu", "overlays/gpu", "overlays/tls", MONITORED)
WITH_RAY = ("kuberay/cluster", "kuberay/job", "kuberay/gpu")
ROLES = [role.value for role in Role]

Document = dict[str, Any]
Build = Callable[[str], list[Document]]

# The fields of KubeRay's kinds that these manifests use, by the reference of its API (no package ships its schemas).
RAY_CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
RAY_HEAD = {"rayStartParams", "template"}
RAY_WORKER = RAY_HEAD | {"groupName", "replicas", "minReplicas", "maxReplicas"}
RAY_JOB = {
    "entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    "submitterPodTemplate", "rayClusterSpec",
}  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if OPENSSL is None:
        pytest.skip("no openssl to make certificates with")
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Path:
    """A copy of the folder with the files that stay out of the repository."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on the PATH")
    copy = tmp_path_factory.mktemp("deploy") / "kubernetes"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("secrets", "tls.*", "ca.crt"))
    write_credentials(copy / "base" / "secrets", "pen-0")
    lines = ["resources: [../cpu]", "components: [../../monitoring]"]
    (copy / MONITORED).mkdir()
    (copy / MONITORED / "kustomization.yaml").write_text("\n".join(lines))
    tls = copy / "overlays" / "tls" / "tls"
    tls.mkdir(exist_ok=True)
    certificate, key = authority.issue("redis", "DNS:redis,DNS:redis.awac.svc,IP:127.0.0.1")
    for source, name in ((certificate, "tls.crt"), (key, "tls.key"), (authority.certificate, "ca.crt")):
        shutil.copy(source, tls / name)
    return copy


@pytest.fixture(scope="module")
def build(tree: Path) -> Build:
    built: dict[str, list[Document]] = {}

    def run(name: str) -> list[Document]:
        if name not in built:
            done = subprocess.run(["kubectl", "kustomize", tree / name], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert "Warning" not in done.stderr
            built[name] = list(yaml.safe_load_all(done.stdout))
        return deepcopy(built[name])

    return run


def find(documents: list[Document], kind: str, name: str) -> Document:
    (found,) = [
        d for d in documents if d["kind"] == kind and re.fullmatch(rf"{name}(-\w{{10}})?", d["metadata"]["name"])
    ]
    return found


def workload(documents: list[Document], role: str) -> Document:
    (found,) = [d for d in documents if d["metadata"]["name"] == role and "template" in d.get("spec", {})]
    return found


def ray_cluster(document: Document) -> Document:
    spec: Document = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def node_of(group: Document, address: str) -> Node:
    """What Ray makes of a pod: its limits, unless a start parameter says otherwise."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus = group["rayStartParams"].get("num-cpus", limits["cpu"])
    return Node(address, float(cpus), float(limits.get("nvidia.com/gpu", 0)))


def started_commands() -> list[list[str]]:
    """The `launcher` commands of the script that a Ray cluster is given, without the program's name."""
    text = (FOLDER / "kuberay" / "common" / "start.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line.strip()) for line in text.splitlines() if "exec launcher" in line]
    return [words[2:] for words in lines]


def pod_templates(documents: list[Document]) -> list[Document]:
    found = [d["spec"]["template"] for d in documents if d["kind"] in ("Deployment", "StatefulSet", "Job")]
    for document in documents:
        if document["kind"] in ("RayCluster", "RayJob"):
            cluster = ray_cluster(document)
            found += [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
            found += [document["spec"]["submitterPodTemplate"]] if document["kind"] == "RayJob" else []
    return found


@pytest.mark.parametrize("name", [*WITHOUT_RAY, *WITH_RAY, "tools"])
def test_every_object_fits_the_schemas(build: Build, name: str) -> None:
    documents = build(name)
    unknown = set()
    for document in documents:
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(document["kind"])
    # Those of operators; `TestKubeRay` looks at Ray's.
    assert unknown in (
        ({"RayCluster"}, {"RayJob"})
        if name in WITH_RAY
        else ({"PodMonitor", "PrometheusRule"},)
        if name == MONITORED
        else (set(),)
    )
    assert all(d["metadata"].get("namespace") == "awac" for d in documents)


def test_a_misspelt_field_would_be_found(build: Build) -> None:
    actor = find(build("base"), "Deployment", "actor")
    actor["spec"]["replicass"] = actor["spec"].pop("replicas")
    with pytest.raises(kubernetes_validate.ValidationError, match="replicass"):
        kubernetes_validate.validate(actor, VERSION, strict=True)


@pytest.mark.parametrize("name", [*WITHOUT_RAY, *WITH_RAY, "tools"])
def test_no_pod_has_rights_that_it_does_not_need(build: Build, name: str) -> None:
    for template in pod_templates(build(name)):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= set(container["resources"])
        for volume in pod.get("volumes", []):
            assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440


class TestWithoutRay:
    @pytest.mark.parametrize("role", ROLES)
    def test_a_role_runs_the_command_that_the_compose_test_has_run(self, build: Build, role: str) -> None:
        (container,) = workload(build("base"), role)["spec"]["template"]["spec"]["containers"]
        composed = compose_file.read()["services"][role]
        assert "command" not in container  # the image's entry point
        assert container["args"] == composed["command"]
        assert container["image"] == composed["image"]
        assert {e["name"] for e in container["env"]} == set(composed["environment"])
        probe = container.get("livenessProbe") or container["readinessProbe"]
        assert ["CMD", *probe["exec"]["command"]] == composed["healthcheck"]["test"]

    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("name", WITHOUT_RAY)
    def test_a_role_gets_its_own_password_alone(self, build: Build, name: str, role: str) -> None:
        pod = workload(build(name), role)["spec"]["template"]["spec"]
        variables = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert f"//awac-{role}@redis:6379" in variables["AWAC_REDIS_URL"]
        secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        assert [re.sub(r"-\w{10}$", "", secret) for secret in secrets] == [f"awac-redis-{role}"]

    def test_the_metrics_port_is_that_of_the_image(self, build: Build) -> None:
        documents = build(MONITORED)
        port = int(images.environment_of("actor")["AWAC_METRICS_PORT"])
        (endpoint,) = find(documents, "PodMonitor", "awac")["spec"]["podMetricsEndpoints"]
        for role in ROLES:
            (container,) = workload(documents, role)["spec"]["template"]["spec"]["containers"]
            assert {"name": endpoint["port"], "containerPort": port} in container["ports"]

    def test_the_rules_are_those_of_prometheus(self, build: Build) -> None:
        rules = yaml.safe_load((FOLDER.parent / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
        built = find(build(MONITORED), "PrometheusRule", "awac")["spec"]
        for spec in (rules, built):
            for rule in spec["groups"][0]["rules"]:
                rule["expr"] = " ".join(rule["expr"].split())  # kustomize folds lines in its own way
        assert built == rules

    def test_images_from_a_registry_are_those_that_the_guide_builds(self, build: Build) -> None:
        guide = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
        (loop,) = re.findall(r"^for target in (.*); do$", guide, flags=re.MULTILINE)
        built = {f"awac-{target}:0.1.0" for target in loop.split()}
        steps = ("build", "source", "runtime")
        assert set(loop.split()) == {stage for stage in images.stages() if not stage.startswith(steps)}
        used = {
            container["image"]
            for name in ("overlays/gpu", *WITH_RAY, "tools")
            for template in pod_templates(build(name))
            for container in template["spec"]["containers"]
        }
        assert {image for image in used if image.startswith("awac-")} == built

    def test_the_doctor_reaches_the_run_and_its_redis(self, build: Build) -> None:
        documents = build("base")
        doctor = workload(build("tools"), "doctor")["spec"]["template"]
        (container,) = doctor["spec"]["containers"]
        assert container["args"] == compose_file.read()["services"]["tools"]["command"]
        replay = workload(documents, "replay")["spec"]["template"]["spec"]
        for mount in container["volumeMounts"]:  # the run, its configuration, and /tmp
            assert mount in replay["containers"][0]["volumeMounts"]
        for volume in doctor["spec"]["volumes"]:
            assert volume in replay["volumes"]
        assert len(container["volumeMounts"]) == len(doctor["spec"]["volumes"]) == 3
        assert "awac-run" in [d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"]
        (rule,) = find(documents, "NetworkPolicy", "redis")["spec"]["ingress"]
        assert rule["from"][0]["podSelector"]["matchLabels"].items() <= doctor["metadata"]["labels"].items()

    def test_the_labels_of_series_are_those_of_service_discovery(self, build: Build) -> None:
        documents = build(MONITORED)
        (endpoint,) = find(documents, "PodMonitor", "awac")["spec"]["podMetricsEndpoints"]
        assert {r["targetLabel"] for r in endpoint["relabelings"]} == {"job", "role", "process", "run", "env"}
        run = tomllib.loads((FOLDER / "base" / "config.toml").read_text(encoding="utf-8"))
        for role in ROLES:
            template = workload(documents, role)["spec"]["template"]
            assert template["metadata"]["annotations"] == {"awac/run": run["run_id"], "awac/env": run["env"]}
            assert template["metadata"]["labels"]["awac/component"] == role

    def test_the_configuration_is_that_of_compose(self) -> None:
        ours, composed = ((folder / "config.toml").read_text() for folder in (FOLDER / "base", FOLDER.parent))
        assert ours.endswith(composed)
        script = (FOLDER.parent / "redis" / "health.sh").read_text()
        assert (FOLDER / "base" / "redis-health.sh").read_text() == script

    def test_a_gpu_goes_to_the_learner_and_the_cpu_overlay_asks_for_none(self, build: Build) -> None:
        (container,) = find(build("overlays/gpu"), "Job", "learner")["spec"]["template"]["spec"]["containers"]
        assert container["args"][-2:] == ["--device", "cuda"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert "nvidia.com" not in yaml.safe_dump(build("overlays/cpu"))

    def test_only_roles_reach_redis_and_only_prometheus_reaches_roles(self, build: Build) -> None:
        documents = build("base")
        closed = find(documents, "NetworkPolicy", "closed")["spec"]
        assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        redis = find(documents, "NetworkPolicy", "redis")["spec"]
        assert redis["ingress"] == [
            {
                "from": [{"podSelector": {"matchLabels": {"awac/role": "true"}}}],
                "ports": [{"protocol": "TCP", "port": 6379}],
            }
        ]
        labels = find(documents, "StatefulSet", "redis")["spec"]["template"]["metadata"]["labels"]
        assert redis["podSelector"]["matchLabels"].items() <= labels.items()
        assert "awac/role" not in labels
        roles = find(documents, "NetworkPolicy", "roles")["spec"]
        assert [port["port"] for rule in roles["ingress"] for port in rule["ports"]] == [9465]

    def test_whoever_is_named_a_server_by_name_may_ask_for_its_address(self, build: Build) -> None:
        names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
        for policy in (
            find(build("base"), "NetworkPolicy", "roles"),
            find(build("kuberay/job"), "NetworkPolicy", "ray"),
        ):
            allowed = [port for rule in policy["spec"]["egress"] if names in rule["to"] for port in rule["ports"]]
            assert {(port["protocol"], port["port"]) for port in allowed} == {("UDP", 53), ("TCP", 53)}


class TestSecrets:
    def test_none_is_in_the_repository(self) -> None:
        done = subprocess.run(["git", "ls-files", "deploy"], cwd=images.ROOT, capture_output=True, text=True)
        if done.returncode:
            pytest.skip("no git repository")
        names = [Path(name) for name in done.stdout.splitlines()]
        assert names
        assert not [n for n in names if n.suffix in (".password", ".key", ".crt", ".acl") or "secrets" in n.parts]

    def test_without_them_nothing_is_built(self, tmp_path: Path, tree: Path) -> None:
        shutil.copytree(tree / "base", tmp_path / "base", ignore=shutil.ignore_patterns("secrets"))
        done = subprocess.run(["kubectl", "kustomize", tmp_path / "base"], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "secrets/" in done.stderr

    @pytest.mark.parametrize("name", [*WITHOUT_RAY, *WITH_RAY])
    def test_passwords_are_in_secrets_alone(self, build: Build, tree: Path, name: str) -> None:
        passwords = [path.read_text() for path in (tree / "base" / "secrets").glob("*.password")]
        for document in build(name):
            text = yaml.safe_dump(document)
            assert not [p for p in passwords if p in text]
            if document["kind"] != "Secret":
                assert not [p for p in passwords if base64.b64encode(p.encode()).decode() in text]


class TestTls:
    @pytest.fixture
    def port(self, build: Build, tree: Path, tmp_path: Path, wait_until: WaitUntil) -> Iterator[int]:
        """A server with the overlay's own configuration, user file and certificates; paths and port of this machine."""
        if shutil.which("redis-server") is None:
            pytest.skip("no redis-server on the PATH")
        documents = build("overlays/tls")
        text = find(documents, "ConfigMap", "awac-redis")["data"]["redis.conf"]
        users = find(documents, "Secret", "awac-redis-users")["data"]["users.acl"]
        (tmp_path / "users.acl").write_bytes(base64.b64decode(users))
        for name, value in find(documents, "Secret", "awac-redis-tls")["data"].items():
            (tmp_path / name).write_bytes(base64.b64decode(value))
        port = free_port()
        text = re.sub(r"/etc/awac/(redis|tls)", str(tmp_path), text).replace("/data", str(tmp_path))
        text = text.replace("tls-port 6379", f"tls-port {port}").replace("bind * -::*", "bind 127.0.0.1")
        (tmp_path / "redis.conf").write_text(text)
        log = (tmp_path / "log").open("wb")
        process = subprocess.Popen(["redis-server", tmp_path / "redis.conf"], stdout=log)

        def is_up() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(is_up, "Redis to listen")
        yield port
        process.kill()
        process.wait()
        log.close()

    @pytest.fixture
    def enter(self, build: Build, tree: Path, port: int, tmp_path: Path) -> Callable[[str], RedisEndpoint]:
        def endpoint(role: str) -> RedisEndpoint:
            pod = workload(build("overlays/tls"), role)["spec"]["template"]["spec"]
            url = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}["AWAC_REDIS_URL"]
            assert url.startswith("rediss://")
            url = url.replace("@redis:6379", f"@127.0.0.1:{port}").replace("/etc/awac/tls", str(tmp_path))
            return RedisEndpoint.from_url(url, (tree / "base" / "secrets" / f"{role}.password").read_text())

        return endpoint

    def test_the_replay_service_enters_with_its_own_address_and_password(
        self, enter: Callable[[str], RedisEndpoint]
    ) -> None:
        assert check(enter("replay"))

    def test_the_probe_is_healthy(self, build: Build, port: int, tree: Path, tmp_path: Path) -> None:
        documents = build("overlays/tls")
        (container,) = find(documents, "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
        script = tmp_path / "redis-health.sh"
        script.write_text(find(documents, "ConfigMap", "awac-redis")["data"]["redis-health.sh"])
        assert container["readinessProbe"]["exec"]["command"] == ["sh", "/etc/awac/redis-health.sh"]
        variables = {e["name"]: e["value"].replace("/etc/awac/tls", str(tmp_path)) for e in container["env"]}
        variables["AWAC_HEALTH_OPTIONS"] += f" -p {port}"
        variables["AWAC_HEALTH_PASSWORD_FILE"] = str(tree / "base" / "secrets" / "health.password")
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **variables}
        done = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        variables["AWAC_HEALTH_PASSWORD_FILE"] = str(tree / "base" / "secrets" / "actor.password")
        environment |= variables
        assert subprocess.run(["sh", script], env=environment, capture_output=True, timeout=30).returncode != 0

    def test_nobody_enters_in_plain_text(self, port: int, tree: Path) -> None:
        password = (tree / "base" / "secrets" / "replay.password").read_text()
        with pytest.raises(RedisUnavailable):
            check(RedisEndpoint(f"redis://awac-replay@127.0.0.1:{port}", password))

    def test_the_key_stays_with_redis(self, build: Build) -> None:
        documents = build("overlays/tls")
        for template in pod_templates(documents):
            holds_key = "awac-redis-tls" in yaml.safe_dump(template)
            assert holds_key == (template["metadata"]["labels"]["awac/component"] == "redis")


class TestKubeRay:
    @pytest.mark.parametrize("name", WITH_RAY)
    def test_its_structure(self, build: Build, name: str) -> None:
        (document,) = [d for d in build(name) if d["kind"] in ("RayCluster", "RayJob")]
        assert document["apiVersion"] == "ray.io/v1"
        if document["kind"] == "RayJob":
            assert set(document["spec"]) == RAY_JOB
            assert document["spec"]["submissionMode"] == "K8sJobMode"
        cluster = ray_cluster(document)
        assert set(cluster) == RAY_CLUSTER
        assert set(cluster["headGroupSpec"]) == RAY_HEAD
        for group in cluster["workerGroupSpecs"]:
            assert set(group) == RAY_WORKER
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())

    @pytest.mark.parametrize("name", WITH_RAY)
    def test_its_pods_fit_the_schema(self, build: Build, name: str) -> None:
        for template in pod_templates(build(name)):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}}
            kubernetes_validate.validate({**pod, "spec": template["spec"]}, VERSION, strict=True)

    @pytest.mark.parametrize("name", WITH_RAY)
    def test_strangers_need_the_token_and_the_version_is_that_of_the_image(self, build: Build, name: str) -> None:
        (document,) = [d for d in build(name) if d["kind"] in ("RayCluster", "RayJob")]
        cluster = ray_cluster(document)
        assert cluster["authOptions"] == {"mode": "token"}
        pinned = re.search(r"^ray==(.*)$", (images.ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
        assert pinned is not None
        assert cluster["rayVersion"] == pinned[1]

    def test_the_job_s_cluster_is_the_cluster(self, build: Build) -> None:
        job, cluster = (
            find(build("kuberay/job"), "RayJob", "awac"),
            find(build("kuberay/cluster"), "RayCluster", "awac"),
        )
        assert ray_cluster(job) == ray_cluster(cluster)

    @pytest.mark.parametrize("name", WITH_RAY)
    def test_what_its_pods_mount_exists(self, build: Build, name: str) -> None:
        documents = build(name)
        names = {(d["kind"], d["metadata"]["name"]) for d in documents}
        for template in pod_templates(documents):
            for volume in template["spec"].get("volumes", []):
                for kind, source, key in (
                    ("Secret", "secret", "secretName"),
                    ("ConfigMap", "configMap", "name"),
                    ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                ):
                    if source in volume:
                        assert (kind, volume[source][key]) in names, volume

    def test_ray_starts_the_roles_and_nobody_else(self, build: Build) -> None:
        kinds = {d["kind"] for d in build("kuberay/job")}
        assert not {"Deployment", "Job", "PodMonitor"} & kinds
        assert {"StatefulSet", "RayJob"} <= kinds

    def test_what_it_starts_is_a_valid_command(self) -> None:
        lines = started_commands()
        assert len(lines) == 2
        for words in lines:
            cli.app.parse_args(words, exit_on_error=False, print_error=False)
        assert "pen-0" in lines[1]  # the run whose users base/secrets has

    @pytest.mark.parametrize("name", WITH_RAY)
    def test_the_run_has_room_on_its_nodes(self, build: Build, name: str, tmp_path: Path) -> None:
        (document,) = [d for d in build(name) if d["kind"] in ("RayCluster", "RayJob")]
        cluster = ray_cluster(document)
        groups = [{**cluster["headGroupSpec"], "replicas": 1}, *cluster["workerGroupSpecs"]]
        nodes = [node_of(group, f"{index}-{n}") for index, group in enumerate(groups) for n in range(group["replicas"])]
        _up, bound, _ignored = cli.app.parse_args(started_commands()[1], exit_on_error=False, print_error=False)
        plan = make_plan(bound.args[0], RunDirectory(tmp_path), nodes, nodes[0].address, listen="")
        (learner,) = (program for program in plan.programs if program.role is Role.LEARNER)
        assert bool(learner.num_gpus) == name.endswith("gpu")


@pytest.mark.parametrize(
    "script",
    sorted(path for path in images.ROOT.glob("deploy/**/*.s*") if path.suffix in (".sh", ".sbatch")),
    ids=lambda path: path.name,
)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
