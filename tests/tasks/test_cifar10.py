import random

import numpy as np
import pytest
import torch

from dist_train.tasks.cifar10 import Cifar10


@pytest.fixture
def folder(tmp_path):
    """Six files of four records in the original format; all pixels of a record hold its own number."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for index, name in enumerate(names):
        records = b""
        for row in range(4):
            number = 4 * index + row
            records += (
                bytes([number % 10]) + bytes([number]) * 1024 + bytes([100]) * 1024 + bytes([200]) * 1024
            )
        (tmp_path / name).write_bytes(records)
    return tmp_path


def test_reads_labels_and_planes_of_all_files(folder):
    training, validation = Cifar10(folder).train_data(), Cifar10(folder).validation_data()
    assert (len(training), len(validation)) == (20, 4)
    assert [training[i][1] for i in range(20)] == [i % 10 for i in range(20)]
    pixels, labels = validation.batch([0, 3])
    assert (pixels.shape, pixels.dtype) == ((2, 3, 32, 32), torch.uint8)
    assert pixels[:, :, 0, 0].tolist() == [[20, 100, 200], [23, 100, 200]]
    assert labels.tolist() == [0, 3]


def test_finds_the_folder_of_the_archive(folder):
    unpacked = folder / "cifar-10-batches-bin"
    unpacked.mkdir()
    for file in folder.glob("*.bin"):
        file.rename(unpacked / file.name)
    assert len(Cifar10(folder).train_data()) == 20


def test_a_training_image_is_a_crop_of_the_padded_image_or_of_its_mirror(folder):
    positions = np.arange(1024, dtype=np.uint8).reshape(32, 32) % 251 + 1
    record = bytes([7]) + positions.tobytes() * 3
    (folder / "data_batch_1.bin").write_bytes(record)
    padding = round(255 * 0.4914)  # the mean colour, which becomes zero
    padded = np.pad(positions, 4, constant_values=padding)
    crops = {
        crop[:, ::step].tobytes(): (y, x, step)
        for y in range(9)
        for x in range(9)
        for crop in [padded[y : y + 32, x : x + 32]]
        for step in (1, -1)
    }
    training = Cifar10(folder).train_data()
    random.seed(0)
    seen = [crops[training[0][0][0].numpy().tobytes()] for _ in range(600)]
    assert len({(y, x) for y, x, _ in seen}) > 60  # of 81: the two are drawn apart
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(9))
    assert sum(step == -1 for _, _, step in seen) == pytest.approx(300, abs=50)


def test_the_augmentation_is_drawn_from_pythons_random(folder):
    training = Cifar10(folder).train_data()

    def sample(seed):
        random.seed(seed)
        return training[3][0]

    assert torch.equal(sample(5), sample(5))
    assert len({sample(seed).numpy().tobytes() for seed in range(20)}) > 5


def test_the_padding_is_close_to_zero_once_normalised(folder):
    task = Cifar10(folder)
    border = torch.from_numpy(task.train_data()._border)[None]
    assert task._normalise(border).abs().max() < 0.01
