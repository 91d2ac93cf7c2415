"""Tests of the comparison before the first collective."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

from dist_train.errors import Mismatch, TrainingError
from dist_train.exchange.handshake import Facts, handshake

FACTS: Facts = {
    "configuration": {"optimizer.lr": "0.1", "seed": "0"},
    "parameter": {"weight": "float32 [10, 64]", "bias": "float32 [10]"},
    "version of": {"torch": "2.13.0"},
}


class CountingStore(HashStore):
    """Remembers how many characters were posted under each key."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: dict[str, int] = {}

    def set(self, key: str, value: str) -> None:
        self.posted[key] = len(value)
        super().set(key, value)


def changed(topic: str, name: str, value: str | None) -> Facts:
    entries = {key: text for key, text in {**FACTS[topic], name: value}.items() if text is not None}
    return {**FACTS, topic: entries}


def meet(facts: Mapping[int, Facts], store: Any = None) -> dict[int, str]:
    """Let all ranks shake hands in threads; return the refusal of each rank that refused."""
    shared = HashStore() if store is None else store

    def one(rank: int) -> str:
        try:
            handshake(shared, rank, len(facts), facts[rank], timeout_s=20)
        except Mismatch as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(facts)) as threads:
        answers = dict(zip(facts, threads.map(one, facts), strict=True))
    return {rank: answer for rank, answer in answers.items() if answer}


def test_workers_that_agree_pass() -> None:
    assert meet(dict.fromkeys(range(3), FACTS)) == {}


def test_equal_facts_in_another_order_pass() -> None:
    turned = {topic: dict(reversed(FACTS[topic].items())) for topic in reversed(FACTS)}
    assert meet({0: FACTS, 1: turned, 2: FACTS}) == {}


@pytest.mark.parametrize(
    ("topic", "name", "value", "told"),
    [
        ("configuration", "seed", "7", "configuration seed is 7 instead of 0"),
        ("parameter", "bias", "float32 [11]", "parameter bias is float32 [11] instead of float32 [10]"),
        ("parameter", "bias", None, "parameter bias is absent instead of float32 [10]"),
        ("parameter", "extra", "float16 [1]", "parameter extra is float16 [1] instead of absent"),
        ("version of", "torch", "2.11.0", "version of torch is 2.11.0 instead of 2.13.0"),
    ],
)
def test_every_rank_names_who_differs_and_both_values(topic: str, name: str, value: str, told: str) -> None:
    refusals = meet({0: FACTS, 1: FACTS, 2: changed(topic, name, value)})
    assert set(refusals) == {0, 1, 2}
    assert len(set(refusals.values())) == 1
    assert refusals[0].startswith(f"rank 2 differs from rank 0: {told};")


def test_all_ranks_that_differ_are_named() -> None:
    refusals = meet(
        {0: FACTS, 1: changed("configuration", "seed", "1"), 2: changed("configuration", "seed", "2")}
    )
    assert refusals[0].startswith("ranks [1, 2] differ from rank 0: configuration seed is 1 instead of 0;")


def test_of_many_differences_the_first_three_are_named_and_the_rest_counted() -> None:
    names = {f"layer_{number}": "float32 [1]" for number in range(9)}
    other = {f"layer_{number}": "float32 [2]" for number in range(9)}
    refusal = meet({0: {"parameter": names}, 1: {"parameter": other}})[1]
    assert "layer_0" in refusal
    assert "layer_2" in refusal
    assert "layer_3" not in refusal
    assert "and 6 more" in refusal


def test_absent_ranks_are_named() -> None:
    store = HashStore()
    with pytest.raises(TrainingError, match=r"ranks \[1, 2\]; check that they were started"):
        handshake(store, 0, 3, FACTS, timeout_s=0)


def test_a_big_model_posts_a_digest_alone_while_all_agree() -> None:
    big = {"parameter": {f"block.{number}.weight": "float32 [4096, 4096]" for number in range(5000)}}
    store = CountingStore()
    assert meet({0: big, 1: big}, store) == {}
    assert len(store.posted) == 2
    assert max(store.posted.values()) <= 64
