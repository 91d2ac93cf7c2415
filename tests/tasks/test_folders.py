import os

import pytest

from dist_train.tasks import folders


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "1.JPEG").write_bytes(b"x")
    return tmp_path


def test_a_complete_tree_has_no_problems(tree):
    assert folders.image_problems(tree) == []
    assert folders.images_by_class(tree / "train") == [("cat", ["1.JPEG"]), ("dog", ["1.JPEG"])]


def test_other_and_hidden_files_are_no_images(tree):
    for name in ("README.txt", ".hidden.png", "2.png"):
        (tree / "train" / "cat" / name).write_bytes(b"x")
    assert folders.image_names(tree / "train" / "cat") == ["1.JPEG", "2.png"]


def test_missing_splits_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    (line,) = folders.image_problems(tmp_path)
    assert line.startswith(f"there is no folder {tmp_path / 'val'}")


def test_a_tree_without_classes_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    assert folders.image_problems(tmp_path) == [
        f"{tmp_path}/train has no folders; it needs one for each class"
    ]


def test_classes_on_one_side_alone_are_named(tree):
    os.rename(tree / "val" / "dog", tree / "val" / "dogs")
    assert folders.image_problems(tree) == [
        f"class 'dog' is in {tree}/train and not in val",
        f"class 'dogs' is in {tree}/val and not in train; did you mean dog?",
    ]


def test_empty_classes_and_empty_files_are_named(tree):
    (tree / "train" / "cat" / "1.JPEG").unlink()
    (tree / "val" / "dog" / "1.JPEG").write_bytes(b"")
    assert folders.image_problems(tree) == [
        f"class folder {tree}/train/cat has no images",
        f"image {tree}/val/dog/1.JPEG is empty (0 bytes)",
    ]


def test_of_many_like_problems_the_first_are_named_and_the_rest_counted(tree):
    for number in range(20):
        (tree / "train" / "cat" / f"{number:02}.png").touch()
    lines = folders.image_problems(tree)
    assert len(lines) == 6
    assert lines[-1] == "... and 15 more like the last"


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "CIFAR_RECORDS", 2)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        (tmp_path / name).write_bytes(bytes(2 * 3073))
    return tmp_path


def test_six_cifar_files_of_the_right_size_have_no_problems(cifar):
    assert folders.cifar_problems(cifar) == []


def test_the_original_files_have_30_730_000_bytes(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"x")
    first, *missing = folders.cifar_problems(tmp_path)
    assert first.startswith(f"{tmp_path}/data_batch_1.bin has 1 bytes instead of 30,730,000")
    assert len(missing) == 5
    assert all("there is no file" in line for line in missing)


def test_a_cifar_file_of_another_size_is_named(cifar):
    (cifar / "data_batch_3.bin").write_bytes(bytes(3073))
    (line,) = folders.cifar_problems(cifar)
    assert line.startswith(f"{cifar}/data_batch_3.bin has 3,073 bytes instead of 6,146")


def test_the_folder_in_the_archive_is_found(tmp_path):
    assert folders.cifar_folder(tmp_path) == tmp_path
    (tmp_path / "cifar-10-batches-bin").mkdir()
    assert folders.cifar_folder(tmp_path) == tmp_path / "cifar-10-batches-bin"
