"""Who may talk to a Ray cluster. Whoever reaches it can run any program there: strangers are kept out."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from dist_train.errors import ConfigError
from dist_train.runtime.place import cluster_has_tls, cluster_token_given, set_unless_given

AUTO = "auto"
# What a stranger meets at a cluster; anything else is said as it is.
TURNED_AWAY, LET_IN = "turned away", "let in"
ANSWER_S = 10.0

# Calls at an address without a token, and says what came of it.
Knock = Callable[[str], str]


def admit(address: str) -> None:
    """Refuse (ConfigError) an address that is no loopback one without a token; with one, have Ray use it.

    Call this before Ray is imported. ``auto`` passes: its address is known only once Ray has found it.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: Ray Client is not supported; use HOST:PORT on a machine of the cluster, "
            "or send the run with dist-train submit --address http://HOST:8265"
        )
    if cluster_token_given():
        # Unless told, Ray uses a token only for clusters that it finds by itself.
        set_unless_given("RAY_AUTH_MODE", "token")
    elif address != AUTO and not is_loopback(address):
        raise refusal(address)


def keep_to_guarded(address: str, knock: Knock) -> None:
    """Refuse (ConfigError) a cluster that is not on this machine alone, unless it turns strangers away.

    That this user has a token says nothing: a cluster that asks for none takes it too. ``auto`` passes.
    """
    if address == AUTO or is_loopback(address):
        return
    if not cluster_token_given():
        raise refusal(address)
    # Without a certificate of the cluster's own nobody gets so far as to be asked for a token.
    if cluster_has_tls():
        return
    found = knock(address)
    if found == LET_IN:
        raise refusal(address)
    if found != TURNED_AWAY:
        raise ConfigError(
            f"--address {address}: no answer to whether strangers are let in: {found}; is the address right, "
            "and does the cluster run?"
        )


def knock_at_jobs(url: str) -> str:
    """Ask Ray's Jobs API for its version, without a token."""
    try:
        with urlopen(f"{url.rstrip('/')}/api/version", timeout=ANSWER_S):
            return LET_IN
    except HTTPError as error:
        with error:
            return TURNED_AWAY if error.code in (401, 403) else f"HTTP status {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def knock_at_head(address: str) -> str:
    """Ask the head's global control service at HOST:PORT whether nodes are alive, without a token."""
    # Comes with Ray.
    import grpc

    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        code = ask.future(b"", timeout=ANSWER_S).code()
    if code == grpc.StatusCode.OK:
        return LET_IN
    return TURNED_AWAY if code == grpc.StatusCode.UNAUTHENTICATED else f"gRPC status {code.name}"


def wanted(address: str) -> ConfigError:
    """Return what to tell somebody whose token the cluster has refused, or who has none and needs one."""
    return ConfigError(
        f"--address {address}: the cluster wants its token; set RAY_AUTH_TOKEN_PATH to a file with "
        "it, or RAY_AUTH_TOKEN"
    )


def refusal(address: str) -> ConfigError:
    """Return what to tell somebody who has no token, or whose cluster asks for none."""
    return ConfigError(
        f"--address {address}: without a token anybody who reaches this cluster can run programs on it; "
        "start it with RAY_AUTH_MODE=token (ray get-auth-token --generate makes a token), and set "
        "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN here"
    )


def is_loopback(address: str) -> bool:
    """Say whether ``[http://]HOST[:PORT]`` is on this machine alone, where no other machine can reach it."""
    try:
        host = urlsplit(address if "//" in address else f"//{address}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
