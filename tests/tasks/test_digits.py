from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dist_train.tasks import digits
from dist_train.tasks.digits import Digits


def rows(images, labels):
    return sorted(zip(images.reshape(len(images), 64).tolist(), labels.tolist(), strict=True))


def test_training_and_validation_digits_together_are_scikit_learns():
    task = Digits()
    (x, y), (u, v) = task.train_data().columns, task.validation_data().columns
    assert (len(x), len(u)) == (1437, 360)
    assert x.shape[1:] == (1, 8, 8)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    bundled = load_digits()
    assert rows(torch.cat([x, u]) * 16, torch.cat([y, v])) == rows(bundled.data, bundled.target)


def test_every_class_is_held_out_in_its_proportion():
    task = Digits()
    training, validation = (
        Counter(d.columns[1].tolist()) for d in (task.train_data(), task.validation_data())
    )
    for label in range(10):
        assert validation[label] == pytest.approx((training[label] + validation[label]) / 5, abs=1)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_share_that_is_held_out_can_be_chosen(share):
    assert len(Digits(validation_share=share).validation_data()) == int(np.ceil(1797 * share))


def test_the_split_does_not_depend_on_the_runs_seed():
    splits = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        splits.append(Digits().validation_data().columns[0])
    assert torch.equal(*splits)


def test_without_its_file_scikit_learn_is_asked(monkeypatch):
    direct = digits.read_digits()
    monkeypatch.setattr(digits.Path, "is_file", lambda path: False)
    assert np.array_equal(digits.read_digits(), direct)
