import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.errors import ConfigError
from dist_train.models.imports import argument_problems, resolve, suggest


@pytest.fixture(autouse=True)
def restored_imports(monkeypatch, tmp_path):
    """Work in an empty directory, and forget afterwards what was imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def refusal(reference):
    with pytest.raises(ConfigError) as caught:
        resolve(reference)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_finds_an_attribute_of_a_module_and_of_its_classes():
    assert resolve("collections:OrderedDict.fromkeys") == __import__("collections").OrderedDict.fromkeys


def test_finds_a_module_in_the_current_directory(tmp_path):
    (tmp_path / "nearby_task.py").write_text("class Thing: pass")
    assert resolve("nearby_task:Thing").__name__ == "Thing"


def test_a_file_is_loaded_once_and_sees_its_neighbours(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "neighbour_of_file.py").write_text("value = 7")
    (folder / "file_task.py").write_text("from neighbour_of_file import value\nclass Thing: number = value")
    thing = resolve("deep/file_task.py:Thing")
    assert thing.number == 7
    assert resolve(f"{folder}/file_task.py:Thing") is thing


def test_what_a_file_defines_can_be_pickled_to_a_process_that_has_the_same_path(tmp_path):
    (tmp_path / "pickled_task.py").write_text("class Thing: pass")
    pickled = pickle.dumps(resolve("pickled_task.py:Thing")())
    program = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickled, capture_output=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.stdout == b"Thing\n"


@pytest.mark.parametrize("name", ["json.py", "my-task.py", "a.b.py"])
def test_a_file_whose_name_is_taken_or_no_name_gets_another_one(tmp_path, name):
    (tmp_path / name).write_text("class Thing: pass")
    thing = resolve(f"{name}:Thing")
    assert resolve(f"{name}:Thing") is thing
    assert pickle.loads(pickle.dumps(thing)) is thing
    assert hasattr(__import__("json"), "dumps")


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text(f"folder = {folder!r}")
    assert [resolve(f"{folder}/same_name.py:folder") for folder in ("one", "two")] == ["one", "two"]


def test_an_exception_is_told_with_its_type_file_and_line(tmp_path):
    file = tmp_path / "raises_on_import.py"
    file.write_text("import json\n\njson.loads(missing_name)\n")
    line = refusal("raises_on_import.py:Thing")
    assert line == (
        f"raises_on_import.py:Thing: NameError: name 'missing_name' is not defined ({file.resolve()}, line 3)"
    )
    assert refusal("raises_on_import:Thing").startswith("raises_on_import:Thing: NameError")


def test_a_syntax_error_is_told_with_its_line(tmp_path):
    (tmp_path / "bad_syntax.py").write_text("x = 1\ndef f(:\n")
    assert refusal("bad_syntax.py:f").endswith("bad_syntax.py, line 2)")


def test_a_file_that_leaves_the_program_on_import_does_not(tmp_path):
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    assert "SystemExit: 3" in refusal("leaves.py:f")


def test_a_file_that_failed_is_tried_again(tmp_path):
    file = tmp_path / "json.py"
    file.write_text("raise RuntimeError('first')")
    assert "RuntimeError: first" in refusal("json.py:value")
    file.write_text("value = 'repaired'")
    assert resolve("json.py:value") == "repaired"


def test_a_module_missing_inside_the_users_file_is_told_apart_from_the_file_itself(tmp_path):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere")
    assert "No module named 'not_installed_anywhere'" in refusal("needs_more:f")
    assert "line 1" in refusal("needs_more:f")
    assert "there is no module 'nowhere_at_all'" in refusal("nowhere_at_all.part:f")


def test_the_nearest_attribute_is_offered(tmp_path):
    (tmp_path / "has_names.py").write_text("class MyTask: pass")
    assert refusal("has_names.py:MyTusk").endswith("has no 'MyTusk'; did you mean MyTask?")


@pytest.mark.parametrize("reference", ["module:", ":attribute"])
def test_a_reference_needs_both_parts(reference):
    assert "write package.module:attribute" in refusal(reference)


def test_a_missing_file_is_named(tmp_path):
    assert refusal("nowhere/task.py:T") == f"nowhere/task.py:T: there is no file {tmp_path}/nowhere/task.py"


def test_arguments_that_are_unknown_or_missing_are_named():
    def maker(size, *, depth=3):
        return size, depth

    assert argument_problems(maker, {"size": 1}) == []
    assert argument_problems(maker, {"dept": 1}) == [
        ("dept", "unknown option; did you mean depth?"),
        ("size", "missing; this option is required"),
    ]
    assert argument_problems(lambda **anything: anything, {"x": 1}) == []


def test_without_a_near_name_all_are_listed():
    assert suggest("zzz", ["b", "a"]) == "choose one of a, b"
