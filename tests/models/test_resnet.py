import math

import pytest
import torch
from torch import nn

from dist_train.models.resnet import BasicBlock, Bottleneck, resnet18, resnet50


@pytest.mark.parametrize(("make", "parameters"), [(resnet18, 11_689_512), (resnet50, 25_557_032)])
def test_has_as_many_parameters_as_published(make, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == parameters


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet50(classes=50)


def test_strides_in_the_3x3_convolution_of_a_bottleneck(model):
    strided = [b for b in model.modules() if isinstance(b, Bottleneck) and b.conv2.stride == (2, 2)]
    assert len(strided) == 3
    assert all(b.conv1.stride == b.conv3.stride == (1, 1) and b.conv2.kernel_size == (3, 3) for b in strided)


def test_starts_with_gamma_0_in_the_last_norm_of_each_block_and_1_elsewhere(model):
    last = {id(b.last_norm) for b in model.modules() if isinstance(b, Bottleneck)}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(last) == 16
    assert all(
        (norm.weight == (0 if id(norm) in last else 1)).all() and norm.momentum == 0.1 for norm in norms
    )


def test_zero_gammas_can_be_left_out():
    blocks = [b for b in resnet18(classes=2, zero_last_gamma=False).modules() if isinstance(b, BasicBlock)]
    assert all((block.last_norm.weight == 1).all() for block in blocks)


def test_the_last_layer_starts_small_and_the_convolutions_by_fan_out(model):
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (model.head.bias == 0).all()
    expand = model.blocks[-1].conv3
    assert expand.weight.shape == (2048, 512, 1, 1)
    assert expand.weight.std().item() == pytest.approx(math.sqrt(2 / 2048), rel=0.02)


def test_a_224_pixel_image_leaves_the_blocks_as_7_by_7():
    model = resnet18(classes=5).eval()
    sizes = []
    model.blocks.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape)))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 5)
    assert sizes == [(1, 512, 7, 7)]


def test_a_block_starts_as_its_shortcut():
    block = resnet18(classes=2).blocks[1]
    x = torch.rand(2, 64, 5, 5)
    assert torch.equal(block(x), x)
