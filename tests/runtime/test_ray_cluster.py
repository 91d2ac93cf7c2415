"""Tests of the one file that knows Ray: real clusters, as few as will do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from dist_train.errors import ConfigError
from dist_train.rules.resources import Bundle
from dist_train.runtime import ray_cluster
from dist_train.runtime.access import TURNED_AWAY, knock_at_head
from dist_train.runtime.place import set_variables
from dist_train.runtime.ray_cluster import Actor, Cluster
from dist_train.runtime.reaper import Reaper, marked
from dist_train.runtime.remote import ActorFailed, ActorGone, Unreachable

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from plain_actors import Adder, Unmakeable  # noqa: E402

ONE_CPU = Bundle("a worker", {"CPU": 1.0})
Start = Callable[..., Actor]


@pytest.fixture(scope="module")
def reaper() -> Iterator[Reaper]:
    """Ends what a cluster leaves; the variables that Ray wants are this module's alone."""
    before = dict(os.environ)
    with Reaper.start() as reaper:
        set_variables(reaper.variables)
        yield reaper
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def cluster(reaper: Reaper) -> Iterator[Cluster]:
    with ray_cluster.start_local(reaper.home) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def start(cluster: Cluster) -> Start:
    reservation = cluster.reserve([ONE_CPU], 10, print)

    def run(cls: type, *arguments: object, **environment: str) -> Actor:
        return cluster.start(cls, arguments, reservation, 0, cls.__name__.lower(), environment)

    return run


@pytest.fixture(scope="module")
def adder(start: Start) -> Actor:
    return start(Adder, 3, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")


def gone(actor: Actor) -> bool:
    """Wait until the actor's end is known."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            actor.ask("seen", timeout_s=5)
        except ActorGone:
            return True
        except Unreachable:
            time.sleep(0.02)
    return False


@pytest.mark.processes
@pytest.mark.timeout(120)
class TestALocalRay:
    def test_is_for_this_machine_alone(self, cluster: Cluster, adder: Actor, reaper: Reaper) -> None:
        adder.ask("seen")
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for pid in [*marked(reaper.mark), os.getpid()]
            for connection in psutil.Process(pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        assert cluster.address.startswith("127.0.0.1:")

    def test_keeps_its_token_from_others(self, adder: Actor, reaper: Reaper) -> None:
        token = reaper.home / "token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(reaper.home.stat().st_mode) == 0o700
        _, variables = adder.ask("surroundings")
        assert variables["RAY_AUTH_MODE"] == "token"
        assert token.read_text() not in variables.values()

    @pytest.mark.parametrize(
        ("known", "answer"), [(True, grpc.StatusCode.OK), (False, grpc.StatusCode.UNAUTHENTICATED)]
    )
    def test_answers_nobody_without_the_token(
        self, cluster: Cluster, reaper: Reaper, known: bool, answer: grpc.StatusCode
    ) -> None:
        token = (reaper.home / "token").read_text() if known else "0" * 64
        with grpc.insecure_channel(cluster.address, [("grpc.enable_http_proxy", 0)]) as channel:
            nodes = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
            metadata = [("authorization", f"Bearer {token}")]
            call = nodes.future(b"", metadata=metadata, timeout=10)
            assert call.code() == answer

    def test_turns_away_a_stranger_at_its_head(self, cluster: Cluster) -> None:
        assert knock_at_head(cluster.address) == TURNED_AWAY

    def test_leaves_sigterm_to_the_program(self, cluster: Cluster) -> None:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.processes
@pytest.mark.timeout(120)
class TestAnActor:
    def test_answers_a_blocking_and_an_awaited_call(self, adder: Actor) -> None:
        assert adder.ask("add", 4) == adder.keep_asking("add", 4) == 7
        assert asyncio.run(adder.request("add_later", 5)) == 8

    def test_is_shown_by_its_name(self, adder: Actor) -> None:
        assert psutil.Process(adder.ask("place").pid).name() == "ray::adder"

    def test_has_its_variables_from_the_first_instruction_on(self, adder: Actor) -> None:
        directory, variables = adder.ask("surroundings")
        assert variables["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        assert directory == str(Path.cwd())

    def test_may_be_handed_to_another(self, adder: Actor, start: Start) -> None:
        assert start(Adder, 10).ask("through", adder, 5) == 8

    def test_raises_what_its_methods_raise(self, adder: Actor) -> None:
        with pytest.raises(ConfigError, match="no more"):
            adder.ask("refuse", ConfigError("no more"))
        with pytest.raises(ActorFailed, match="ValueError: bad"):
            asyncio.run(adder.request("refuse", ValueError("bad")))

    def test_that_cannot_be_made_says_why(self, start: Start) -> None:
        with pytest.raises(ConfigError, match="cannot be made"):
            start(Unmakeable).ask("anything")

    def test_that_does_not_answer_in_time_may_have_done_it(self, adder: Actor) -> None:
        with pytest.raises(Unreachable, match="adder did not answer never in time"):
            adder.ask("never", timeout_s=0.1)
        assert adder.ask("add", 1) == 4

    def test_that_ended_is_gone_for_good(self, start: Start) -> None:
        actor = start(Adder, 1)
        with pytest.raises((ActorGone, Unreachable)):
            actor.ask("vanish")
        assert gone(actor)

    def test_is_ended_by_a_kill(self, start: Start) -> None:
        actor = start(Adder, 1)
        actor.ask("seen")
        actor.kill()
        assert gone(actor)

    def test_that_is_stopped_is_ended_by_its_process(self, start: Start) -> None:
        actor = start(Adder, 1)
        process = actor.ask("place")
        assert ray_cluster.kill_process(process, signal.SIGSTOP)
        with pytest.raises(Unreachable):
            actor.ask("seen", timeout_s=0.1)
        assert ray_cluster.kill_process(process, signal.SIGKILL)
        assert gone(actor)

    def test_reads_an_array_of_its_node_without_a_copy(self, adder: Actor) -> None:
        array = np.arange(1000, dtype=np.float32)
        total, writeable = adder.ask("sum_of", ray_cluster.put(array))
        assert total == 999 * 1000 / 2
        assert not writeable


@pytest.mark.processes
def test_a_cluster_that_is_too_small_is_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"has 10000 CPUs and 0 GPUs.*: 1 GPU is missing; add nodes"):
        cluster.reserve([Bundle("a worker", {"CPU": 1.0, "GPU": 1.0})], 1000, print)


FAULTS = f"""
import asyncio, collections, sys, time
sys.path.append({str(HERE)!r})
from plain_actors import Adder
from dist_train.rules.resources import Bundle
from dist_train.runtime import ray_cluster
from dist_train.runtime.place import set_variables
from dist_train.runtime.reaper import Reaper

async def ask_all(actor):
    turns = asyncio.Semaphore(8)
    async def one(number):
        async with turns:
            return await actor.insist("add", number)
    return await asyncio.gather(*map(one, range(200)))

with Reaper.start() as reaper:
    set_variables(reaper.variables)
    with ray_cluster.start_local(reaper.home) as cluster:
        reservation = cluster.reserve([Bundle("a worker", {{"CPU": 1}})], 10, print)
        actor = cluster.start(Adder, (1000,), reservation, 0, "adder", {{}})
        asyncio.run(actor.insist("seen"))
        began = time.monotonic()
        assert asyncio.run(ask_all(actor)) == list(range(1000, 1200))
        seconds = time.monotonic() - began
        times = collections.Counter(asyncio.run(actor.insist("seen")))
        print(seconds, min(times.values()), max(times.values()), len(times))
"""


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_lost_requests_and_replies_cost_repetitions_but_no_time() -> None:
    """Ray loses a fifth of the requests and of the replies; its own repetitions would take minutes."""
    calls = "CoreWorkerService.grpc_client.PushTask"
    losses = f'{{"{calls}": {{"num_failures": -1, "req_failure_prob": 20, "resp_failure_prob": 20}}}}'
    answer = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**os.environ, "RAY_testing_rpc_failure": losses},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert answer.returncode == 0, answer.stderr
    seconds, fewest, most, kinds = answer.stdout.splitlines()[-1].split()
    assert (int(kinds), int(fewest)) == (200, 1)
    # A lost reply has the call done twice: the losses did happen.
    assert int(most) > 1
    # An order kept by waiting would take 30 s for the first loss alone.
    assert float(seconds) < 20


TWO_NODES = f"""
import os, signal, sys, time
sys.path.append({str(HERE)!r})
from pathlib import Path
import numpy as np
import ray
from ray.cluster_utils import Cluster
from plain_actors import Adder
from dist_train.errors import ConfigError, TrainingError
from dist_train.rules.resources import Bundle
from dist_train.runtime import ray_cluster
from dist_train.runtime.remote import ActorGone, Unreachable

home = Path(sys.argv[1])
options = dict(num_cpus=2, object_store_memory=80 << 20, node_ip_address="127.0.0.1")
head = dict(options, temp_dir=str(home), include_dashboard=False)
nodes = Cluster(initialize_head=True, head_node_args=head)
nodes.add_node(**options)
cluster = ray_cluster.join(nodes.address)
one, trio = (Bundle(f"a group of {{count}}", {{"CPU": count}}) for count in (1, 3))
lacks = []
for bundles in ([one] * 5, [trio]):
    try:
        cluster.reserve(bundles, 1000, print)
    except ConfigError as error:
        lacks.append(str(error))
assert lacks[0].startswith("the cluster has 4 CPUs, this run needs 5 CPUs: 1 CPU is missing"), lacks
assert lacks[1].startswith("a group of 3 needs 3 CPUs on one node, and the largest of 2 has 2 CPUs"), lacks

reservation = cluster.reserve([one] * 4, 10, print)
a, b, c, d = reservation.nodes
assert a == b != c == d, reservation.nodes
said = []
try:
    cluster.reserve([one], 0.5, said.append)
except TrainingError as error:
    assert "busy: after 0.5 s" in str(error) and "0 CPUs free of the 1 CPU needed" in str(error), error
else:
    raise AssertionError("a full cluster took more")

there = next(n for n, node in enumerate(reservation.nodes) if node != ray_cluster.node_id())
actor = cluster.start(Adder, (1,), reservation, there, "far", {{}})
place = actor.ask("place")
assert place.node == reservation.nodes[there] != ray_cluster.this_process().node
array = np.ones(4_000_000, np.float32)
assert actor.ask("sum_of", ray_cluster.put(array)) == (4e6, False)

assert ray_cluster.kill_process(place, signal.SIGKILL)
for _ in range(1000):
    try:
        actor.ask("seen", timeout_s=5)
    except ActorGone:
        break
    except Unreachable:
        time.sleep(0.02)
else:
    raise AssertionError("a killed actor is not gone")
assert not ray_cluster.kill_process(place, signal.SIGKILL)
cluster.close()
nodes.shutdown()
"""


PULL = "ObjectManagerService.grpc_client.Pull"


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_two_nodes_share_arrays_and_reach_each_others_processes() -> None:
    with Reaper.start() as reaper:
        token = reaper.home / "token"
        token.write_text("0" * 64)
        # Where the head notes its address.
        (reaper.home / "ray").mkdir()
        variables = {
            "RAY_TMPDIR": str(reaper.home),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # The first request for an array is lost, and Ray would not repeat it in time.
            "RAY_testing_rpc_failure": json.dumps({PULL: {"num_failures": 1, "req_failure_prob": 100}}),
            "RAY_object_manager_pull_timeout_ms": "600000",
        }
        answer = subprocess.run(
            [sys.executable, "-c", TWO_NODES, str(reaper.home)],
            env={**os.environ, **reaper.variables, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
    assert answer.returncode == 0, answer.stderr


class TestWithoutRay:
    def test_the_error_names_the_extra_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ConfigError, match=r'pip install "dist-train\[ray\]"'):
            ray_cluster.node_id()

    def test_a_cluster_open_to_strangers_is_not_joined(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        for refuse in (ray_cluster.join, ray_cluster.jobs):
            with pytest.raises(ConfigError, match="without a token"):
                refuse("http://10.0.0.7:8265")
