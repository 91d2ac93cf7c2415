"""Tests of who may talk to a cluster: a table of addresses, with and without a token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_train.errors import ConfigError
from dist_train.runtime.access import admit, is_loopback

HERE = ["127.0.0.1:6379", "localhost:6379", "http://127.0.0.1:8265", "http://localhost:8265", "[::1]:6379"]
ELSEWHERE = [
    "head:6379",
    "10.0.0.7:6379",
    "http://10.0.0.7:8265",
    "https://ray.example.com",
    "0.0.0.0:6379",
    "127.0.0.1.example.com:6379",
    "http://127.0.0.1@10.0.0.7:8265",
    "[::]:6379",
    "",
]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that what the test leaves is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("address", HERE)
def test_this_machine_alone_needs_no_token(address: str) -> None:
    assert is_loopback(address)
    admit(address)
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("address", ELSEWHERE)
def test_any_other_is_refused_without_a_token(address: str) -> None:
    assert not is_loopback(address)
    with pytest.raises(ConfigError, match="without a token") as refused:
        admit(address)
    assert "RAY_AUTH_TOKEN_PATH" in str(refused.value)


@pytest.mark.parametrize("address", [*HERE, *ELSEWHERE])
def test_a_token_opens_them_all_and_is_used(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    admit(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_token_is_worth_nothing_with_authentication_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="without a token"):
        admit("head:6379")


def test_ray_client_is_refused_with_the_ways_there_are() -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT.*dist-train submit"):
        admit("ray://head:10001")
