from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.tasks import corpus
from dist_train.tasks.corpus import Piece


def write(folder, **contents):
    for name, text in contents.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


def named(sizes, stem="file"):
    return [Piece(f"{stem}{i}", Path(f"/nowhere/{stem}{i}"), 0, size) for i, size in enumerate(sizes)]


def test_finds_matching_files_below_a_folder_ordered_by_name(tmp_path):
    write(tmp_path, b_py=b"22", a__c_py=b"1", notes=b"x", empty_py=b"")
    write(tmp_path, lib__site__x_py=b"333")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "installed.py").write_bytes(b"y")
    found = corpus.find([tmp_path], "*.py")
    assert [(piece.name, piece.size) for piece in found] == [("a/c.py", 1), ("b.py", 2), ("lib/site/x.py", 3)]
    assert corpus.find([tmp_path / "notes"], "*.py")[0].read() == b"x"


def test_a_file_that_is_given_twice_counts_once(tmp_path):
    write(tmp_path, a_py=b"1")
    assert len(corpus.find([tmp_path, tmp_path / "a.py"], "*.py")) == 1


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        corpus.find([tmp_path / "gone"], "*.py")


def test_the_standard_library_is_a_corpus_of_many_megabytes_without_installed_packages():
    pieces = corpus.find(None, "*.py")
    names = {piece.name for piece in pieces}
    assert corpus.length(pieces) > 5e6
    assert "argparse.py" in names
    assert not any("site-packages" in name for name in names)


def test_joined_files_are_separated_by_a_zero_byte(tmp_path):
    write(tmp_path, a_py=b"one", b_py=b"two")
    pieces = corpus.find([tmp_path], "*.py")
    assert corpus.join(pieces) == b"one\0two"
    assert corpus.length(pieces) == 7


def test_a_cut_falls_within_a_file(tmp_path):
    write(tmp_path, a_py=b"one", b_py=b"two")
    before, after = corpus.cut(corpus.find([tmp_path], "*.py"), 4)
    assert (corpus.join(before), corpus.join(after)) == (b"one\0t", b"wo")


sizes = st.lists(st.integers(1, 1000), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 50_000))
def test_a_cut_loses_and_repeats_nothing(sizes, at):
    pieces = named(sizes)
    before, after = corpus.cut(pieces, at)
    assert sum(p.size for p in before) == min(at, sum(sizes))
    assert spans(before + after) == spans(pieces)


@settings(deadline=None, max_examples=60)
@given(sizes, st.floats(0.01, 0.6))
def test_training_and_validation_text_are_disjoint_and_cover_everything(sizes, share):
    pieces = named(sizes)
    training, validation = corpus.split(pieces, share)
    assert spans(training + validation) == spans(pieces)
    total = sum(sizes)
    assert share * total / 2 - 1 <= sum(p.size for p in validation) <= 2 * share * total + 1


def spans(pieces):
    return {(p.name, byte) for p in pieces for byte in range(p.start, p.start + p.size)}


def test_a_file_stays_on_its_side_when_others_come():
    few, many = named([10] * 400), named([10] * 400) + named([10] * 400, stem="later")
    held_out = {p.name for p in corpus.split(few, 0.1)[1]}
    assert held_out == {p.name for p in corpus.split(many, 0.1)[1] if p.name.startswith("file")}
    assert len(held_out) == pytest.approx(40, abs=20)


def test_the_end_of_a_single_file_is_held_out():
    assert corpus.split(named([1000]), 0.05) == (
        [Piece("file0", Path("/nowhere/file0"), 0, 950)],
        [Piece("file0", Path("/nowhere/file0"), 950, 50)],
    )
