"""Shared memory without a name, between the processes of one machine.

Another process opens a segment through /proc of a process that holds it. The kernel frees the memory with the
last holder, however that one ends: there is no name, so nothing can be left behind.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from dist_train.errors import TrainingError

# Bytes: a cache line, and what the widest vector instructions want.
ALIGNMENT = 64

_MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module does not know it yet
_CUDA_HOST_REGISTER_PORTABLE = 1
_MEGABYTE = 2**20
_NO_LIMIT = 2**63
_REMEDY = "free memory, raise the limit, or use fewer workers"


class SegmentGone(TrainingError):
    """The process that offered a segment is gone, or holds it no more."""


@dataclass(frozen=True)
class Address:
    """Where a segment is to be had; plain numbers, to be sent as they are.

    ``device`` and ``inode`` tell the memory from whatever has the same process id and descriptor later.
    """

    pid: int
    descriptor: int
    size: int
    device: int
    inode: int


class Segment:
    """``size`` bytes of shared memory, mapped into this process; zeros at first.

    Whoever has it open keeps it alive, and may offer it to others under its own address, until it is closed
    or dropped. All pages are there from the start, so that no training step pays for their first use.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """Map the open ``descriptor``, which this object closes."""
        self.size = size
        self._descriptor = descriptor
        self._memory: mmap.mmap | None = mmap.mmap(descriptor, size)
        self._pinned = False
        _populate(self._memory, descriptor, size)
        # Whoever drops a segment closes it; last here, as until now the caller closes the descriptor.
        self._release = weakref.finalize(self, os.close, descriptor)
        self._release.atexit = False

    @classmethod
    def create(cls, size: int) -> Segment:
        """Raises TrainingError when there is no room for ``size`` bytes."""
        descriptor = -1
        try:
            if size > (room := free_memory()):
                raise TrainingError(f"{_lacking(size)}: {_megabytes(room)} MB are free; {_REMEDY}")
            descriptor = os.memfd_create("dist_train", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.truncate(descriptor, size)
            # Memory that shrinks under its readers would kill them (SIGBUS).
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls(descriptor, size)
        except OSError as error:
            _close(descriptor)
            raise TrainingError(f"{_lacking(size)}: {error.strerror}; {_REMEDY}") from error

    @classmethod
    def open(cls, address: Address) -> Segment:
        """Raises SegmentGone when the memory is not where ``address`` says, TrainingError without room."""
        descriptor = _opened(address)
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino, found.st_size) != (address.device, address.inode, address.size):
            os.close(descriptor)
            raise SegmentGone(f"process {address.pid} no longer holds the shared memory that it offered")
        try:
            return cls(descriptor, address.size)
        except OSError as error:
            os.close(descriptor)
            raise TrainingError(f"{_lacking(address.size)}: {error.strerror}; {_REMEDY}") from error

    @property
    def address(self) -> Address:
        """Where others find this memory: with this process."""
        self._held()
        found = os.fstat(self._descriptor)
        return Address(os.getpid(), self._descriptor, self.size, found.st_dev, found.st_ino)

    def tensor(self, dtype: torch.dtype, start: int, count: int) -> Tensor:
        """Return ``count`` elements from byte ``start`` on, a 1-D tensor on this very memory.

        Raises ValueError when they are not all inside, or ``start`` is no multiple of ``ALIGNMENT``.
        """
        memory = self._held()
        self._check(start, count, dtype.itemsize)
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=start)

    def words(self, start: int, count: int) -> memoryview[int]:
        """Return ``count`` signed words of 8 bytes, each read and written in one instruction.

        Raises ValueError like ``tensor``.
        """
        memory = self._held()
        self._check(start, count, 8)
        return memoryview(memory)[start : start + 8 * count].cast("q")

    def pin(self) -> None:
        """Lock the pages for the GPU, so that copies to and from it are direct; nothing without CUDA.

        Raises TrainingError when the driver refuses.
        """
        if self._pinned or not torch.cuda.is_available():
            return
        refusal = int(_cuda().cudaHostRegister(self._pointer(), self.size, _CUDA_HOST_REGISTER_PORTABLE))
        if refusal:
            raise TrainingError(
                f"cannot lock {_megabytes(self.size)} MB of shared memory for the GPU "
                f"(CUDA error {refusal}); raise `ulimit -l`, or use fewer workers on this machine"
            )
        self._pinned = True

    def close(self) -> None:
        """Hold the memory no more; tensors on it stay valid, and the mapping goes with the last of them."""
        if self._memory is None:
            return
        if self._pinned:
            _cuda().cudaHostUnregister(self._pointer())
        # Unmapping here would leave the tensors without memory; the last reference does it.
        self._memory = None
        self._release()

    def _held(self) -> mmap.mmap:
        if self._memory is None:
            raise ValueError("this segment is closed")
        return self._memory

    def _pointer(self) -> int:
        return self.tensor(torch.uint8, 0, 1).data_ptr()

    def _check(self, start: int, count: int, width: int) -> None:
        if start < 0 or start % ALIGNMENT or count < 1 or start + count * width > self.size:
            raise ValueError(
                f"no {count} elements of {width} bytes at byte {start} of a segment of {self.size} bytes; "
                f"a start is a multiple of {ALIGNMENT}"
            )


def aligned(size: int) -> int:
    """Return the next multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def free_memory(membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process may still take: of the machine's, and of its control groups' limits.

    Above them nobody is refused: the kernel kills. Containers and Slurm set limits by control group
    (version 2); ``membership`` names the innermost one, below ``groups``.
    """
    room = psutil.virtual_memory().available
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            if line.startswith("0::/"):
                innermost = groups / line.removeprefix("0::/")
                around = [group for group in innermost.parents if group.is_relative_to(groups)]
                room = min(room, *(_room_in(group) for group in (innermost, *around)))
    return max(room, 0)


def _room_in(group: Path) -> int:
    try:
        limit = int((group / "memory.max").read_text())
        rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = {name: int(value) for name, value in rows}
    except (OSError, ValueError):  # the root has no such file; "max" is no number
        return _NO_LIMIT
    # Cached files count as used as well, but they make room when asked.
    return limit - used.get("anon", 0) - used.get("shmem", 0)


def _opened(address: Address) -> int:
    try:
        return os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TrainingError(f"{_lacking(address.size)}: {error.strerror}; raise `ulimit -n`") from error
        raise SegmentGone(
            f"process {address.pid} cannot be asked for the shared memory that it offered "
            f"({error.strerror}): it has ended, or belongs to another user"
        ) from error


def _populate(memory: mmap.mmap, descriptor: int, size: int) -> None:
    """Raises OSError where a later use of the page would kill the process."""
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.posix_fallocate(descriptor, 0, size)
        torch.frombuffer(memory, dtype=torch.uint8)[:: mmap.PAGESIZE].sum()


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _lacking(size: int) -> str:
    return f"cannot get {_megabytes(size)} MB of shared memory"


def _megabytes(size: int) -> int:
    return -(-size // _MEGABYTE)


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
