import torch

from dist_train.tasks.synthetic import Synthetic


def test_has_the_size_and_shape_asked_for():
    task = Synthetic(samples=80, shape=[2, 5], classes=3)
    inputs, labels = task.train_data().columns
    assert inputs.shape == (80, 2, 5)
    assert set(labels.tolist()) == {0, 1, 2}
    assert len(task.validation_data()) == 10


def test_is_the_same_in_every_run():
    first = Synthetic(samples=16).train_data().columns
    torch.manual_seed(7)
    second = Synthetic(samples=16).train_data().columns
    assert all(map(torch.equal, first, second))


def test_without_noise_the_samples_of_a_class_are_alike_in_training_and_validation():
    task = Synthetic(samples=64, shape=[4], classes=2, noise=0)
    (x, y), (u, v) = task.train_data().columns, task.validation_data().columns
    for label in (0, 1):
        samples = torch.cat([x[y == label], u[v == label]])
        assert len(samples) > 8
        assert (samples == samples[0]).all()
    assert not torch.equal(x[y == 0][0], x[y == 1][0])


def test_training_and_validation_noise_differ():
    task = Synthetic(samples=64, shape=[4])
    assert not torch.equal(task.train_data().columns[0][:8], task.validation_data().columns[0])


def test_the_nearest_prototype_is_nearly_always_right():
    (prototypes, kinds) = Synthetic(samples=200, shape=[64], noise=0).train_data().columns
    inputs, labels = Synthetic(samples=200, shape=[64], noise=1.0).train_data().columns
    found = kinds[torch.cdist(inputs, prototypes).argmin(dim=1)]
    assert (found == labels).float().mean() > 0.97


def test_noise_has_the_standard_deviation_asked_for():
    clean, noisy = (Synthetic(samples=64, noise=n).train_data().columns[0] for n in (0, 3.0))
    torch.testing.assert_close((noisy - clean).std(), torch.tensor(3.0), rtol=0.01, atol=0)
