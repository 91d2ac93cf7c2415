"""The recipes in launch/ run as they are written, and docker/ says nothing that is not so."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import psutil
import pytest
import yaml

from dist_train.config import load_config
from dist_train.rules.resources import Bundle, missing

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))

# A task that interrupts its own training at step 20 of the first start, as its `how` says.
TASK = """
import os, signal
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

from dist_train import Rows, Task


class Line(Task):
    def __init__(self, how):
        self.how = how
        self.calls = 0
        self.first = not Path("started").exists()

    def model(self):
        return nn.Linear(1, 1)

    def train_data(self):
        x = torch.linspace(-1, 1, 64)[:, None]
        return Rows(x, 2 * x + 1)

    def validation_data(self):
        Path("started").touch()
        return self.train_data()

    def loss(self, model, batch):
        self.calls += 1
        if self.calls == 20 and self.first:
            if self.how == "signal to every worker":
                os.kill(os.getpid(), signal.SIGUSR1)
            elif os.environ["RANK"] == "0":
                os.kill(os.getppid(), signal.SIGUSR1)
        predictions = model(batch[0])
        return mse_loss(predictions, batch[1]), predictions
"""
STEPS = 300
CONFIG = f"""
name: line
task: line.py:Line
train: {{steps: {STEPS}, batch_size: 4}}
optimizer: {{name: sgd, lr: 0.1}}
logging: {{tensorboard: false, every_steps: 100}}
validation: {{every_steps: {STEPS}}}
"""

# Starts as many tasks as the test says, with the variables that srun gives them and on a single node.
SRUN = """
import os, subprocess, sys

options = sys.argv[1 : sys.argv.index("python")]
command = sys.argv[sys.argv.index("python") :]
open("srun_options", "w").write(" ".join(options))
tasks = int(os.environ["TASKS"])
common = os.environ | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_STEP_NODELIST": "node1", "SLURM_NODEID": "0",
}
started = [
    subprocess.Popen(command, env=common | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)})
    for n in range(tasks)
]
sys.exit(max(task.wait() for task in started))
"""
SCONTROL = "import sys; open('scontrol_calls', 'a').write(' '.join(sys.argv[1:]) + chr(10))"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "line.py").write_text(TASK)
    (tmp_path / "line.yaml").write_text(CONFIG)
    return tmp_path


def environment(folder, **more):
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    scrubbed = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_")}
    return scrubbed | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(command, folder, **variables):
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """The exit status and the output of a process that must end by itself; nothing of it may be left."""
    family = psutil.Process(process.pid)
    try:
        output, _ = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        for each in [*family.children(recursive=True), family]:
            each.kill()
        output, _ = process.communicate()
        pytest.fail(f"did not end: {output}")
    return process.returncode, output


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def starts_of(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(event["step"], event["workers"]) for event in events if event["event"] == "start"]


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_torchrun_saves_on_a_signal_and_two_machines_continue(folder):
    command = [LAUNCH / "torchrun.sh", "line.yaml", "--run-dir", "run", "task_options.how=signal to torchrun"]
    status, output = finish(start(command, folder, WORKERS="2"))
    assert status == 1, output
    stopped = summary_of(folder / "run")
    assert stopped["status"] == "interrupted", output
    assert 19 <= stopped["steps"] < STEPS

    # Two agents, as on two machines; both find each other at MASTER.
    place = {"NODES": "2", "MASTER": "127.0.0.1", "PORT": free_port(), "WORKERS": "1"}
    agents = [start(command, folder, **place) for _ in range(2)]
    outputs = [finish(agent) for agent in agents]
    assert [status for status, _ in outputs] == [0, 0], outputs
    done = summary_of(folder / "run")
    assert (done["status"], done["steps"], done["workers"]) == ("done", STEPS, 2)
    assert starts_of(folder / "run") == [(0, 2), (stopped["steps"], 2)]


def test_torchrun_asks_for_the_machine_where_workers_meet(folder):
    status, output = finish(start([LAUNCH / "torchrun.sh", "line.yaml"], folder, NODES="2"))
    assert status != 0
    assert "MASTER: is not set; give the address" in output


@pytest.fixture
def slurm(folder):
    """Runs the batch script as job 4711 of a cluster whose srun and scontrol are the stand-ins above."""
    (folder / "bin").mkdir()
    for name, body in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = folder / "bin" / name
        file.write_text(f"#!{sys.executable}\n{body}")
        file.chmod(0o755)
    # Stands for the virtual environment that the script activates.
    (folder / "bin" / "activate").touch()

    def submit():
        command = ["bash", LAUNCH / "slurm.sbatch", "line.yaml", "task_options.how=signal to every worker"]
        job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "dist-train", "SLURM_CPUS_PER_TASK": "1"}
        return finish(start(command, folder, **job, TASKS="2", VENV=str(folder), MASTER_PORT=free_port()))

    return submit


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_a_preempted_slurm_job_saves_requeues_and_continues(folder, slurm):
    run = folder / "runs/dist-train-4711"
    status, output = slurm()
    assert status == 75, output
    stopped = summary_of(run)
    assert stopped["status"] == "interrupted"
    assert 19 <= stopped["steps"] < STEPS
    assert (folder / "scontrol_calls").read_text() == "requeue 4711\n"
    assert "--kill-on-bad-exit=0" in (folder / "srun_options").read_text()

    status, output = slurm()
    assert status == 0, output
    done = summary_of(run)
    assert (done["status"], done["steps"]) == ("done", STEPS)
    assert starts_of(run) == [(0, 2), (stopped["steps"], 2)]
    assert (folder / "scontrol_calls").read_text() == "requeue 4711\n"


def sbatch_options():
    text = (LAUNCH / "slurm.sbatch").read_text()
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))


def test_slurm_signals_the_workers_and_may_requeue():
    options = sbatch_options()
    assert re.fullmatch(r"USR1@\d+", options["signal"]), "with B: only the script would get the signal"
    assert "requeue" in options
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options


SUBMIT = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('RAY_AUTH_TOKEN_PATH')]))"


def submitted(folder, *words, **variables):
    """What the script for Ray hands to dist-train, and the file it names for the token."""
    stand_in = folder / "bin" / "dist-train"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!{sys.executable}\n{SUBMIT}")
    stand_in.chmod(0o755)
    status, output = finish(start([LAUNCH / "ray_job.sh", *words], folder, **variables))
    assert status == 0, output
    return json.loads(output)


def test_a_ray_job_goes_to_the_cluster_that_is_named(folder):
    words, token = submitted(
        folder, "line.yaml", "seed=1", "--run-dir", "a b", ADDRESS="http://head:8265", TOKEN_FILE="token"
    )
    assert words == ["submit", "--address", "http://head:8265", "line.yaml", "seed=1", "--run-dir", "a b"]
    assert token == "token"


def test_a_ray_job_goes_to_a_tunnel_on_this_machine_by_default(folder):
    words, _ = submitted(folder, "line.yaml", "--run-dir", "/shared/run")
    assert words == ["submit", "--address", "http://127.0.0.1:8265", "line.yaml", "--run-dir", "/shared/run"]


@pytest.fixture(scope="module")
def kuberay():
    """The parts of the recipe for Kubernetes, by their kind."""
    parts = yaml.safe_load_all((LAUNCH / "kuberay.yaml").read_text())
    return {part["kind"]: part for part in parts}


DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def groups(job):
    cluster = job["spec"]["rayClusterSpec"]
    return (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])


def containers(job):
    return [each for group in groups(job) for each in group["template"]["spec"]["containers"]]


def test_kubernetes_lets_nobody_in_without_the_token(kuberay):
    assert kuberay["RayJob"]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert all("dashboard-host" not in group["rayStartParams"] for group in groups(kuberay["RayJob"]))


def test_kubernetes_keeps_the_ports_of_the_pods_for_the_run(kuberay):
    """KubeRay's pods have the labels of their template, and none that names the job they are for."""
    policy = kuberay["NetworkPolicy"]["spec"]
    labels = [group["template"]["metadata"]["labels"] for group in groups(kuberay["RayJob"])]
    assert len(labels) == 2
    own = {"matchLabels": labels[0]}
    assert all(each == labels[0] for each in labels)
    assert not any(name.startswith("ray.io/") for name in labels[0])
    assert policy["podSelector"] == own
    assert policy["policyTypes"] == ["Ingress"]
    among, handing_in = policy["ingress"]
    assert among == {"from": [{"podSelector": own}]}
    job, operator = handing_in["from"]
    assert job["podSelector"]["matchLabels"] == {"job-name": kuberay["RayJob"]["metadata"]["name"]}
    # As KubeRay's Helm chart and its kustomization label it.
    component = {"app.kubernetes.io/component": "kuberay-operator"}
    assert operator == {"namespaceSelector": {}, "podSelector": {"matchLabels": component}}
    assert handing_in["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_kubernetes_runs_the_pinned_ray(kuberay):
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert kuberay["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == pinned
    assert f"FROM rayproject/ray:{pinned}-" in (LAUNCH / "kuberay.yaml").read_text()


def test_kubernetes_runs_what_the_cluster_holds_and_gives_it_time_to_save(kuberay):
    job = kuberay["RayJob"]["spec"]
    program, *words = shlex.split(job["entrypoint"])
    assert program == "dist-train"
    run, config, *rest = words
    assert run == "run"
    assert rest[rest.index("--address") + 1] == "auto"
    settings = load_config(ROOT / config, [word for word in rest if "=" in word])
    parallel = settings.parallel
    worker = Bundle("a worker", {"CPU": parallel.cluster.worker_cpus})
    server = Bundle("the server", {"CPU": 1 + parallel.server.shards * parallel.server.copies})
    head, *workers = (
        {"CPU": int(group["rayStartParams"]["num-cpus"])}
        for group in groups(kuberay["RayJob"])
        for _ in range(group.get("replicas", 1))
    )
    assert missing([head, *workers], [server, *[worker] * parallel.workers]) is None
    assert missing([head], [server]) is None
    assert missing(workers, [server]) is not None, "it is said to run on the head"
    for group in groups(kuberay["RayJob"]):
        (container,) = group["template"]["spec"]["containers"]
        limit = int(container["resources"]["limits"]["cpu"])
        assert int(group["rayStartParams"]["num-cpus"]) <= limit
    mounts = [mount["mountPath"] for each in containers(kuberay["RayJob"]) for mount in each["volumeMounts"]]
    assert set(mounts) == {Path(rest[rest.index("--run-dir") + 1]).parent.as_posix()}
    wait_s = int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait_s > settings.recovery.grace_s
    for group in groups(kuberay["RayJob"]):
        (container,) = group["template"]["spec"]["containers"]
        drain_s = int({each["name"]: each["value"] for each in container["env"]}[DRAIN])
        # Deleted, the job is stopped, and Ray and the pod are still there while it saves.
        assert wait_s < drain_s < group["template"]["spec"]["terminationGracePeriodSeconds"]
    assert job["backoffLimit"] > 0


SCRIPTS = sorted(script for script in LAUNCH.iterdir() if script.suffix != ".yaml")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_launch_script_is_sound_bash(script):
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)


def instructions(dockerfile):
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def in_context(name):
    """Whether .dockerignore lets a file or folder of the repository into an image."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = True
    for line in lines:
        if fnmatch(name, line.removeprefix("!")):
            allowed = line.startswith("!")
    return allowed


def test_there_is_an_image_for_cpu_and_one_for_cuda():
    assert [file.name for file in DOCKERFILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_installs_what_is_pinned(dockerfile):
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    installs = [text for word, text in instructions(dockerfile) if word == "RUN" and "pip install" in text]
    assert len(installs) == 2
    assert all("-c constraints.txt" in text for text in installs)
    assert re.findall(r"torch==(\S+)", " ".join(installs)) == [pinned]
    assert ("https://download.pytorch.org/whl/cpu" in installs[0]) == dockerfile.name.startswith("cpu")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_copies_only_what_there_is_and_runs_as_an_ordinary_user(dockerfile):
    parts = instructions(dockerfile)
    copied = [name for word, text in parts if word == "COPY" for name in text.split()[:-1]]
    assert "dist_train" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert in_context(name), name
    assert not in_context(".git")
    assert not in_context(".venv")
    words = [word for word, _ in parts]
    assert dict(parts)["USER"] not in ("root", "0")
    assert words.index("USER") > max(n for n, word in enumerate(words) if word == "RUN")
    assert not {"ADD", "ENV", "ARG"} & set(words)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_runs_a_python_that_the_package_accepts(dockerfile):
    base = dict(instructions(dockerfile))["FROM"]
    required = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert int(re.fullmatch(r"python:3\.(\d+)-slim", base)[1]) >= int(required)
