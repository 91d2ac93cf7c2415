import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.rules.scaling import scaled_learning_rate

batches = st.integers(1, 100_000)


@pytest.mark.parametrize(
    ("rule", "batch", "expected"),
    [
        ("linear", 128, 0.05),
        ("linear", 256, 0.1),
        ("linear", 8192, 3.2),
        ("linear", 65536, 25.6),
        ("sqrt", 8192, 0.1 * 32**0.5),
        ("sqrt", 1024, 0.2),
        ("none", 8192, 0.1),
    ],
)
def test_the_rates_of_goyal_2017_for_imagenet(rule, batch, expected):
    assert scaled_learning_rate(rule, 0.1, batch, 256) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", ["linear", "sqrt", "none"])
def test_without_a_base_batch_the_rate_is_the_base_rate(rule):
    assert scaled_learning_rate(rule, 0.3, 4096, None) == 0.3


@pytest.mark.parametrize("rule", ["linear", "sqrt", "none"])
@given(batch=batches)
def test_at_the_base_batch_the_rate_is_the_base_rate_exactly(rule, batch):
    assert scaled_learning_rate(rule, 0.1, batch, batch) == 0.1


@given(workers=st.integers(1, 1000), per_worker=batches, base=batches)
@settings(max_examples=60, deadline=None)
def test_k_times_the_batch_takes_k_times_the_rate(workers, per_worker, base):
    one = scaled_learning_rate("linear", 0.1, per_worker, base)
    assert scaled_learning_rate("linear", 0.1, workers * per_worker, base) == pytest.approx(workers * one)
    one = scaled_learning_rate("sqrt", 0.1, per_worker, base)
    many = scaled_learning_rate("sqrt", 0.1, workers * per_worker, base)
    assert many**2 == pytest.approx(workers * one**2)
