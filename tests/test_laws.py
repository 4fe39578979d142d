"""The laws of the layout: the table of rooms, who may import whom, and what no module is called."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vmm"
MODULES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))
VALUES = ["errors", "bits", "msr", "filter", "exits"]

ROOMS = [
    *VALUES,
    "closing ioctl structs kicks kvm decode vcpu memory placed uffd x86 modes guest nested",
    "conformance.contract",
    "conformance.language",
    "conformance.cases",
    "conformance.oracle",
    "conformance.records",
    "conformance.report",
    "conformance.host",
    "conformance.kernel",
    "conformance.c",
    "conformance.random",
    "conformance.judge",
    "conformance.stress",
    "conformance.churn",
    "lab.errors lab.vendors lab.append lab.cache lab.apt lab.processes lab.alone lab.cluster"
    " lab.workers",
    "lab.kernels",
    "lab.initramfs",
    "lab.machines",
    "lab.runs",
    "lab.search",
    "lab.mutants",
    "lab.doctor",
    "cli __main__",
]
"""Every room (or the modules that share one), from the ground up: see docs/design.md."""

NOT_KNOWN = {
    "conformance.report": {"conformance.oracle", "conformance.cases"},
    "conformance.host": {"conformance.oracle", "conformance.cases", "conformance.report"},
    "conformance.kernel": {"conformance.oracle", "conformance.report", "conformance.records"},
    "conformance.c": {"conformance.kernel", "conformance.report"},
}
"""Rooms that a room above them may not know all the same."""

LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names.split()}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "base", "types", "misc"}

NATIVE = {"_native", "_entry"}
SHIM_IMPORTERS = {
    *("ioctl", "structs", "kicks", "kvm", "decode", "vcpu", "memory", "placed", "guest", "uffd"),
    *(
        f"conformance.kernel.{name}"
        for name in (
            "backend",
            "calls",
            "halves",
            "levels",
            "program",
            "platform",
            "sweeps",
            "threads",
        )
    ),
    "conformance.host.needs",
    *("conformance.random.bulk", "conformance.stress.arena"),
    *("conformance.churn.churn", "conformance.churn.endings"),
}
KERNEL_SIDE = {*SHIM_IMPORTERS, *NATIVE}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES} | NATIVE


def resolved(module: str, names: list[str]) -> set[str]:
    """Return what ``from module import names`` reaches: modules by name, else ``module``."""
    inner = {f"{module}.{name}".removeprefix("vmm.") for name in names} & NAMES
    rest = [name for name in names if f"{module}.{name}".removeprefix("vmm.") not in NAMES]
    return inner | ({module.removeprefix("vmm").lstrip(".")} if rest else set())


def imports(path: Path) -> set[str]:
    """Return every module of ours that ``path`` imports anywhere in it, for its types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name.removeprefix("vmm.") for each in node.names if _ours(each.name)}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write imports out, {node.module} is relative"
            if _ours(str(node.module)):
                found |= resolved(str(node.module), [each.name for each in node.names])
    return found


def _ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] == "vmm"


def room(module: str) -> str:
    """Return the entry of the table that ``module`` stands in; "" for the package itself."""
    parts = module.split(".")
    return next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in LEVEL), "")


def closure(module: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = {module}
    while todo:
        each = todo.pop()
        seen.add(each)
        todo |= graph.get(each, set()) - seen
    return seen - {module}


def upward(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the imports that go up, or to a room that must not be known."""
    return {
        (module, name)
        for module, names in graph.items()
        for name in names
        if room(module)
        and room(name)
        and (
            LEVEL[room(name)] > LEVEL[room(module)]
            or room(name) in NOT_KNOWN.get(room(module), set())
        )
    }


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Return the modules that reach themselves; the package's lazy front door is no import."""
    inner = {module: names - {""} for module, names in graph.items() if module}
    return {
        module
        for module in inner
        if any(module in {each, *closure(each, inner)} for each in inner[module])
    }


GRAPH = {name_of(path): imports(path) for path in MODULES}


def test_the_table_of_rooms_is_the_tree():
    packages = {"", "conformance", "lab"}
    assert {room(module) for module in GRAPH if module not in packages} == set(LEVEL)


def test_no_import_goes_up():
    assert upward(GRAPH) == set()


def test_no_module_reaches_itself_not_even_for_its_types():
    assert circles(GRAPH) == set()


def test_values_import_only_values():
    for module in VALUES:
        assert GRAPH[module] <= set(VALUES), module


def test_a_room_re_exports_nothing():
    for path in ROOT.rglob("__init__.py"):
        name = name_of(path)
        if name in LEVEL and name not in ("cli", "conformance.cases"):
            body = ast.parse(path.read_text()).body
            assert [type(node) for node in body] == [ast.Expr], f"{path}: more than a docstring"


def test_only_those_that_drive_a_kernel_import_the_shim():
    assert {module for module, names in GRAPH.items() if NATIVE & names} <= SHIM_IMPORTERS


def test_the_oracle_shares_nothing_with_the_kernel():
    reached = closure("conformance.oracle.model", GRAPH)
    assert not {room(each) for each in reached} & {"conformance.kernel", "conformance.c"}
    assert not reached & KERNEL_SIDE
    assert "conformance.language.script" in reached


def test_cases_are_data_that_need_no_kernel():
    for module in GRAPH:
        if module.startswith("conformance.cases"):
            assert not closure(module, GRAPH) & KERNEL_SIDE, module


def test_no_module_is_named_after_nothing():
    assert not {path.stem for path in MODULES} & FORBIDDEN_NAMES


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("conformance.contract.history", "conformance.language.word"),
        ("conformance.report.text", "conformance.judge.check"),
        ("conformance.kernel.backend", "conformance.random.fuzz"),
        ("conformance.c.export", "conformance.kernel.backend"),
        ("kvm", "conformance.host.facts"),
        ("lab.kernels.kernels", "lab.machines.machine"),
        ("conformance.judge.check", "lab.cache"),
        ("lab.runs.check", "cli"),
    ],
)
def test_a_wrong_import_would_be_seen(module, name):
    assert (module, name) in upward({**GRAPH, module: GRAPH[module] | {name}})


def test_a_circle_would_be_seen():
    graph = {**GRAPH, "msr": {"filter"}}
    assert {"msr", "filter"} <= circles(graph)


def test_the_graph_was_read():
    assert "ioctl" in GRAPH["kvm"]
    assert "conformance.judge.runner" in GRAPH["conformance.judge.again"]


def test_no_two_test_files_have_one_name():
    """They are imported by it alone: a second test file or helper would be the first once more."""
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert len(names) == len(set(names)), [name for name in names if names.count(name) > 1]


def test_no_test_file_is_long():
    lines = {path.name: path.read_text().count("\n") for path in TESTS}
    assert not {name: count for name, count in lines.items() if count > 500}
