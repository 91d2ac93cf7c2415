import torch

from dist_train.tasks.classification import Normalise, right_answers


def test_an_answer_is_right_where_the_label_is_among_the_likeliest():
    predictions = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    assert right_answers(predictions, labels).tolist() == [1, 0, 0]
    assert right_answers(predictions, labels, 2).tolist() == [1, 1, 0]
    assert right_answers(predictions, labels, 5).tolist() == [1, 1, 1]


def test_normalised_pixels_are_what_the_formula_says():
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.4)
    normalised = Normalise(mean, std)(pixels)
    for channel in range(3):
        expected = (pixels[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(normalised[:, channel].double(), expected, rtol=1e-5, atol=1e-5)


def test_normalising_keeps_the_memory_format():
    pixels = torch.zeros((2, 3, 4, 4), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert Normalise((0.5,) * 3, (0.1,) * 3)(pixels).is_contiguous(memory_format=torch.channels_last)
