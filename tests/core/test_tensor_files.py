"""Safetensors files written as a stream, judged by the safetensors library."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dist_train.core.tensor_files import DTYPES, non_finite, read_tensors, snapshot, write_tensors

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    count = math.prod(shape) * torch.empty(0, dtype=dtype).itemsize
    return torch.randint(0, high, (count,), generator=generator, dtype=torch.uint8).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(list(DTYPES))), max_size=5),
    seed=st.integers(0, 999),
)
def test_any_tensors_are_read_by_the_library_bit_for_bit(tmp_path, layout, seed):
    tensors = {name: random_bits(shape, dtype, seed) for name, (shape, dtype) in layout.items()}
    write_tensors(tmp_path / "x.safetensors", tensors)
    expected = {name: bits(tensor) for name, tensor in tensors.items()}
    assert {k: bits(v) for k, v in load_file(tmp_path / "x.safetensors").items()} == expected
    assert {k: bits(v) for k, v in read_tensors(tmp_path / "x.safetensors").items()} == expected


def test_files_of_the_library_are_read(tmp_path):
    save_file({"a": torch.arange(6.0)}, tmp_path / "x.safetensors")
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], torch.arange(6.0))


def test_the_record_is_size_and_hash_of_the_file(tmp_path):
    record = write_tensors(tmp_path / "x", {"a": torch.ones(3_000_000), "b": torch.ones(())})
    content = (tmp_path / "x").read_bytes()
    assert (record.size, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_tensor_of_two_names_is_written_once_and_comes_back_as_one(tmp_path):
    tied = torch.ones(1000)
    record = write_tensors(tmp_path / "x", {"a": tied, "b": tied})
    assert record.size < 2 * tied.nbytes
    loaded = read_tensors(tmp_path / "x")
    assert loaded["a"] is loaded["b"]
    assert torch.equal(loaded["a"], tied)


def test_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path):
    tensors = {
        f"a{dtype}": torch.ones(3, dtype=dtype) for dtype in (torch.uint8, torch.bfloat16, torch.int64)
    }
    for name in ("x", "longer", "even longer"):
        write_tensors(tmp_path / "x", {name: torch.ones(1, dtype=torch.bool)} | tensors)
        content = (tmp_path / "x").read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        for key, tensor in tensors.items():
            assert (start + header[key]["data_offsets"][0]) % tensor.itemsize == 0


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.ones(100_000)})
    loaded = read_tensors(tmp_path / "x")["a"]
    size = (tmp_path / "x").stat().st_size
    with open(tmp_path / "x", "r+b") as file:
        file.write(bytes(size))
    assert torch.equal(loaded, torch.ones(100_000))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"z": torch.ones(2, dtype=torch.complex128)}, "tensor z: safetensors files cannot hold"),
        ({"z": torch.ones(2, 3).T}, "tensor z: only contiguous"),
        ({"__metadata__": torch.ones(2)}, "reserve this name"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "x", tensors)
    assert not (tmp_path / "x").exists()


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        write_tensors(tmp_path / "absent" / "x", {})
    assert Path(caught.value.filename) == tmp_path / "absent" / "x"


def test_a_snapshot_is_a_contiguous_copy():
    source = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    copy = snapshot({"a": source})["a"]
    assert copy.is_contiguous()
    assert torch.equal(copy, torch.arange(24.0).reshape(1, 2, 3, 4))
    source.zero_()
    assert copy.sum() == 276


def test_a_snapshot_reuses_the_memory_of_the_last_where_it_fits():
    first = snapshot({"same": torch.ones(3), "grown": torch.ones(3), "retyped": torch.ones(3)})
    now = {"same": torch.zeros(3), "grown": torch.zeros(4), "retyped": torch.zeros(3, dtype=torch.bfloat16)}
    second = snapshot(now, into=first)
    assert {name: second[name] is first[name] for name in now} == {
        "same": True,
        "grown": False,
        "retyped": False,
    }
    assert all(torch.equal(second[name], now[name]) for name in now)


def test_tied_tensors_become_one_copy_and_untied_ones_two_again():
    tied = torch.nn.Parameter(torch.ones(3))
    first = snapshot({"a": tied, "b": tied.detach()})
    assert first["a"] is first["b"]
    second = snapshot({"a": torch.full((3,), 1.0), "b": torch.full((3,), 2.0)}, into=first)
    assert second["a"].tolist() == [1, 1, 1]
    assert second["b"].tolist() == [2, 2, 2]


def test_views_of_one_memory_in_different_shapes_and_empty_tensors_stay_apart():
    whole = torch.arange(6.0)
    copies = snapshot(
        {"whole": whole, "half": whole[:3], "square": whole.view(2, 3), "e": whole[:0], "f": torch.empty(0)}
    )
    assert len({id(copy) for copy in copies.values()}) == 5
    assert copies["half"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_found(dtype, bad):
    values = torch.ones(5)
    values[3] = bad
    good = {
        "good": torch.ones(5).to(dtype),
        "whole": torch.ones(3, dtype=torch.int64),
        "none": torch.empty(0),
    }
    assert non_finite({**good, "bad": values.to(dtype)}) == ["bad"]
