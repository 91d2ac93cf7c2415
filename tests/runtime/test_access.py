"""Tests of who may talk to a cluster: a table of addresses, with and without a token."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from dist_train.errors import ConfigError
from dist_train.runtime.access import (
    LET_IN,
    TURNED_AWAY,
    admit,
    is_loopback,
    keep_to_guarded,
    knock_at_head,
    knock_at_jobs,
)

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


class TestAClusterThatLetsStrangersIn:
    """A token that this user has is taken by a cluster that asks for none."""

    @pytest.fixture(autouse=True)
    def token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)

    @pytest.mark.parametrize("address", ELSEWHERE)
    def test_is_refused(self, address: str) -> None:
        with pytest.raises(ConfigError, match="without a token anybody who reaches this cluster"):
            keep_to_guarded(address, lambda asked: LET_IN)

    @pytest.mark.parametrize("address", ELSEWHERE)
    def test_is_told_from_one_that_turns_them_away(self, address: str) -> None:
        asked: list[str] = []

        def knock(at: str) -> str:
            asked.append(at)
            return TURNED_AWAY

        keep_to_guarded(address, knock)
        assert asked == [address]

    def test_is_not_known_before_ray_has_found_it(self) -> None:
        keep_to_guarded("auto", nobody)

    @pytest.mark.parametrize("address", HERE)
    def test_is_allowed_on_this_machine_alone(self, address: str) -> None:
        keep_to_guarded(address, nobody)

    def test_is_not_asked_by_one_who_has_no_token_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        with pytest.raises(ConfigError, match="without a token"):
            keep_to_guarded("10.0.0.7:6379", nobody)

    def test_is_no_cluster_that_wants_certificates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_USE_TLS", "1")
        keep_to_guarded("10.0.0.7:6379", nobody)

    def test_may_be_any_that_does_not_say(self) -> None:
        with pytest.raises(
            ConfigError, match="whether strangers are let in: HTTP status 500; is the address"
        ):
            keep_to_guarded("http://10.0.0.7:8265", lambda address: "HTTP status 500")


def nobody(address: str) -> str:
    raise AssertionError("was asked")


@contextmanager
def dashboard(status: int) -> Iterator[str]:
    """Stands for Ray's dashboard, which answers everybody with ``status``."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/api/version" and "Authorization" not in self.headers
            self.send_response(status if found else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (200, LET_IN),
        (401, TURNED_AWAY),
        (403, TURNED_AWAY),
        (404, "HTTP status 404"),
        (500, "HTTP status 500"),
    ],
)
@pytest.mark.parametrize("end", ["", "/"])
def test_a_stranger_at_the_jobs_api_is_known_by_the_answer(status: int, found: str, end: str) -> None:
    with dashboard(status) as url:
        assert knock_at_jobs(url + end) == found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_nobody_at_the_jobs_api_is_no_answer() -> None:
    assert "Connection refused" in knock_at_jobs(f"http://127.0.0.1:{free_port()}")
    assert knock_at_jobs("head:8265") not in (LET_IN, TURNED_AWAY)


@contextmanager
def head(code: grpc.StatusCode) -> Iterator[str]:
    """Stands for the head of a cluster, which answers everybody with ``code``."""

    class Answer(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if details.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
                return None

            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if code != grpc.StatusCode.OK:
                    context.abort(code, "no")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, [Answer()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (grpc.StatusCode.OK, LET_IN),
        (grpc.StatusCode.UNAUTHENTICATED, TURNED_AWAY),
        (grpc.StatusCode.INTERNAL, "gRPC status INTERNAL"),
    ],
)
def test_a_stranger_at_the_head_is_known_by_the_answer(code: grpc.StatusCode, found: str) -> None:
    with head(code) as address:
        assert knock_at_head(address) == found


def test_nobody_at_the_head_is_no_answer() -> None:
    assert knock_at_head(f"127.0.0.1:{free_port()}") == "gRPC status UNAVAILABLE"
