import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import default_collate

from dist_train import tasks
from dist_train.config.schema import Config
from dist_train.errors import ConfigError


def config(task, options=None, **more):
    basis = {"name": "x", "train": {"steps": 1, "batch_size": 1}, "optimizer": {"name": "sgd", "lr": 0.1}}
    return Config.model_validate(basis | {"task": task, "task_options": options or {}} | more)


@pytest.fixture
def data(tmp_path):
    """Options of each built-in task, with tiny data."""
    for split in ("train", "val"):
        for label in ("a", "b", "c"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(2):
                Image.effect_noise((40, 40), 50).save(tmp_path / split / label / f"{number}.png")
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        (tmp_path / name).write_bytes(bytes(range(1)) * 3073 * 2)
    return {
        "digits": {},
        "text": {"context": 16, "max_bytes": 100_000},
        "images": {"data_dir": str(tmp_path), "size": 32},
        "cifar10": {"data_dir": str(tmp_path)},
        "synthetic": {"samples": 16},
    }


def batch_of(dataset, indices):
    if hasattr(dataset, "batch"):
        return dataset.batch(indices)
    return default_collate([dataset[i] for i in indices])


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_every_task_trains_its_own_choice_of_model(data, name):
    torch.manual_seed(0)
    task = tasks.make(config(name, data[name]))
    model = task.model()
    batch = batch_of(task.train_data(), [0, 1, 2, 3])
    loss, predictions = task.loss(model, batch)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    targets = batch[0][:, 1:].long() if name == "text" else batch[1]
    by_class = predictions.transpose(1, 2) if name == "text" else predictions
    per_sample = F.cross_entropy(by_class, targets, reduction="none").reshape(4, -1).mean(dim=1)
    torch.testing.assert_close(loss, per_sample.mean())
    for value in task.metrics(predictions, batch).values():
        assert value.shape == (4,)
        assert value.dtype == torch.float32


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_the_loss_of_a_batch_is_the_mean_of_its_samples(data, name):
    torch.manual_seed(0)
    task = tasks.make(config(name, data[name]))
    model, dataset = task.model().eval(), task.validation_data()
    with torch.no_grad():
        whole, _ = task.loss(model, batch_of(dataset, [0, 1]))
        single = [task.loss(model, batch_of(dataset, [i]))[0] for i in (0, 1)]
    torch.testing.assert_close(whole, sum(single) / 2)


def test_a_task_takes_the_configurations_model():
    task = tasks.make(config("digits", model={"name": "mlp", "hidden": [7]}))
    assert [p.shape[0] for p in task.model().parameters()] == [7, 7, 10, 10]
    task = tasks.make(config("digits", model={"name": "cifar_resnet", "depth": 8}))
    assert task.model().eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", ["digits", "text", "synthetic"])
def test_right_configurations_have_no_problems(data, name):
    assert tasks.check(config(name, data[name])) == []


def test_images_are_checked(data, tmp_path):
    assert tasks.check(config("images", data["images"])) == []
    (tmp_path / "val" / "b" / "1.png").write_bytes(b"")
    assert tasks.check(config("images", data["images"])) == [
        f"task_options.data_dir: image {tmp_path}/val/b/1.png is empty (0 bytes)"
    ]


@pytest.mark.parametrize(
    ("chosen", "start"),
    [
        (
            config("digit"),
            "task: unknown task 'digit'; did you mean digits? (or give package.module:attribute",
        ),
        (
            config("digits", {"validaton_share": 0.3}),
            "task_options.validaton_share: unknown option; did you mean",
        ),
        (
            config("digits", {"validation_share": 2}),
            "task_options.validation_share: expected a number above 0 and below 1, found 2",
        ),
        (
            config("digits", model={"name": "gpt"}),
            "model.name: gpt does not fit this task; choose one of mlp",
        ),
        (config("digits", model={"name": "mlq"}), "model.name: unknown model 'mlq'; did you mean mlp?"),
        (
            config("digits", model={"name": "mlp", "hiden": 3}),
            "model.hiden: unknown option; did you mean hidden",
        ),
        (
            config("text", {"paths": ["/not/here"]}),
            "task_options: /not/here: there is no such file or folder",
        ),
        (
            config("text", {"pattern": "*.none"}),
            "task_options.paths: no file with text in the standard library",
        ),
        (config("text", {"paths": []}), "task_options.paths: no file with text in []"),
        (config("text", {"context": 10**8}), "task_options.context: "),
        (config("images"), "task_options.data_dir: missing; give a path"),
        (config("images", {"data_dir": 3}), "task_options.data_dir: expected a path, found 3"),
        (
            config("images", {"data_dir": "/not/here"}),
            "task_options.data_dir: there is no folder /not/here/train",
        ),
        (config("images", {"data_dir": "~nobody_here/x"}), "task_options.data_dir: there is no folder"),
        (
            config("cifar10", {"data_dir": "/not/here"}),
            "task_options.data_dir: there is no file /not/here/data_",
        ),
        (config("synthetic", {"shape": []}), "task_options.shape: expected a list"),
        (
            config("synthetic", {"shape": [9]}, model={"name": "resnet18"}),
            "model.name: resnet18 does not fit",
        ),
        (config("nowhere.py:Task"), "task: nowhere.py:Task: there is no file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(chosen, start):
    problems = tasks.check(chosen)
    assert problems
    assert problems[0].startswith(start)
    assert not any("\n" in problem for problem in problems)


def test_a_folder_without_permission_is_a_problem_and_no_exception(monkeypatch, tmp_path):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    monkeypatch.setattr("dist_train.tasks.folders.class_names", refuse)
    assert tasks.check(config("images", {"data_dir": str(tmp_path)})) == [
        f"task_options: {tmp_path}/train: Permission denied"
    ]


def test_wrong_options_are_refused_when_the_task_is_made_too():
    with pytest.raises(ConfigError, match="unknown option"):
        tasks.make(config("digits", {"share": 0.3}))


def test_checking_a_built_in_task_imports_neither_torch_nor_the_data_libraries():
    program = """
import sys
from dist_train import tasks
from dist_train.config.schema import Config
for name in ("digits", "text", "images", "cifar10", "synthetic"):
    options = {"data_dir": "/not/here"} if name in ("images", "cifar10") else {}
    model = {"name": "gpt" if name == "text" else "mlp"}
    tasks.check(Config.model_validate({"name": "x", "task": name, "task_options": options, "model": model,
        "train": {"steps": 1, "batch_size": 1}, "optimizer": {"name": "sgd", "lr": 0.1}}))
print([heavy for heavy in ("torch", "sklearn", "PIL", "numpy") if heavy in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
