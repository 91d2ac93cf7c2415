"""The benchmarks still fit the program that they measure."""

import pytest

from benchmarks import loader, server_speed, step_time
from benchmarks.workload import make_columns, make_model
from dist_train import load_config, tasks


def test_the_loaders_draw_the_same_kind_of_batch_and_each_draw_is_timed(monkeypatch):
    for name, value in {"IMAGES": 64, "DISTINCT": 4, "BATCHES": 2, "LOADERS": (0,), "REST_S": 0.0}.items():
        monkeypatch.setattr(loader, name, value)
    seconds = loader.measure(rounds=2)["seconds_per_batch"]
    assert {name: len(times) for name, times in seconds.items()} == {"dist_train_0": 2, "plain_0": 2}


@pytest.mark.parametrize("settings", [[], *step_time.VARIANTS.values()])
@pytest.mark.parametrize("workload", ["resnet", "mlp", "tiny"])
def test_every_variant_of_the_configuration_is_accepted(workload, settings):
    config = load_config(step_time.CONFIG, [f"task_options.workload={workload}", *settings])
    assert tasks.check(config) == []


@pytest.mark.parametrize(
    ("workload", "millions"),
    [
        ("resnet", 0.27),
        ("mlp_100k", 0.1),
        ("mlp_1m", 1.0),
        ("mlp", 10.07),
        ("mlp_50m", 50.0),
        ("tiny", 0.0048),
    ],
)
def test_the_models_have_the_sizes_that_the_results_speak_of(workload, millions):
    model = make_model(workload)
    inputs, labels = make_columns(workload, samples=4)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert model(inputs).shape == (4, 10)
    assert labels.shape == (4,)


def test_the_asynchronous_contestant_differs_from_the_synchronous_one_by_its_mode_alone(tmp_path):
    own = server_speed.asynchronous("mlp", tmp_path).command
    settings = own[own.index(step_time.CONFIG) + 1 : own.index("--run-dir")]
    config = load_config(step_time.CONFIG, settings)
    assert tasks.check(config) == []
    assert config.parallel.mode == "async"
    # Its updates are half as large: twice as many come between two lines.
    assert config.logging.every_steps == 2 * load_config(step_time.CONFIG, []).logging.every_steps
