import math

import pytest
import torch

from dist_train.models.gpt import GPT, Attention


def test_has_the_parameters_of_its_parts_and_shares_the_embedding():
    width, layers, context = 128, 4, 64
    block = 2 * 2 * width + (3 * width + 1 * width) * width + 4 * width + 8 * width * width + 5 * width
    expected = (256 + context) * width + layers * block + 2 * width
    assert sum(p.numel() for p in GPT(context=context).parameters()) == expected


def test_attention_equals_the_masked_softmax_written_out():
    attention = Attention(width=8, heads=2, dropout=0.0).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    query, key, value = (x @ attention.query_key_value.weight.T + attention.query_key_value.bias).split(
        8, dim=2
    )
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(dim=2) @ value[..., part])
    expected = torch.cat(heads, dim=2) @ attention.project.weight.T + attention.project.bias
    torch.testing.assert_close(attention(x), expected)


def test_a_byte_changes_no_prediction_before_it():
    model = GPT(context=16, layers=2, heads=2, width=16)
    text = torch.randint(256, (1, 16))
    other = text.clone()
    other[0, 9] = (other[0, 9] + 1) % 256
    change = (model(text) - model(other)).abs().sum(dim=2)[0]
    assert (change[:9] == 0).all()
    assert (change[9:] > 0).all()


def test_bytes_and_int64_give_the_same_logits():
    model = GPT(context=8, layers=1, heads=2, width=16)
    text = torch.randint(256, (2, 8), dtype=torch.uint8)
    assert model(text).shape == (2, 8, 256)
    assert torch.equal(model(text), model(text.long()))


def test_starts_close_to_even_odds_with_residual_layers_scaled_down():
    torch.manual_seed(0)
    model = GPT(context=8, layers=8, width=128)
    for block in model.blocks:
        assert block.attention.project.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert block.project.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert block.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
    text = torch.randint(256, (4, 9))
    loss = torch.nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(256), rel=0.02)


def test_dropout_acts_in_training_alone():
    model = GPT(context=8, layers=1, heads=2, width=16, dropout=0.5)
    text = torch.randint(256, (2, 8))
    assert not torch.equal(model(text), model(text))
    model.eval()
    assert torch.equal(model(text), model(text))


def test_refuses_a_text_longer_than_its_context_and_a_width_its_heads_cannot_share():
    with pytest.raises(ValueError, match="9 tokens"):
        GPT(context=8, layers=1)(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="multiple of heads 3"):
        GPT(context=8, heads=3, width=128)
