"""The README and the pages in docs/ say what is so: every command runs, every name and default exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from dist_train.config import shape
from dist_train.config.schema import Config, Optimizer
from dist_train.models.options import OPTIONS as MODEL_OPTIONS
from dist_train.tasks.options import OPTIONS as TASK_OPTIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))

# Commands that need more than this machine, and what tests them instead.
ELSEWHERE = {
    "make quickstart": "its run: test_make_quickstart_is_the_run_whose_table_is_shown",
    "make test": "runs this very test",
    "source .venv/bin/activate": "the environment that this test runs in",
    "NODES=2 MASTER=node1 launch/torchrun.sh spirals.yaml --run-dir /shared/runs/spirals": "test_recipes.py",
    "sbatch --nodes 2 launch/slurm.sbatch configs/imagenet-resnet50.yaml": "test_recipes.py",
    "dist-train run configs/digits-async.yaml --address auto --run-dir /shared/runs/digits-async": (
        "runtime/test_ray_cluster.py"
    ),
    "launch/ray_job.sh configs/digits-async.yaml --run-dir /shared/runs/digits-async": "test_recipes.py",
    "kubectl apply -f launch/kuberay.yaml": "test_recipes.py",
    "dist-train run configs/digits-async.yaml train.deterministic=true train.epochs=2 "
    "--run-dir runs/to-replay": "replay/test_init.py",
    "dist-train replay runs/to-replay": "replay/test_init.py",
}
COUPLINGS = ("async", "bounded", "backup", "mixed", "local-steps")
CODISTILLED = ("codistill", "codistill-async", "codistill-predictions")
BAGGED = "dist-train run configs/digits-mlp.yaml parallel.replicas=4 data.bootstrap=true"
STUDENT = "dist-train distill --teacher runs/bagged configs/digits-distill.yaml"
# What these runs do is tested in faults/ and runtime/; here, that they are what the README says.
DRY = {f"dist-train run configs/digits-{each}.yaml" for each in COUPLINGS + CODISTILLED}
STUDENTS = {f"{BAGGED} --run-dir runs/bagged", f"{STUDENT} distill.temperature=4 distill.soft_weight=0.9"}


def blocks(language):
    """(the line before, the text) of each block of a language, in order."""
    found = re.findall(rf"^([^\n]*)\n\n```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found
    return found


def commands():
    return [line for _, text in blocks("sh") for line in text.splitlines()]


def files():
    """Name to text of every file that the README shows."""
    shown = {}
    for before, text in blocks("python") + blocks("yaml"):
        name = re.search(r"`([\w.]+)`:$", before)
        assert name, f"the line before this block names no file: {before!r}"
        shown[name[1]] = text
    return shown


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder as a user has it after cloning, with the README's files, and its commands run in it."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name, text in files().items():
        (folder / name).write_text(text)
    return folder


def run(command, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands_run_elsewhere_are_all_in_the_readme():
    assert ELSEWHERE.keys() < set(commands())


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_every_command_runs_as_printed(clone):
    skipped = ELSEWHERE.keys() | DRY | STUDENTS
    printed = {command: run(command, clone) for command in commands() if command not in skipped}
    assert len(printed) >= 5
    first, from_python, dry, _, resumed, checkpoints, evaluated, reported = printed.values()
    accuracy = re.search(r"validation +accuracy ([\d.]+)%", first)
    assert float(accuracy[1]) >= 99
    assert from_python.splitlines()[-1].startswith("done {")
    assert "resumed from runs/spirals/checkpoints/step_00000640" in resumed
    assert "3 workers" in resumed
    assert checkpoints.count("verified") == 3
    assert [line.split()[0] for line in evaluated.splitlines() if "replica_0" in line] == [
        "runs/spirals",
        "runs/by-torchrun",
        "replica_0",
    ]
    assert reported.startswith("page      runs/side-by-side/report.html")
    (arithmetic,) = (text for _, text in blocks("text") if text.startswith("# global batch"))
    assert arithmetic in dry
    described = re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE)
    assert {"config.yaml", "metrics.jsonl", "events.jsonl", "summary.json", "checkpoints/"} < set(described)
    for name in described:
        assert (clone / "runs/spirals" / name).exists(), name


@pytest.mark.parametrize("command", sorted(DRY))
def test_every_coupling_is_one_command(clone, command):
    assert command in commands()
    (name,) = re.findall(r"digits-([\w-]+)\.yaml", command)
    printed = run(f"{command} --dry-run", clone)
    said = {
        "async": "each gradient on arrival",
        "bounded": "when more than 3 gradients ahead",
        "backup": "first 2 of 3",
        "mixed": "2 groups of 2 workers",
        "local-steps": "10 local steps",
        "codistill": "2 of 1 worker each, each trains on a part of the data of its own",
        "codistill-async": "2 of 2 workers each, each trains on a part of the data of its own",
        "codistill-predictions": "all others, by what they predict of the same batches",
    }
    assert said[name] in printed, printed


def test_an_ensemble_and_its_student_are_one_command_each(clone, done):
    assert set(commands()) >= STUDENTS
    assert "each trains on a bootstrap sample" in run(f"{BAGGED} --dry-run", clone)
    ensemble = done("bagged", 1, 2, 3, 4, task="digits", model={"name": "mlp", "hidden": [128, 128]})
    printed = run(f"{STUDENT} distill.temperature=4 --dry-run".replace("runs/bagged", str(ensemble)), clone)
    assert re.search(f"# student of +{ensemble}\n", printed), printed


def test_make_quickstart_is_the_run_whose_table_is_shown(clone):
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^quickstart:.*\n\t\$\(BIN\)/(.*)$", makefile, re.MULTILINE)
    arithmetic = run(f"{recipe[1]} --dry-run", clone)
    (table,) = (text for _, text in blocks("text") if text.startswith("status"))
    steps, samples = (
        re.search(rf"^{name} +([\d,]+)$", table, re.MULTILINE)[1] for name in ("steps", "samples")
    )
    assert f"{steps} steps = {samples} samples" in arithmetic


def test_a_task_of_ones_own_takes_about_twenty_lines():
    task = files()["spirals.py"].split("class Spirals")[1].split("\n\n\n")[0]
    assert 10 < len([line for line in task.splitlines() if line.strip()]) <= 22


def layout():
    """Every file and folder that the README's tree names."""
    (tree,) = (text for _, text in blocks("text") if text.startswith("dist_train/"))
    folders = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        folders[indent // 2 :] = [line.split()[0]]
        yield "".join(folders)


def test_every_file_of_the_layout_exists():
    named = list(layout())
    assert len(named) > 50
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_layout_leaves_no_file_out():
    named = set(layout())
    folders = {os.path.dirname(name) for name in named if name.endswith(".py")}
    assert len(folders) > 5
    files = {f"{folder}/{file.name}" for folder in folders for file in (ROOT / folder).glob("[!_]*.py")}
    assert files - named == set(), "give each a line in the README's tree"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert links or page.name != "README.md"
    for link in links:
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_configuration_key_in_the_text_exists(page):
    sections = {name for name in Config.model_fields if name not in ("name", "task", "seed")}
    mentioned = re.findall(r"`(\w+)\.(\w+)[^`]*`", page.read_text())
    for section, key in mentioned:
        if section in sections - {"model", "task_options"}:
            assert any(key in variant for variant in keys_of(shape.keys(Config)[section])), key


def keys_of(annotation):
    """The keys of each section that stands at a place."""
    union = shape.variants(annotation)
    return [
        shape.keys(each) for each in (union.sections.values() if union else [shape.section_of(annotation)])
    ]


# The tables of keys, options and defaults.


def tables(page):
    """Heading to {key: default} of every table of keys in a page."""
    found = {}
    heading = ""
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif row := re.match(r"\| `(\w+)` \| (`.*?`|required) \|", line):
            found.setdefault(heading, {})[row[1]] = default_in(row[2])
    assert found
    return found


def default_in(cell):
    return "required" if cell == "required" else yaml.safe_load(cell.strip("`"))


def defaults(section, without=()):
    """Key to default of one section, as a table would hold it; subsections are left out."""
    shown = {}
    for name, field in section.model_fields.items():
        if name in without or isinstance(field.default, BaseModel):
            continue
        default = "required" if field.is_required() else field.default
        shown[name] = list(default) if isinstance(default, tuple) else default
    return shown


def expected_tables():
    expected = {"Top level": defaults(Config, without=("train", "optimizer"))}
    for name, field in Config.model_fields.items():
        if name == "optimizer":
            shared = defaults(Optimizer)
            expected[name] = {"name": "sgd"} | shared
            for kind, section in shape.variants(shape.keys(Config)[name]).sections.items():
                expected[f"{name}: {kind}"] = defaults(section, without=("name", *shared))
        elif name == "train" or isinstance(field.default, BaseModel):
            section = shape.section_of(shape.keys(Config)[name])
            expected[name] = defaults(section, without=("profile",))
    for parent, name in (
        ("schedule", "warmup"),
        ("schedule", "decay"),
        ("parallel", "damping"),
        ("parallel", "outer"),
    ):
        union = shape.variants(inside(parent)[name])
        for kind, section in union.sections.items():
            if keys := defaults(section, without=("kind",)):
                expected[f"{parent}.{name}: {kind}"] = keys
    for name in ("server", "cluster"):
        expected[f"parallel.{name}"] = defaults(shape.section_of(inside("parallel")[name]))
    for name in ("codistill", "distill"):
        expected[name] = defaults(shape.section_of(shape.keys(Config)[name]))
    expected["schedule.weight_decay"] = defaults(shape.section_of(inside("schedule")["weight_decay"]))
    expected["logging.profile"] = defaults(shape.section_of(inside("logging")["profile"], {}))
    return expected


def inside(section):
    """The keys of one section, each with what the schema says of it."""
    return shape.keys(shape.section_of(shape.keys(Config)[section]))


def test_the_configuration_page_lists_every_key_with_its_default():
    expected = expected_tables()
    assert "amsgrad" in expected["optimizer: adamw"]
    assert tables(ROOT / "docs/configuration.md") == expected


def test_the_tasks_page_lists_every_option_with_its_default():
    documented = tables(ROOT / "docs/tasks.md")
    expected = {name: defaults(options) for name, options in (TASK_OPTIONS | MODEL_OPTIONS).items()}
    assert documented == expected
