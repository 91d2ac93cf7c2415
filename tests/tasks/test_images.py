import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from dist_train.errors import BadSample
from dist_train.tasks import images
from dist_train.tasks.images import Images, centre_box, random_box, read_part

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def gradient(width, height):
    """An image whose red grows to the right and whose green grows downwards."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, np.full_like(down, 128)], axis=2).astype(np.uint8))


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "val"):
        for label, colour in (("blue", BLUE), ("red", RED)):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 30), colour).save(folder / "1.png")
    gradient(90, 70).save(tmp_path / "train" / "red" / "2.jpg", quality=95)
    return tmp_path


def test_samples_are_bytes_and_the_number_of_their_class(tree):
    training = Images(tree, size=16).train_data()
    assert len(training) == 3
    pixels, label = training[0]
    assert (pixels.shape, pixels.dtype, label) == ((3, 16, 16), torch.uint8, 0)
    assert pixels[:, 5, 5].tolist() == list(BLUE)
    assert [training[i][1] for i in range(3)] == [0, 1, 1]


def test_the_augmentation_is_drawn_from_pythons_random(tree):
    training = Images(tree, size=16).train_data()

    def sample(seed):
        random.seed(seed)
        return training[2][0]

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_half_of_the_training_images_are_mirrored(tree):
    training = Images(tree, size=16).train_data()
    random.seed(0)
    samples = [training[2][0].float() for _ in range(200)]
    mirrored = sum(bool(s[0, :, :4].mean() > s[0, :, -4:].mean()) for s in samples)
    assert mirrored == pytest.approx(100, abs=30)
    assert all(s[1, :4].mean() < s[1, -4:].mean() for s in samples)  # and none is upside down


def test_validation_draws_nothing(tree):
    random.seed(0)
    before = random.getstate()
    assert torch.equal(*(Images(tree, size=16).validation_data()[0][0] for _ in range(2)))
    assert random.getstate() == before


sides = st.integers(1, 3000)


@settings(deadline=None, max_examples=60)
@given(sides, sides, st.integers(0, 2**32))
def test_a_random_part_lies_within_the_image(width, height, seed):
    random.seed(seed)
    left, upper, right, lower = random_box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


@settings(deadline=None, max_examples=60)
@given(st.integers(300, 1000), st.integers(300, 1000), st.integers(0, 2**32))
def test_a_random_part_has_an_area_and_an_aspect_ratio_of_the_recipe(width, height, seed):
    random.seed(seed)
    left, upper, right, lower = random_box(width, height)
    w, h = right - left, lower - upper
    assert 3 / 4 * 0.97 <= w / h <= 4 / 3 * 1.03
    assert 0.08 * 0.97 <= w * h / (width * height) <= 1


def test_areas_are_uniform_and_aspect_ratios_uniform_in_their_logarithm():
    random.seed(0)
    boxes = np.array([random_box(4000, 4000) for _ in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    small = w * h / 4000**2 < 0.5  # where hardly any attempt fails
    assert np.mean((w * h / 4000**2)[small]) == pytest.approx((0.08 + 0.5) / 2, abs=0.015)
    assert np.mean(np.log(w / h)) == pytest.approx(0, abs=0.01)
    assert np.std(np.log(w / h)[small]) == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), abs=0.01)


def test_an_image_too_narrow_gives_its_centre():
    assert random_box(1000, 10) == (500 - 20 / 3, 0, 500 + 20 / 3, 10)
    assert random_box(10, 1000) == (0, 500 - 20 / 3, 10, 500 + 20 / 3)


@pytest.mark.parametrize("size", [(400, 300), (300, 500)])
def test_validation_equals_resizing_the_shorter_side_to_256_and_cutting_224_from_the_centre(tmp_path, size):
    width, height = size
    gradient(width, height).save(tmp_path / "a.png")
    part = np.array(read_part(f"{tmp_path}/a.png", 224, centre_box)).astype(float)
    scale = 256 / min(width, height)
    resized = gradient(width, height).resize((round(width * scale), round(height * scale)))
    left, upper = (resized.width - 224) / 2, (resized.height - 224) / 2
    expected = resized.crop((int(left), int(upper), int(left) + 224, int(upper) + 224))
    assert np.abs(part - np.array(expected)).mean() < 1.5


def test_a_large_jpeg_decoded_at_a_fraction_shows_the_same_part(tmp_path):
    gradient(1601, 1203).save(tmp_path / "a.jpg", quality=95)
    gradient(1601, 1203).save(tmp_path / "a.png")
    box = (200, 100, 1601, 1203)
    jpeg, png = (np.array(read_part(f"{tmp_path}/a.{kind}", 64, lambda w, h: box)) for kind in ("jpg", "png"))
    assert np.abs(jpeg.astype(float) - png).mean() < 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    gradient(50, 40).convert(mode).save(file)
    assert np.array(read_part(str(file), 16, centre_box)).shape == (16, 16, 3)


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "missing", "broken"])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_an_unreadable_image_is_named(tmp_path, damage, kind):
    file = tmp_path / f"a.{kind}"
    gradient(64, 64).save(file)
    whole = file.read_bytes()
    damaged = {
        "text": b"<html>not found</html>",
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "missing": b"",
        "broken": whole[:12] + b"\0" * 40 + whole[52:],
    }
    file.write_bytes(damaged[damage])
    if damage == "missing":
        file.unlink()
    with pytest.raises(BadSample, match="a\\.") as caught:
        read_part(str(file), 16, centre_box)
    assert caught.value.name == str(file)


class Pixels(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :6]


def test_the_loss_normalises_and_the_metrics_count_the_first_and_the_first_five(tree):
    task = Images(tree, size=16)
    pixels = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    pixels[:, 0, 0, 5] = 0
    labels = torch.tensor([0, 5])
    _, predictions = task.loss(Pixels(), (pixels, labels))
    assert predictions[0].tolist() == pytest.approx([(1 - 0.485) / 0.229] * 5 + [-0.485 / 0.229], rel=1e-4)
    metrics = task.metrics(predictions, (pixels, labels))
    assert metrics["accuracy"][1] == metrics["top5"][1] == 0
    assert metrics["top5"][0] == 1


def test_the_model_has_as_many_classes_as_there_are_folders(tree):
    assert Images(tree, model=images.Model(name="resnet18")).model().head.out_features == 2
