"""The files of cluster/ that bring Ray up elsewhere, against what reads them there. Nothing is started."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config, with_envs, with_head_node_ip
from ray.runtime_env import RuntimeEnv

from mlic.cli.main import cli
from mlic.data.pixels.images import EXTENSIONS
from tests.golden import ROOT

CLUSTER = ROOT / "cluster"
RAY_UP = ("ray-aws", "ray-gcp", "ray-local")
KUBERAY = ("kuberay-cluster", "kuberay-job")
RAY = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FIELDS = json.loads((ROOT / "tests" / "fixtures" / "kuberay-fields.json").read_text())
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "{home}/.mlic-cluster/token"}


def load(name: str) -> dict[str, Any]:
    """What a file holds; of several documents, the last."""
    documents: list[dict[str, Any]] = list(yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text()))
    return documents[-1]


def header(name: str) -> str:
    """The comment at the top, without its marks."""
    lines = (CLUSTER / f"{name}.yaml").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


def bash(command: str, home: Path) -> str:
    """Run a command with a home folder and little else; returns what it prints."""
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [*RAY_UP, *KUBERAY])
def test_what_is_to_be_replaced_is_told_at_the_top(name: str) -> None:
    text, top = (CLUSTER / f"{name}.yaml").read_text(), header(name)
    mark = re.compile(r"REPLACE-[A-Z]+(?:-[A-Z]+)*")
    told = re.findall(rf"^  ({mark.pattern})   ? *\S", top, re.MULTILINE)
    assert sorted(told) == sorted(set(told))
    assert set(told) == set(mark.findall(text[len(top) :])) != set()


@pytest.mark.parametrize("name", [*RAY_UP, *KUBERAY])
def test_the_commands_at_the_top(name: str) -> None:
    top = header(name)
    assert f"{'ray up' if name in RAY_UP else 'kubectl apply -f'} cluster/{name}.yaml" in top
    assert "ray down" in top or "kubectl delete ray" in top
    assert name == "kuberay-job" or "mlic submit JOB.yaml --address http://127.0.0.1:8265" in top
    assert name in KUBERAY or f"of Ray {'.'.join(RAY.split('.')[:2])}" in top
    for file in re.findall(r"(?<![\w-])cluster/[\w.-]+", top):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("name", ["ray-aws", "ray-gcp", "kuberay-cluster"])
def test_the_command_that_asks_for_gpus(name: str, tmp_path: Path) -> None:
    """As a shell reads it, and on the other side as Python does."""
    (command,) = re.findall(r"^  ((?:ray|kubectl) exec .*\\\n.*)$", header(name), re.MULTILINE)
    code = bash(
        f'last() {{ printf %s "${{@: -1}}"; }}; ray() {{ last "$@"; }}; kubectl() {{ last "$@"; }}; {command}', tmp_path
    )
    if name in RAY_UP:
        code = bash(f'python() {{ printf %s "$2"; }}; {code}', tmp_path)
    compile(code, name, "exec")
    assert "sdk.request_resources(bundles=4 * [dict(GPU=1)])" in code


def test_every_line_can_be_read() -> None:
    files = [path for path in CLUSTER.iterdir() if path.name != "with-ray.sh"]
    assert [(path.name, line) for path in files for line in path.read_text().splitlines() if len(line) > 120] == []


# ray up


def prepared(name: str) -> dict[str, Any]:
    """A file as `ray up` takes it, with Ray's own defaults."""
    config: dict[str, Any] = prepare_config(load(name))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_the_file(name: str) -> None:
    assert prepared(name)["provider"]["type"] == name.removeprefix("ray-")
    wrong = load(name)
    wrong["setup_command"] = wrong.pop("setup_commands")
    with pytest.raises(jsonschema.ValidationError, match="setup_command"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", ["ray-aws", "ray-gcp"])
def test_gpu_machines_come_and_go(name: str) -> None:
    config = prepared(name)
    gpu = config["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, config["max_workers"])
    assert config["idle_timeout_minutes"] <= 15
    assert "spot" in json.dumps(gpu["node_config"]).lower()
    assert "spot" not in json.dumps(config["available_node_types"]["head"]).lower()


@pytest.mark.parametrize("name", RAY_UP)
@pytest.mark.parametrize("node", ["head", "worker"])
def test_ray_starts_with_the_token(name: str, node: str, tmp_path: Path) -> None:
    """The start commands run as `ray up` runs them, but for a `ray` that prints what it is given."""
    ray = tmp_path / "mlic" / "venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text('#!/bin/sh\necho "$@"\nenv\necho "FILES=$(ulimit -n) of $(ulimit -Hn)"\n')
    ray.chmod(0o755)
    stop, start = prepared(name)[f"{node}_start_ray_commands"]
    (start,) = with_envs(with_head_node_ip([start], "10.0.0.1"), {"RAY_NODE_TYPE_NAME": node})
    assert bash(stop, tmp_path).startswith("stop\n")
    words, *rest = bash(f"export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({start})", tmp_path).splitlines()
    environment = dict(line.split("=", 1) for line in rest)
    arguments = words.split()
    assert environment["MALLOC_ARENA_MAX"] == "1"
    assert {key: environment[key] for key in TOKEN} == {key: v.format(home=tmp_path) for key, v in TOKEN.items()}
    assert "OMP_NUM_THREADS" not in environment
    assert environment["PATH"].startswith(f"{ray.parent}:")  # where jobs find python and mlic
    soft, hard = environment["FILES"].split(" of ")
    assert soft == hard
    if node == "head":
        assert {"--head", "--dashboard-host=127.0.0.1", "--autoscaling-config=~/ray_bootstrap_config.yaml"} < {
            *arguments
        }
    else:
        assert "--address=10.0.0.1:6379" in arguments


@pytest.mark.parametrize("name", RAY_UP)
def test_the_token_is_made_once_and_for_its_owner(name: str, tmp_path: Path) -> None:
    make = next(line.strip() for line in header(name).splitlines() if "umask 077" in line)
    token = tmp_path / ".mlic-cluster" / "token"
    bash(f"umask 022; {make}", tmp_path)
    text = token.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", text)
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    bash(make, tmp_path)
    assert token.read_text() == text
    mounted = load(name)["file_mounts"]
    assert mounted["~/.mlic-cluster"] == "~/.mlic-cluster"
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.mlic-cluster/token" in header(name)


@pytest.mark.parametrize("name", RAY_UP)
def test_nodes_install_the_wheel_with_the_constraints(name: str) -> None:
    config = prepared(name)
    mounted = config["file_mounts"]
    assert mounted["~/mlic/dist"] == "dist"
    assert "pip wheel --no-deps --wheel-dir dist ." in header(name)
    assert (ROOT / mounted["~/mlic/constraints.txt"]).is_file()
    for node in ("head", "worker"):
        commands = config[f"{node}_setup_commands"]
        for command in commands:
            subprocess.run(["bash", "-n", "-c", command], check=True)
        installs = [command for command in commands if "pip install" in command]
        assert "~/mlic/dist/mlic-*.whl" in installs[0]
        assert all("-c ~/mlic/constraints.txt" in command for command in installs)


@pytest.mark.parametrize("name", RAY_UP)
def test_plain_ray_is_found_on_the_nodes(name: str, tmp_path: Path) -> None:
    """`ray down` and `ray exec` call it in a shell that reads .bashrc."""
    (command,) = [command for command in load(name)["setup_commands"] if ".bashrc" in command]
    bash(f"{command}\n{command}", tmp_path)
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1
    printed = bash("source ~/.bashrc; echo $PATH; echo $RAY_AUTH_MODE; echo $RAY_AUTH_TOKEN_PATH", tmp_path).split()
    assert printed[0].startswith(f"{tmp_path}/mlic/venv/bin:")
    assert printed[1:] == [value.format(home=tmp_path) for value in TOKEN.values()]


# Kubernetes


def check_fields(document: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError where a field or its type is not KubeRay's."""
    schema = {**FIELDS, "$ref": f"#/$defs/{document['kind']}"}
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)


def ray_cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = load(name)["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def groups(name: str) -> list[dict[str, Any]]:
    spec = ray_cluster(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def claim() -> dict[str, Any]:
    text = (CLUSTER / "kuberay-cluster.yaml").read_text()
    return next(document for document in yaml.safe_load_all(text) if document["kind"] == "PersistentVolumeClaim")


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_knows_the_fields(name: str) -> None:
    for document in yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text()):
        check_fields(document)
    assert "KubeRay 1.6" in header(name)
    assert "KubeRay 1.6" in FIELDS["title"]


@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize(
    "path", ["rayVersion", "authOptions.mode", "workerGroupSpecs.0.template.spec.containers.0.image"]
)
def test_a_field_with_a_mistake_is_found(name: str, path: str) -> None:
    document = copy.deepcopy(load(name))
    place: Any = document["spec"].get("rayClusterSpec", document["spec"])
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[f"{last}s"] = place.pop(last)
    with pytest.raises(jsonschema.ValidationError, match=f"'{last}s' was unexpected"):
        check_fields(document)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_makes_a_token(name: str) -> None:
    spec = ray_cluster(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == RAY
    host = spec["headGroupSpec"]["rayStartParams"]["dashboard-host"]
    assert host == ("0.0.0.0" if load(name)["kind"] == "RayJob" else "127.0.0.1")  # noqa: S104 - KubeRay's submitter


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_whole(name: str) -> None:
    names = []
    for group in groups(name):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        names.append(container["name"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert len(mounts) == len(volumes)
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim()["metadata"]["name"]
        memory = mounts["/dev/shm"]["emptyDir"]  # noqa: S108 - where Ray keeps its objects
        assert memory["medium"] == "Memory"
        # Ray does not start when its object store is larger than /dev/shm.
        assert int(group["rayStartParams"]["object-store-memory"]) < gib(memory["sizeLimit"])
        assert gib(memory["sizeLimit"]) < gib(container["resources"]["limits"]["memory"])
        assert {"name": "MALLOC_ARENA_MAX", "value": "1"} in container["env"]
        assert pod["securityContext"]["runAsUser"] == int(dict(dockerfile())["USER"])
        assert pod["terminationGracePeriodSeconds"] >= 30
    assert names == ["head", "worker"]
    assert claim()["spec"]["accessModes"] == ["ReadWriteMany"]


def gib(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("name", KUBERAY)
def test_workers_have_gpus(name: str) -> None:
    (group,) = ray_cluster(name)["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    if name == "kuberay-cluster":
        assert ray_cluster(name)["enableInTreeAutoscaling"]
        assert group["minReplicas"] == 0 < group["maxReplicas"]
    else:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_the_job_goes_on_by_its_command() -> None:
    job = load("kuberay-job")["spec"]
    program, command, *arguments = shlex.split(job["entrypoint"])
    assert (program, command) == ("mlic", "train")
    given = cli.commands[command].make_context(command, list(arguments)).params
    assert given["name"] == load("kuberay-job")["metadata"]["name"]
    assert all(word.startswith("/shared/") for word in arguments if "/" in word)
    assert "--fresh" not in arguments
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]


# Images


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines]


def copied() -> set[str]:
    """What the Dockerfile copies from the clone."""
    words = [shlex.split(value) for name, value in dockerfile() if name == "COPY"]
    return {source for *sources, _ in words if not sources[0].startswith("--from") for source in sources}


def test_the_dockerfile() -> None:
    instructions = dockerfile()
    names = [name for name, _ in instructions]
    assert set(names) <= {"FROM", "WORKDIR", "COPY", "RUN", "ARG", "ENV", "USER", "CMD"}
    assert names[0] == "FROM"
    assert all((ROOT / source).exists() for source in copied())
    stages = [value.split() for name, value in instructions if name == "FROM"]
    assert [words[-1] for words in stages[:-1]] == re.findall(r"--from=(\w+)", (CLUSTER / "Dockerfile").read_text())
    runs = [(number, value) for number, (name, value) in enumerate(instructions) if name == "RUN"]
    assert any("pip install" in value and "-c /tmp/constraints.txt" in value for _, value in runs)
    assert runs[-1][1] == "mlic --version"
    assert names.index("USER") < runs[-1][0]  # as the user of the image
    user = dict(instructions)["USER"]
    assert any(f"useradd --uid {user} " in value for _, value in runs)
    for _, value in runs:
        subprocess.run(["sh", "-n", "-c", value], check=True)


def test_the_image_has_what_the_wheel_is_made_of() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = {
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert needed <= copied()


def test_docker_is_sent_nothing_else() -> None:
    first, *patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*"
    assert {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")} == copied()
    assert [pattern for pattern in patterns if not pattern.startswith("!")] == ["**/__pycache__"]


def definition() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Header and sections of the Apptainer definition, as Apptainer takes them apart."""
    parts = re.split(r"^%(\w+)$", (CLUSTER / "mlic.def").read_text(), flags=re.MULTILINE)
    top = [line.split(": ", 1) for line in parts[0].splitlines() if line and not line.startswith("#")]
    sections = {
        name: [line.strip() for line in text.splitlines() if line.strip()]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert len(sections) == len(parts) // 2
    return dict(top), sections


def test_the_apptainer_definition() -> None:
    top, sections = definition()
    assert top["Bootstrap"] == "docker"
    assert set(top) == {"Bootstrap", "From"}
    assert set(sections) == {"labels", "help", "files", "post", "environment", "runscript", "test"}
    sources = [shlex.split(line)[0] for line in sections["files"]]
    (wheel,) = [source for source in sources if fnmatch.fnmatch("dist/mlic-0.1.0-py3-none-any.whl", source)]
    assert [(ROOT / source).is_file() for source in sources if source != wheel] == [True]
    assert all(shlex.split(line)[1] == "/opt/" for line in sections["files"])
    assert any("-c /opt/constraints.txt /opt/mlic-*.whl" in line for line in sections["post"])
    assert "mlic --version" in sections["test"][0]
    assert sections["runscript"] == ['exec mlic "$@"']
    for name in ("post", "environment", "runscript", "test"):
        subprocess.run(["sh", "-n"], input="\n".join(sections[name]), text=True, check=True)


def test_images_have_a_python_that_mlic_runs_on() -> None:
    bases = {value.split()[0] for name, value in dockerfile() if name == "FROM"} | {definition()[0]["From"]}
    (base,) = bases
    version = base.removeprefix("python:").split("-")[0]
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])


# The upload of a job


def test_ray_takes_the_runtime_environment() -> None:
    config = load("runtime-env")
    assert RuntimeEnv(**config)["env_vars"] == {"MALLOC_ARENA_MAX": "1"}
    assert "working_dir" not in config  # who submits a job gives it
    with pytest.raises((TypeError, ValueError)):
        RuntimeEnv(**{**config, "excludes": "*.jpg"})


def pack(folder: Path, package: Path) -> set[str]:
    """The files that Ray would upload of a folder."""
    create_package(str(folder), package, include_gitignore=False, excludes=load("runtime-env")["excludes"])
    with zipfile.ZipFile(package) as content:
        return {name for name in content.namelist() if not name.endswith("/")}


def test_data_and_secrets_are_not_uploaded(tmp_path: Path) -> None:
    wanted = {"train.py", "train.yaml", "more/labels.csv"}
    unwanted = {
        *(f"photos/{stem}{end}" for end in EXTENSIONS for stem in ("a", "b/c")),
        *(f"photos/a{end.upper()}" for end in EXTENSIONS),
        *("shards/index.json", "shards/train-000000.tar", "more/shards/val-000000.tar", "runs/small/run.json"),
        *("preds.parquet", "preds.parts/0.json", "checkpoints/1.json", "model.safetensors", "net.pt", "net.onnx"),
        *(".git/config", ".venv/bin/python", "venv/bin/python", ".mlic/7.0/log", "__pycache__/a.pyc"),
        *(
            ".env",
            ".env.local",
            "more/.env",
            "token",
            "auth_token",
            ".mlic-kuberay-token",
            ".mlic-cluster/token",
            "key.pem",
            ".ssh/id_rsa",
        ),
    }
    for name in wanted | unwanted:
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    assert pack(tmp_path / "folder", tmp_path / "package.zip") == wanted


def test_all_of_jobs_is_uploaded(tmp_path: Path) -> None:
    jobs = ROOT / "jobs"
    files = {str(path.relative_to(jobs)) for path in jobs.rglob("*") if path.is_file()}
    assert pack(jobs, tmp_path / "package.zip") == {name for name in files if "__pycache__" not in name}


# The table


def test_the_readme_tells_of_every_file() -> None:
    lines = (CLUSTER / "README.md").read_text().splitlines()
    assert len(lines) <= 60
    told = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert told == {path.name for path in CLUSTER.iterdir()} - {"README.md"}
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.mlic-cluster/token" in "\n".join(lines)


@pytest.mark.parametrize(
    ("peer", "route", "given", "wanted"),
    [
        ("10.0.0.2", "10.0.0.2 dev ib0 src 10.0.0.1 uid 0", "", "10.0.0.1"),
        ("127.0.1.1", "local 127.0.1.1 dev lo src 127.0.0.1", "", "172.17.0.1"),
        ("", "", "", "172.17.0.1"),
        ("10.0.0.2", "10.0.0.2 dev ib0 src 10.0.0.1 uid 0", "192.168.7.7", "192.168.7.7"),
    ],
)
def test_the_head_listens_where_the_other_nodes_reach_it(
    tmp_path: Path, peer: str, route: str, given: str, wanted: str
) -> None:
    """Not at the first address of the machine, which may be that of a bridge for containers."""
    script = (ROOT / "cluster" / "with-ray.sh").read_text()
    function = script[script.index("own_address() {") : script.index("end_job() {")]
    answers = {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "hostname": "echo '172.17.0.1 10.0.0.1 '",
        "getent": f"echo '{peer} STREAM node2'" if peer else "exit 2",
        "ip": f"echo '{route}'" if route else "exit 2",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[1-2]", "SLURMD_NODENAME": "node1"}
    env |= {"MLIC_HEAD_IP": given} if given else {}
    done = subprocess.run(
        ["bash", "-euc", f"set -o pipefail\n{function}\nown_address"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == wanted
