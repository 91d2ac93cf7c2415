import math

import pytest
import torch
import torch.nn.functional as F

from dist_train.models.cifar_resnet import Block, CifarResNet


# He et al. 2015, table 6, gives 0.27, 0.46, 0.66, 0.85 and 1.7 million.
@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_has_as_many_parameters_as_the_papers_networks(depth, parameters):
    assert sum(p.numel() for p in CifarResNet(depth=depth).parameters()) == parameters


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_refuses_a_depth_that_is_not_6n_plus_2(depth):
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(depth=depth)


def test_a_block_starts_as_its_shortcut():
    block = next(m for m in CifarResNet().blocks if m.stride == 2)
    x = torch.rand(2, 16, 8, 8)
    shortcut = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], dim=1)
    assert torch.equal(block(x), shortcut)


def test_the_last_gammas_start_at_one_if_asked_for():
    blocks = [m for m in CifarResNet(zero_last_gamma=False).modules() if isinstance(m, Block)]
    assert all((block.norm2.weight == 1).all() for block in blocks)


def test_convolutions_are_initialised_by_fan_out():
    torch.manual_seed(0)
    weight = CifarResNet(width=64).blocks[6].conv1.weight
    assert weight.shape == (256, 128, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)


def test_with_group_norm_a_samples_predictions_do_not_depend_on_its_batch():
    model = CifarResNet(depth=8, norm="group", zero_last_gamma=False).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


def test_batch_norm_is_the_default():
    model = CifarResNet(depth=8, zero_last_gamma=False)
    images = torch.randn(4, 3, 16, 16)
    assert not torch.allclose(model(images)[:1], model(images[:1]), atol=1e-3)


def test_takes_other_channels_classes_and_sizes_and_learns_everywhere():
    model = CifarResNet(classes=7, channels=1, depth=8, zero_last_gamma=False)
    predictions = model(torch.randn(5, 1, 8, 8))
    assert predictions.shape == (5, 7)
    F.cross_entropy(predictions, torch.arange(5)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
