"""The laws of the layout: who may import whom, and what no module may be called."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vmm"
MODULES = sorted(ROOT.rglob("*.py"))
VALUES = {"vmm.errors", "vmm.bits", "vmm.msr", "vmm.filter", "vmm.exits"}
SHIM_READERS = [
    "kernel.backend",
    "kernel.program",
    "kernel.execution",
    "kernel.threads",
    "host.needs",
    "churn.churn",
    "churn.endings",
    "stress.arena",
    "random.bulk",
]
SHIM_IMPORTERS = {
    *("vmm.ioctl", "vmm.kvm", "vmm.vcpu", "vmm.memory", "vmm.placed", "vmm.guest", "vmm.uffd"),
    *(f"vmm.conformance.{name}" for name in SHIM_READERS),
}
KERNEL_SIDE = {*SHIM_IMPORTERS, "vmm._native"}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "base", "types", "misc"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, types: bool = False) -> set[str]:
    """Return every vmm module that ``path`` imports, under TYPE_CHECKING only with ``types``."""
    found: set[str] = set()
    known = {name_of(each) for each in MODULES} | {"vmm._native"}
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if not types
        and isinstance(node, ast.If)
        and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write imports out, {node.module} is relative"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {str(node.module)}
    return {each for each in found if each.startswith("vmm")}


def floor(module: str) -> int:
    if module.startswith("vmm.cli") or module == "vmm.__main__":
        return 4
    if module.startswith("vmm.lab"):
        return 3
    return 2 if module.startswith("vmm.conformance") else 1


def closure(module: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = {module}
    while todo:
        each = todo.pop()
        seen.add(each)
        todo |= graph.get(each, set()) - seen
    return seen - {module}


GRAPH = {name_of(path): imports(path) for path in MODULES}


GRAPH_OF_TYPES = {name_of(path): imports(path, types=True) for path in MODULES}
ROOMS_WITHOUT_CIRCLES = ("language", "oracle", "kernel", "c", "random")


@pytest.mark.parametrize("room", ROOMS_WITHOUT_CIRCLES)
def test_no_circle_not_even_of_types(room):
    inside = [each for each in GRAPH if each.startswith(f"vmm.conformance.{room}.")]
    assert inside
    for module in inside:
        reached = [closure(each, GRAPH_OF_TYPES) | {each} for each in GRAPH_OF_TYPES[module]]
        assert all(module not in each for each in reached), module


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_go_down(module):
    assert not {each for each in GRAPH[module] if floor(each) > floor(module)}
    assert module == "vmm.__main__" or "vmm.cli" not in GRAPH[module]


def test_values_import_only_values():
    for module in VALUES:
        assert GRAPH[module] <= VALUES, module


def test_only_floor_one_and_the_batches_import_the_shim():
    importers = {module for module, names in GRAPH.items() if "vmm._native" in names}
    assert importers <= SHIM_IMPORTERS


def test_the_oracle_shares_nothing_with_the_kernel():
    reached = closure("vmm.conformance.oracle.model", GRAPH)
    assert not reached & (
        KERNEL_SIDE | {"vmm.conformance.kernel.backend", "vmm.conformance.kernel.program"}
    )
    assert "vmm.conformance.language.script" in reached


def test_cases_are_data_that_need_no_kernel():
    for module in GRAPH:
        if module.startswith("vmm.conformance.cases"):
            assert not closure(module, GRAPH) & KERNEL_SIDE, module


def test_no_module_is_named_after_nothing():
    assert not {path.stem for path in MODULES} & FORBIDDEN_NAMES


def test_the_graph_was_read():
    assert len(GRAPH) > 10
    assert "vmm.ioctl" in GRAPH["vmm.kvm"]
