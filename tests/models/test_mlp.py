import torch
from torch import nn

from dist_train.models.mlp import MLP


def test_has_the_weights_and_biases_of_its_layers():
    model = MLP(inputs=64, outputs=10)
    assert sum(p.numel() for p in model.parameters()) == (64 * 128 + 128) + (128 * 128 + 128) + (
        128 * 10 + 10
    )


def test_equals_matrix_products_with_the_activation_in_between():
    model = MLP(inputs=6, outputs=2, hidden=[4], activation="tanh")
    w1, b1, w2, b2 = model.parameters()
    images = torch.randn(3, 1, 2, 3)
    expected = torch.tanh(images.reshape(3, 6) @ w1.T + b1) @ w2.T + b2
    torch.testing.assert_close(model(images), expected)


def test_without_hidden_layers_it_is_linear():
    assert [type(layer) for layer in MLP(inputs=6, outputs=2, hidden=[]).layers] == [nn.Flatten, nn.Linear]
