"""Safetensors files: written as a stream, hashed on the way to the disk, durable when the call returns."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dist_train.core.failpoint import failpoint

CHUNK = 8 << 20

# The format's names of element types: https://huggingface.co/docs/safetensors, "Format".
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class FileRecord:
    """What a file must be to be the one that was written: its size in bytes and its SHA-256."""

    size: int
    sha256: str


def write_durably(path: Path, pieces: Iterable[bytes | memoryview]) -> FileRecord:
    """Write ``pieces`` one after the other and wait until the disk holds them.

    Raises OSError naming the file. The hash is that of the bytes meant, whatever reached the disk.
    """
    digest, size = hashlib.sha256(), 0
    try:
        # Unbuffered: what has been written is in the file, even if nobody closes it.
        with open(path, "wb", buffering=0) as file:
            failpoint("file opened")
            for chunk in _chunks(pieces):
                digest.update(chunk)
                rest = chunk
                while len(rest) > 0:
                    rest = rest[file.write(rest) :]
                size += len(chunk)
            failpoint("file written")
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    failpoint("file durable")
    return FileRecord(size, digest.hexdigest())


def _chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece).cast("B")
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write contiguous CPU tensors as one safetensors file.

    A tensor under several names is written once, the other names go into the file's metadata. Nothing is
    copied. Raises ValueError for a tensor that the format cannot hold, OSError when the disk refuses.
    """
    first_name: dict[int, str] = {}
    aliases: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        original = first_name.setdefault(id(tensor), name)
        if original != name:
            aliases[name] = original
        else:
            _refuse_unwritable(name, tensor)
            kept[name] = tensor
    # Wide elements first, so that every tensor starts at a multiple of its element's size.
    order = sorted(kept, key=lambda name: -kept[name].itemsize)
    return write_durably(path, _pieces({name: kept[name] for name in order}, aliases))


def _refuse_unwritable(name: str, tensor: Tensor) -> None:
    if name == "__metadata__":
        raise ValueError("a tensor cannot be called __metadata__: safetensors files reserve this name")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"tensor {name}: safetensors files cannot hold {tensor.dtype}")
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"tensor {name}: only contiguous tensors on the CPU can be written")


def _pieces(tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    header: dict[str, object] = {"__metadata__": {"format": "pt", "aliases": json.dumps(aliases)}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read what ``write_tensors`` wrote; a tensor of several names comes back as one tensor.

    Raises SafetensorError when the file is not whole, OSError when it cannot be read.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        # On the CPU what is got is the mapped file itself, which others may truncate or remove.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        aliases: dict[str, str] = json.loads((file.metadata() or {}).get("aliases", "{}"))
    return tensors | {name: tensors[original] for name, original in aliases.items()}


def snapshot(tensors: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Copy tensors of any device and layout to contiguous CPU tensors, complete when the call returns.

    ``into``, an earlier snapshot, lends its memory where shapes and types are unchanged. Tied tensors
    (one memory under several names) become one copy under the same names.
    """
    lent = into or {}
    copies: dict[str, Tensor] = {}
    by_identity: dict[object, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        source = tensor.detach()
        identity = _identity(source) if source.numel() else name
        if identity not in by_identity:
            buffer = lent.get(name)
            if buffer is None or id(buffer) in taken or not _fits(buffer, source):
                buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            taken.add(id(buffer))
            by_identity[identity] = buffer.copy_(source, non_blocking=source.is_cuda)
        copies[name] = by_identity[identity]
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _identity(tensor: Tensor) -> object:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _fits(buffer: Tensor, source: Tensor) -> bool:
    same = buffer.shape == source.shape and buffer.dtype == source.dtype
    return same and buffer.is_pinned() == source.is_cuda


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold an infinity or a NaN."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:
        tensor = tensor.float()
    # One pass without a temporary; a NaN anywhere makes both extremes NaN.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
