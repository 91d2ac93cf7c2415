import math

import pytest
import torch
from torch import nn

from dist_train.tasks.text import Text


@pytest.fixture
def folder(tmp_path):
    for number in range(60):
        (tmp_path / f"{number:02}.py").write_text(f"<file {number:02} " * 20 + ">")
    return tmp_path


def test_a_sample_is_a_window_and_the_byte_after_it(tmp_path):
    (tmp_path / "only.py").write_bytes(bytes(range(1, 101)))
    task = Text([tmp_path], context=8, validation_share=0.2)
    training, validation = task.train_data(), task.validation_data()
    assert (len(training), len(validation)) == (9, 2)  # of 80 and 20 bytes
    (window,) = training[2]
    assert window.dtype == torch.uint8
    assert window.tolist() == list(range(17, 26))
    (windows,) = training.batch([0, 8])
    assert windows.tolist() == [list(range(1, 10)), list(range(65, 74))]
    assert validation[0][0].tolist() == list(range(81, 90))


def test_no_file_is_in_both_training_and_validation_text(folder):
    task = Text([folder], context=8, validation_share=0.2)
    training, validation = (
        bytes(data.columns[0][:, :-1].flatten().tolist())
        for data in (task.train_data(), task.validation_data())
    )
    for number in range(60):
        name = f"file {number:02} ".encode()
        assert (name in training) != (name in validation)


def test_the_same_files_give_the_same_text(folder):
    first, second = (Text([folder], context=8).train_data().columns[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_text_can_be_limited(folder):
    task = Text([folder], context=8, max_bytes=1000)
    assert len(task.train_data()) + len(task.validation_data()) <= 1000 // 8


class EvenOdds(nn.Module):
    def forward(self, text):
        return torch.zeros(*text.shape, 256)


def test_even_odds_cost_8_bits_per_byte(folder):
    task = Text([folder], context=8)
    batch = task.train_data().batch([0, 1, 2])
    loss, predictions = task.loss(EvenOdds(), batch)
    assert loss.item() == pytest.approx(math.log(256))
    assert task.metrics(predictions, batch)["bits_per_byte"].tolist() == pytest.approx([8.0] * 3)


def test_the_bits_of_a_sample_are_the_mean_over_its_bytes(folder):
    task = Text([folder], context=8)
    batch = task.train_data().batch([0, 5])
    predictions = torch.randn(2, 8, 256)
    odds = predictions.softmax(dim=2)
    expected = [
        sum(-math.log2(odds[row, place, batch[0][row, place + 1].item()]) for place in range(8)) / 8
        for row in range(2)
    ]
    assert task.metrics(predictions, batch)["bits_per_byte"].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_model_sees_no_byte_that_it_is_to_predict(folder):
    seen = []

    class Recorder(EvenOdds):
        def forward(self, text):
            seen.append(text)
            return super().forward(text)

    batch = Text([folder], context=8).train_data().batch([3])
    Text([folder], context=8).loss(Recorder(), batch)
    assert torch.equal(seen[0], batch[0][:, :8])
