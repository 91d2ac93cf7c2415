"""What an exchange of predictions takes by itself."""

import pytest

from benchmarks.codistillation import exchange_s


@pytest.mark.processes
def test_two_processes_exchange_predictions_within_a_second():
    assert 0 < exchange_s(swaps=20) < 1
