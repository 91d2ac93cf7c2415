"""The architecture as a test: who imports whom, who reads the environment, and how big things may be.

Everything is read from the source; nothing is imported. Each guard says how much it looked at.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dist_train"
TESTS = ROOT / "tests"

# What the launching process imports before it starts workers.
LAUNCHER_SIDE = (
    "dist_train",
    "dist_train.cli",
    "dist_train.runtime.start",
    "dist_train.runtime.launcher",
    "dist_train.runtime.submit",
    "dist_train.runtime.reaper",
    "dist_train.runtime.ray_cluster",
    "dist_train.config",
    "dist_train.tasks",
    "dist_train.report",
)
# Tests that are about no single module.
OF_NO_MODULE = {
    "test_architecture.py",
    "config/test_fuzz.py",
    "core/test_commit_killed.py",
    "optimizers/test_build.py",
}
# Folders of tests about the whole program.
OF_THE_WHOLE = {"reductions", "faults", "benchmarks", "experiments"}
# Tests of what stands beside the package.
BESIDE = {"test_readme.py": ROOT / "README.md", "test_recipes.py": ROOT / "launch"}
NOUNS_FOR_ANYTHING = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
MOST_LINES_OF = {"dist_train.worker": 200}
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 400, 60, 8


@dataclass(frozen=True)
class Import:
    """``source`` imports ``target`` (a module, never a name in one); ``at_start`` when that is."""

    source: str
    target: str
    at_start: bool


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert len(found) > 50
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


@cache
def imports() -> frozenset[Import]:
    """Return every import in the package, those for type checkers alone left out."""
    found = frozenset(each for name in modules() for each in _imports_in(name, tree(name), True))
    assert len(found) > 300
    return found


def _imports_in(name: str, node: ast.AST, at_start: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(name, alias.name, at_start)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{name}: imports are absolute"
            assert child.module is not None
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield Import(name, inner if inner in modules() else child.module, at_start)
        elif not _for_type_checkers(child):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports_in(name, child, at_start and not inside)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def top(name: str) -> str:
    return name.partition(".")[0]


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imported_by(package: str) -> set[str]:
    """Return what the modules of ``package`` import from elsewhere, at any time."""
    targets = {each.target for each in imports() if inside(each.source, package)}
    assert targets, package
    return {target for target in targets if not inside(target, package)}


def loaded_with(name: str) -> set[str]:
    """Return every module, of the package or not, that importing ``name`` imports."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in modules():
            waiting += [each.target for each in imports() if each.source == module and each.at_start]
            if "." in module:
                waiting.append(module.rpartition(".")[0])
    return seen


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    found = [
        (name, node)
        for name in modules()
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(found) > 300
    return found


def classes() -> list[tuple[str, ast.ClassDef]]:
    found = [
        (name, node) for name in modules() for node in ast.walk(tree(name)) if isinstance(node, ast.ClassDef)
    ]
    assert len(found) > 80
    return found


class TestImports:
    def test_rules_import_the_standard_library_numpy_and_rules_alone(self) -> None:
        allowed = sys.stdlib_module_names | {"numpy"}
        assert {target for target in imported_by("dist_train.rules") if top(target) not in allowed} == set()

    def test_rules_have_no_clock_no_chance_and_no_input(self) -> None:
        effects = {
            "time",
            "datetime",
            "random",
            "secrets",
            "os",
            "pathlib",
            "io",
            "socket",
            "threading",
            "subprocess",
        }
        assert {target for target in imported_by("dist_train.rules") if top(target) in effects} == set()

    @pytest.mark.parametrize("package", ["config", "errors", "plan", "rules", "cli"])
    def test_what_decides_before_the_start_never_imports_torch(self, package: str) -> None:
        assert not any(top(target) == "torch" for target in imported_by(f"dist_train.{package}"))

    @pytest.mark.parametrize("name", LAUNCHER_SIDE)
    def test_the_launching_side_loads_neither_torch_nor_ray(self, name: str) -> None:
        loaded = loaded_with(name)
        assert "dist_train" in loaded
        heavy = ("torch", "torchvision", "tensorboard", "ray")
        assert not {module for module in loaded if top(module) in heavy}

    def test_the_worker_does_load_torch(self) -> None:
        assert any(top(module) == "torch" for module in loaded_with("dist_train.worker"))

    def test_one_file_imports_ray_and_only_when_it_is_used(self) -> None:
        found = [each for each in imports() if top(each.target) == "ray"]
        assert {each.source for each in found} == {"dist_train.runtime.ray_cluster"}
        assert not any(each.at_start for each in found)

    def test_a_synchronous_run_never_loads_ray(self) -> None:
        side = ("dist_train.worker", "dist_train.runtime.worker_process", "dist_train.runtime.start")
        assert not {module for name in side for module in loaded_with(name) if top(module) == "ray"}

    def test_the_reaper_needs_nothing_but_the_standard_library(self) -> None:
        found = {each.target for each in imports() if each.source == "dist_train.runtime.reaper"}
        assert found
        assert not {target for target in found if top(target) not in sys.stdlib_module_names}

    def test_no_module_imports_itself_by_a_detour(self) -> None:
        edges: dict[str, set[str]] = {name: set() for name in modules()}
        for each in imports():
            # The package's own __init__ imports lazily, by name: it is where everybody may look.
            if each.target in modules() and each.target != "dist_train":
                edges[each.source].add(each.target)
        assert sum(map(len, edges.values())) > 100
        TopologicalSorter(edges).prepare()

    def test_the_package_itself_imports_nothing_of_its_own_at_the_start(self) -> None:
        assert not {
            each for each in imports() if each.source == "dist_train" and top(each.target) == "dist_train"
        }

    def test_couplings_never_import_one_another(self) -> None:
        siblings = {name for name in modules() if name.startswith("dist_train.couplings.")}
        assert siblings
        assert not {each for each in imports() if each.source in siblings and each.target in siblings}

    @pytest.mark.parametrize(
        ("package", "never"),
        [
            ("errors", ("",)),
            ("config", ("core", "couplings", "exchange", "runtime", "tasks", "watch", "worker", "plan")),
            ("plan", ("core", "couplings", "exchange", "runtime", "tasks", "watch", "worker")),
            ("optimizers", ("core", "couplings", "exchange", "runtime", "tasks", "watch", "worker")),
            ("models", ("core", "couplings", "exchange", "runtime", "tasks", "watch", "worker")),
            ("tasks", ("core", "couplings", "exchange", "runtime", "watch", "worker")),
            ("exchange", ("core", "couplings", "runtime", "tasks", "watch", "worker", "config")),
            ("couplings", ("core", "runtime", "tasks", "watch", "worker")),
            ("core", ("runtime", "watch", "worker", "tasks")),
            ("watch", ("worker", "tasks")),
            ("evaluate", ("couplings", "exchange", "member", "optimizers", "replay", "worker")),
            ("report", ("core", "couplings", "exchange", "member", "replica", "runtime", "tasks", "worker")),
            # Arithmetic on tensors alone.
            ("evaluate.predictions", ("",)),
        ],
    )
    def test_arrows_point_down(self, package: str, never: tuple[str, ...]) -> None:
        forbidden = tuple(f"dist_train.{name}".rstrip(".") for name in never)
        targets = imported_by(f"dist_train.{package}")
        assert not {target for target in targets if any(inside(target, above) for above in forbidden)}


class TestEnvironment:
    def mentions(self) -> set[str]:
        return {
            name
            for name in modules()
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Attribute)
            and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv")
        }

    def test_only_the_runtime_touches_it(self) -> None:
        assert self.mentions() <= {
            "dist_train.runtime.place",  # reads it
            "dist_train.runtime.start",  # these three hand it on whole
            "dist_train.runtime.launcher",
            "dist_train.runtime.worker_process",
        }

    def test_place_alone_reads_a_variable_by_name(self) -> None:
        assert "dist_train.runtime.place" in self.mentions()
        readers = {
            name
            for name in modules()
            for node in ast.walk(tree(name))
            if (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ")
            or (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.environ")
        }
        assert readers <= {"dist_train.runtime.place"}


class TestCouplings:
    VERBS = ("start", "objective", "update", "observe")

    def methods(self, node: ast.ClassDef) -> tuple[str, ...]:
        return tuple(each.name for each in node.body if isinstance(each, ast.FunctionDef))

    def test_the_protocol_has_four_verbs(self) -> None:
        (protocol,) = [
            node for name, node in classes() if name == "dist_train.couplings" and node.name == "Coupling"
        ]
        assert self.methods(protocol) == self.VERBS

    def test_every_coupling_has_these_and_no_others(self) -> None:
        found = [
            node
            for name, node in classes()
            if name.startswith("dist_train.couplings.") and set(self.VERBS) & set(self.methods(node))
        ]
        assert found
        for node in found:
            assert tuple(verb for verb in self.methods(node) if not verb.startswith("_")) == self.VERBS


class TestBudgets:
    def test_files_are_short(self) -> None:
        lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
        assert {n: c for n, c in lengths.items() if c > MOST_LINES_OF.get(n, MOST_LINES)} == {}
        assert set(MOST_LINES_OF) <= set(lengths)

    def test_functions_are_short(self) -> None:
        assert {
            f"{name}.{node.name}": length
            for name, node in functions()
            if (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
        } == {}

    def test_constructors_have_few_parameters(self) -> None:
        constructors = [(name, node) for name, node in functions() if node.name == "__init__"]
        assert len(constructors) > 20
        assert {
            name: count
            for name, node in constructors
            if (count := len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1)
            > MOST_PARAMETERS
        } == {}

    def test_inheritance_is_one_deep(self) -> None:
        own = {node.name: node for _, node in classes()}
        # Sections of the configuration are a family of data, not of behaviour.
        families = {"dist_train.config.schema", "dist_train.config.schedule", "dist_train.config.shape"}
        deep = {
            node.name
            for name, node in classes()
            if name not in families
            for base in node.bases
            for parent in [own.get(ast.unparse(base))]
            if parent is not None and any(ast.unparse(each) in own for each in parent.bases)
        }
        assert deep == set()

    def test_no_module_is_named_for_anything_and_everything(self) -> None:
        assert not {name for name in modules() if NOUNS_FOR_ANYTHING & set(name.split("."))}


class TestDocumentation:
    def test_every_module_says_what_it_is_for(self) -> None:
        assert {name for name in modules() if not ast.get_docstring(tree(name))} == set()

    def test_public_functions_of_some_size_have_a_docstring(self) -> None:
        looked_at, bare = 0, set()
        for name in modules():
            for node in tree(name).body:
                if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                    continue
                looked_at += 1
                if not ast.get_docstring(node) and (node.end_lineno or 0) - node.lineno > 6:
                    bare.add(f"{name}.{node.name}")
        assert looked_at > 100
        assert bare == set()


class TestTests:
    def test_every_test_file_has_a_module_of_its_name(self) -> None:
        files = sorted(TESTS.rglob("test_*.py"))
        assert len(files) > 40
        strangers = set()
        for file in files:
            relative = file.relative_to(TESTS)
            if relative.parts[0] in OF_THE_WHOLE:
                continue
            stem = relative.stem.removeprefix("test_")
            folder = PACKAGE / relative.parent
            namesakes = [
                folder / f"{stem}.py",
                folder / "__init__.py" if stem == "init" else None,
                BESIDE.get(str(relative)),
            ]
            if not any(path is not None and path.exists() for path in namesakes):
                strangers.add(str(relative))
        assert strangers == OF_NO_MODULE & strangers, "give these a module's name or put them on the list"

    def test_the_list_of_exceptions_is_not_stale(self) -> None:
        assert {name for name in OF_NO_MODULE if not (TESTS / name).exists()} == set()
