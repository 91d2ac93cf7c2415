"""Tests of shared memory without a name: who keeps it alive, who finds it, and that nothing of it remains."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch

from dist_train.errors import TrainingError
from dist_train.exchange.segments import Address, Segment, SegmentGone, aligned, free_memory

SIZE = 1_000_000
LIMITLESS = 2**62

# Creates a segment, or opens the one whose address is given; then holds it until told to end.
HOLDER = """
import json, sys
import torch
from dataclasses import asdict
from dist_train.exchange.segments import Address, Segment

size, address = int(sys.argv[1]), json.loads(sys.argv[2])
segment = Segment.open(Address(**address)) if address else Segment.create(size)
values = segment.tensor(torch.uint8, 0, size)
found = int(values.sum())
values.fill_(3)
print(json.dumps({"found": found, "address": asdict(segment.address)}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def segment():
    with closing(Segment.create(SIZE)) as segment:
        yield segment


@contextmanager
def holder(address=None):
    """A process that holds a segment, what it found in it, and its address; killed at the end."""
    command = [sys.executable, "-c", HOLDER, str(SIZE), json.dumps(asdict(address) if address else None)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            told = json.loads(process.stdout.readline())
            yield process, told["found"], Address(**told["address"])
        finally:
            process.kill()


def kill(process):
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL


def holders(inode):
    """The processes that have the memory of this inode open or mapped."""
    return {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if inode in shared_memory_of(entry)}


def shared_memory_of(process):
    """The inodes of all memory without a name that a process of /proc has open or mapped."""
    found = set()
    with suppress(OSError):  # it ended meanwhile, or is somebody else's
        maps = (process / "maps").read_text().splitlines()
        found |= {int(line.split()[4]) for line in maps if "/memfd:" in line}
        for descriptor in os.listdir(process / "fd"):
            with suppress(OSError):
                if os.readlink(process / "fd" / descriptor).startswith("/memfd:"):
                    found.add(os.stat(process / "fd" / descriptor).st_ino)
    return found


@contextmanager
def limited(kind, most):
    """Lowers one of this process's own limits."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


class TestTensors:
    def test_a_fresh_segment_is_all_zeros(self, segment):
        assert not segment.tensor(torch.uint8, 0, SIZE).any()

    def test_tensors_on_the_same_place_are_the_same_memory(self, segment):
        segment.tensor(torch.float32, 640, 5).copy_(torch.arange(5.0))
        assert segment.tensor(torch.float32, 704 - 64, 3).tolist() == [0, 1, 2]
        # 1.0 is 0x3f800000, little end first.
        assert segment.tensor(torch.uint8, 640, 8).tolist() == [0, 0, 0, 0, 0, 0, 0x80, 0x3F]

    def test_words_are_the_same_memory(self, segment):
        segment.words(64, 2)[1] = -(2**62)
        assert segment.tensor(torch.int64, 64, 2).tolist() == [0, -(2**62)]

    def test_tensors_are_aligned(self, segment):
        assert segment.tensor(torch.float32, 192, 1).data_ptr() % 64 == 0

    @pytest.mark.parametrize("start", [-64, 4, 32, 65])
    def test_a_start_that_is_not_aligned_is_refused(self, segment, start):
        with pytest.raises(ValueError, match="multiple of 64"):
            segment.tensor(torch.float32, start, 1)
        with pytest.raises(ValueError, match="multiple of 64"):
            segment.words(start, 1)

    @pytest.mark.parametrize(("start", "count"), [(0, SIZE // 4 + 1), (999_936, 17), (64, 0), (64, -1)])
    def test_what_is_not_all_inside_is_refused(self, segment, start, count):
        with pytest.raises(ValueError, match=f"segment of {SIZE} bytes"):
            segment.tensor(torch.float32, start, count)

    def test_the_last_element_is_inside(self, segment):
        segment.tensor(torch.float32, 999_936, 16).fill_(1)
        assert segment.tensor(torch.uint8, 0, SIZE)[-1] == 0x3F

    @pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 64), (64, 64), (65, 128)])
    def test_sizes_are_rounded_up_to_the_alignment(self, size, expected):
        assert aligned(size) == expected

    @pytest.mark.parametrize("kernel", ["5.14 and later", "earlier"])
    def test_all_pages_are_there_from_the_start(self, monkeypatch, kernel):
        if kernel == "earlier":
            no_such_advice = 1000
            monkeypatch.setattr("dist_train.exchange.segments._MADV_POPULATE_WRITE", no_such_advice)
        size = 64 * 2**20
        before = psutil.Process().memory_info().shared
        with closing(Segment.create(size)):
            assert psutil.Process().memory_info().shared - before >= size


class TestAddress:
    def test_it_survives_json_and_pickle(self, segment):
        address = segment.address
        assert Address(**json.loads(json.dumps(asdict(address)))) == address
        assert pickle.loads(pickle.dumps(address)) == address

    def test_the_memory_has_no_name(self, segment):
        target = os.readlink(f"/proc/{os.getpid()}/fd/{segment.address.descriptor}")
        assert target == "/memfd:dist_train (deleted)"

    def test_programs_started_later_do_not_inherit_it(self, segment):
        assert not os.get_inheritable(segment.address.descriptor)

    def test_whoever_opens_it_sees_and_makes_the_same_content(self, segment):
        with closing(Segment.open(segment.address)) as other:
            other.tensor(torch.uint8, 128, 1).fill_(9)
            assert segment.tensor(torch.uint8, 128, 1).item() == 9

    def test_nobody_can_change_its_size(self, segment):
        for size in (SIZE - 1, SIZE + 1):
            with pytest.raises(PermissionError):
                os.truncate(segment.address.descriptor, size)

    def test_a_segment_that_was_closed_is_gone(self):
        segment = Segment.create(SIZE)
        address = segment.address
        segment.close()
        with pytest.raises(SegmentGone, match=f"process {os.getpid()} cannot be asked"):
            Segment.open(address)

    @pytest.mark.parametrize(
        "successor", [lambda: os.memfd_create("dist_train"), lambda: os.dup(0), lambda: os.eventfd(0)]
    )
    def test_another_file_under_its_descriptor_is_not_taken_for_it(self, segment, successor):
        descriptor = successor()
        try:
            with pytest.raises(SegmentGone, match=f"process {os.getpid()} "):
                Segment.open(replace(segment.address, descriptor=descriptor))
        finally:
            os.close(descriptor)

    def test_a_size_that_is_not_its_own_is_refused(self, segment):
        with pytest.raises(SegmentGone):
            Segment.open(replace(segment.address, size=2 * SIZE))

    def test_a_failed_opening_leaves_no_descriptor(self, segment):
        before = psutil.Process().num_fds()
        with pytest.raises(SegmentGone):
            Segment.open(replace(segment.address, inode=segment.address.inode + 1))
        assert psutil.Process().num_fds() == before


class TestClosing:
    def test_it_frees_descriptors_and_memory(self):
        before = psutil.Process().num_fds()
        segment = Segment.create(SIZE)
        inode = segment.address.inode
        assert holders(inode) == {os.getpid()}
        segment.close()
        assert holders(inode) == set()
        assert psutil.Process().num_fds() == before

    def test_tensors_on_it_stay_valid(self, segment):
        values = segment.tensor(torch.float32, 0, 10).fill_(2)
        words = segment.words(64, 1)
        segment.close()
        assert values.sum() == 20
        words[0] = 1
        assert words[0] == 1

    def test_one_that_nobody_has_any_more_is_closed(self):
        before = psutil.Process().num_fds()
        segment = Segment.create(SIZE)
        values, inode = segment.tensor(torch.uint8, 0, 10), segment.address.inode
        del segment
        assert psutil.Process().num_fds() == before + 1  # the mapping's own, as long as a tensor needs it
        assert values.sum() == 0
        del values
        assert psutil.Process().num_fds() == before
        assert holders(inode) == set()

    def test_a_closed_one_closes_nothing_else_when_it_is_dropped(self):
        segment = Segment.create(SIZE)
        segment.close()
        successor = os.memfd_create("dist_train")
        del segment
        os.close(successor)

    def test_it_may_be_repeated(self, segment):
        segment.close()
        segment.close()

    def test_nothing_is_to_be_had_of_a_closed_segment(self, segment):
        segment.close()
        for use in (
            lambda: segment.address,
            lambda: segment.words(0, 1),
            lambda: segment.tensor(torch.uint8, 0, 1),
        ):
            with pytest.raises(ValueError, match="closed"):
                use()


@pytest.mark.processes
class TestDeath:
    def test_memory_outlives_its_creator_and_is_offered_by_whoever_holds_it(self):
        with holder() as (creator, _, address):
            heir = Segment.open(address)
            kill(creator)
        with closing(heir):
            assert heir.tensor(torch.uint8, 0, SIZE).sum() == 3 * SIZE
            with pytest.raises(SegmentGone, match=f"process {address.pid} .* it has ended"):
                Segment.open(address)
            assert heir.address.pid == os.getpid()
            with holder(heir.address) as (_, found, third):
                assert found == 3 * SIZE
                assert (third.device, third.inode) == (address.device, address.inode)

    def test_nothing_remains_when_all_are_killed(self):
        with holder() as (creator, _, address), holder(address) as (reader, _, _):
            assert holders(address.inode) == {creator.pid, reader.pid}
            kill(creator)
            assert holders(address.inode) == {reader.pid}
            kill(reader)
            assert holders(address.inode) == set()


class TestLackOfRoom:
    def test_more_than_the_machine_has_is_refused_before_anything_is_taken(self):
        with pytest.raises(
            TrainingError, match=r"cannot get 1073741824 MB .*: \d+ MB are free; .*fewer workers"
        ):
            Segment.create(2**50)

    @pytest.mark.parametrize(
        ("kind", "most", "reason"),
        [
            ("FSIZE", lambda: 2**20, "File too large"),
            ("AS", lambda: psutil.Process().memory_info().vms + 2**24, "Cannot allocate memory"),
            ("NOFILE", lambda: 0, "Too many open files"),
        ],
    )
    def test_a_limit_of_the_process_is_told_in_one_line(self, monkeypatch, kind, most, reason):
        monkeypatch.setattr("dist_train.exchange.segments.free_memory", lambda: LIMITLESS)
        before = psutil.Process().num_fds()
        with (
            limited(getattr(resource, f"RLIMIT_{kind}"), most()),
            pytest.raises(TrainingError, match="cannot get 128 MB") as caught,
        ):
            Segment.create(128 * 2**20)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert psutil.Process().num_fds() == before

    @pytest.mark.parametrize(
        ("kind", "most"), [("AS", lambda: psutil.Process().memory_info().vms), ("NOFILE", lambda: 0)]
    )
    def test_a_limit_met_in_opening_does_not_look_like_a_death(self, kind, most):
        with closing(Segment.create(32 * 2**20)) as segment:
            address = segment.address
            before = psutil.Process().num_fds()
            with (
                limited(getattr(resource, f"RLIMIT_{kind}"), most()),
                pytest.raises(TrainingError, match="cannot get 32 MB") as caught,
            ):
                Segment.open(address)
            assert not isinstance(caught.value, SegmentGone)
            assert psutil.Process().num_fds() == before


class TestFreeMemory:
    """Control groups of a container or a Slurm job: each directory below ``groups`` is one."""

    @pytest.fixture
    def groups(self, tmp_path):
        (tmp_path / "groups/job/task").mkdir(parents=True)
        (tmp_path / "membership").write_text("3:cpu:/elsewhere\n0::/job/task\n")
        return tmp_path / "groups"

    def limit(self, group, most, anon=0, shmem=0):
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.stat").write_text(f"anon {anon}\nfile 999999\nshmem {shmem}\nslab 5\n")

    def free(self, groups):
        return free_memory(groups.parent / "membership", groups)

    def test_without_limits_it_is_what_the_machine_has(self, groups):
        self.limit(groups / "job", "max")
        assert 0 < self.free(groups) <= psutil.virtual_memory().total

    def test_without_control_groups_it_is_what_the_machine_has(self, tmp_path):
        assert 0 < free_memory(tmp_path / "absent", tmp_path) <= psutil.virtual_memory().total

    def test_a_limit_counts_less_what_cannot_be_given_back(self, groups):
        self.limit(groups / "job/task", 1000, anon=300, shmem=50)
        assert self.free(groups) == 650

    def test_the_tightest_of_the_groups_around_counts(self, groups):
        self.limit(groups / "job/task", 1000)
        self.limit(groups / "job", 800, anon=100)
        self.limit(groups, 900)
        assert self.free(groups) == 700

    def test_it_is_never_negative(self, groups):
        self.limit(groups / "job", 100, anon=101)
        assert self.free(groups) == 0


class Driver:
    """The CUDA runtime's two calls, written down."""

    def __init__(self, refusal=0):
        self.refusal = refusal
        self.calls = []

    def cudaHostRegister(self, pointer, size, flags):  # noqa: N802
        self.calls.append(("lock", pointer, size))
        return self.refusal

    def cudaHostUnregister(self, pointer):  # noqa: N802
        self.calls.append(("unlock", pointer))
        return 0


class TestPinning:
    @pytest.fixture
    def driver(self, monkeypatch):
        driver = Driver()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
        return driver

    def test_all_of_it_is_locked_once_until_it_is_closed(self, segment, driver):
        pointer = segment.tensor(torch.uint8, 0, SIZE).data_ptr()
        segment.pin()
        segment.pin()
        assert driver.calls == [("lock", pointer, SIZE)]
        segment.close()
        segment.close()
        assert driver.calls == [("lock", pointer, SIZE), ("unlock", pointer)]

    def test_what_was_not_locked_is_not_unlocked(self, segment, driver):
        segment.close()
        assert driver.calls == []

    def test_a_refusal_is_told_and_leaves_nothing_to_unlock(self, segment, driver):
        driver.refusal = 2
        with pytest.raises(TrainingError, match=r"cannot lock 1 MB .*CUDA error 2"):
            segment.pin()
        segment.close()
        assert [name for name, *_ in driver.calls] == ["lock"]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
    def test_without_cuda_nothing_happens(self, segment):
        segment.pin()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_tensor_on_locked_memory_is_pinned_for_torch(self, segment):
        assert not segment.tensor(torch.float32, 0, 16).is_pinned()
        segment.pin()
        assert segment.tensor(torch.float32, 0, 16).is_pinned()
