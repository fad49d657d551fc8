"""Imports go down only, read from the syntax tree: no cycle, no module that knows one above it, lazily or not."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("types", "sampling", "credit", "losses")
BARE = {"__future__", "collections", "contextlib", "dataclasses", "enum", "hashlib", "math", "numpy", "time", "torch"}
BARE |= {"typing", "otca"}
ABOVE = {"update", "trainer", "validation", "checkpoint", "plan", "export", "cli", "doctor", "__main__"}
"""What nothing below the trainer may know."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@cache
def imported(path: Path) -> set[str]:
    """Dotted names of every import that runs, at any depth; `from otca import x` counts as otca.x."""
    tree, typing_only = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only |= {id(inner) for inner in ast.walk(node)}
    out = set()
    for node in (node for node in ast.walk(tree) if id(node) not in typing_only):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            out |= {f"otca.{a.name}" for a in node.names} if node.module == "otca" else {node.module}
    return out


def part_of(path: Path) -> str:
    """otca/models/flux.py → models; otca/credit.py → credit."""
    return path.relative_to(ROOT / "otca").parts[0].removesuffix(".py")


@cache
def graph() -> dict[str, set[str]]:
    """Which parts of otca (a module, or a package as one) each of them imports."""
    out: dict[str, set[str]] = {}
    for path in modules("otca"):
        names = {name.split(".")[1] for name in imported(path) if name.startswith("otca.")}
        out.setdefault(part_of(path), set()).update(names - {part_of(path), "__version__"})
    return out


def test_otca_has_no_cycle():
    TopologicalSorter(graph()).prepare()


@pytest.mark.parametrize("part", [*PURE, "methods", "state_values", "models", "rewards", "tasks", "runs"])
def test_nothing_knows_the_trainer_but_what_is_above_it(part):
    assert not graph()[part] & ABOVE


def test_otca_knows_neither_baselines_nor_eval_nor_reproduce():
    """The command line alone does, lazily."""
    for path in modules("otca"):
        if part_of(path) != "cli":
            assert not {n for n in imported(path) if n.split(".")[0] in ("baselines", "eval", "reproduce")}, path


@pytest.mark.parametrize("package, others", [("baselines", {"eval", "reproduce"}), ("eval", {"baselines", "reproduce"})])
def test_baselines_and_eval_know_only_otca(package, others):
    for path in modules(package):
        assert not {n.split(".")[0] for n in imported(path)} & others, path


@pytest.mark.parametrize("part", PURE)
def test_formulas_are_pure(part):
    """No I/O and no diffusers in the files that hold the mathematics, nor in what they import of otca."""
    names = imported(ROOT / "otca" / f"{part}.py")
    assert {n.split(".")[0] for n in names} <= BARE
    assert {n.split(".")[1] for n in names if n.startswith("otca.")} <= {"types", "config", "errors"}


@pytest.mark.parametrize("package", ["otca", "baselines", "eval", "reproduce"])
def test_files_stay_readable(package):
    """A file past 350 lines is two files."""
    assert {path: n for path in modules(package) if (n := len(path.read_text().splitlines())) > 350} == {}


def test_judge_and_verifier_share_no_code():
    assert not {n for n in imported(ROOT / "otca/tasks/judge.py") if "verifier" in n or "rewards" in n}
    assert not {n for n in imported(ROOT / "otca/tasks/verifier.py") if "judge" in n}
