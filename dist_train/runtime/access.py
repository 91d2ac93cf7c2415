"""Who may talk to a Ray cluster. Whoever reaches it can run any program there: strangers are kept out."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from dist_train.errors import ConfigError
from dist_train.runtime.place import cluster_token_given, set_unless_given

AUTO = "auto"


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


def wanted(address: str) -> ConfigError:
    """Return what to tell somebody whose token the cluster has refused, or who has none and needs one."""
    return ConfigError(
        f"--address {address}: the cluster wants its token; set RAY_AUTH_TOKEN_PATH to a file with "
        "it, or RAY_AUTH_TOKEN"
    )


def refusal(address: str) -> ConfigError:
    """Return what to tell somebody who has no token."""
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
