"""Who imports whom, read from the code: no circle, one way; packages of others only from the extras that bring them.

Counted are all imports of the package's modules: at the top, inside functions, and for type checkers only. A circle
through a function or an annotation is a circle for whoever reads it. Not counted are a package's ``__init__`` when only
something below it is imported, and modules whose names are data (commands, engine builders, contenders).
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.sources import ROOT, module_files

# A room is a folder, or part of one, without ``diffplugin.``; a module belongs to the longest name that fits.
# Contracts: what everything may import. They import each other only.
CONTRACTS = (
    *("control_groups", "errors", "external_data", "files", "integrity", "manifest", "shapes", "signals"),
    *("spec", "streams"),
)
MAY_IMPORT: dict[str, set[str]] = {
    "plugins": {"contracts"},  # cards and compounds
    "bundle": {"contracts", "plugins"},
    "engines": {"contracts", "bundle"},
    "engines.tensorrt": {"contracts", "bundle", "engines"},
    "runtime.photos": {"contracts"},
    "runtime.sampling": {"contracts", "plugins"},
    "runtime.options": {"contracts", "plugins", "runtime.photos", "runtime.sampling"},
    "runtime.planning": {"contracts", "plugins", "engines", "runtime.options", "runtime.photos", "runtime.sampling"},
    "runtime.execution": {"contracts", "bundle", "engines", "runtime.photos", "runtime.planning", "runtime.sampling"},
    "runtime.request": {"contracts", "plugins", "runtime.execution", "runtime.photos"},
    "runtime": {
        *("contracts", "bundle", "plugins", "engines", "runtime.options", "runtime.photos", "runtime.planning"),
        *("runtime.sampling", "runtime.execution", "runtime.request"),
    },
    # ``diffplugin`` itself: what callers get
    "package": {
        *("contracts", "bundle", "engines", "runtime"),
        *("runtime.options", "runtime.photos", "runtime.planning", "runtime.request"),
    },
    "runtime.triton": {
        *("contracts", "bundle", "engines", "package"),
        *("runtime", "runtime.options", "runtime.photos", "runtime.planning"),
    },
    "command": {"contracts", "package"},
    "runtime.serve": {"contracts", "bundle", "plugins", "engines", "package", "command", "runtime", "runtime.*"},
    "runtime.scale": {
        *("contracts", "bundle", "package", "command", "runtime", "runtime.options", "runtime.photos"),
        "runtime.serve",  # the API over a cluster
    },
    "runtime.cli": {"contracts", "bundle", "plugins", "engines", "package", "command", "runtime", "runtime.*"},
    "plugins.networks": {"contracts"},
    "plugins.native": {"contracts"},
    "export.tools": {"contracts", "plugins.networks"},
    "export.checkpoints": {"contracts", "bundle", "plugins.networks", "export.tools", "runtime.sampling"},
    "export.fp16": {"contracts", "bundle", "engines", "plugins.networks", "export.checkpoints", "export.tools"},
    "export": {
        *("contracts", "bundle", "plugins", "plugins.networks", "engines", "package", "command"),
        *("runtime", "runtime.*", "export.checkpoints", "export.tools", "export.fp16"),
    },
    "plugins.train": {
        *("contracts", "bundle", "plugins", "plugins.networks", "engines", "package", "command"),
        *("runtime", "runtime.*", "export", "export.*"),
    },
    "bench": {
        *("contracts", "bundle", "plugins", "plugins.*", "engines", "engines.*", "package", "command"),
        *("runtime", "runtime.*", "export", "export.*"),
    },
}
DOOR_ROOMS = {"runtime.cli", "runtime.scale", "runtime.serve", "runtime.triton"}  # side by side
PART_OF = {f"diffplugin.{name}": "contracts" for name in CONTRACTS} | {
    "diffplugin": "package",
    **{f"diffplugin.{name}": "command" for name in ("__main__", "completion", "entry", "signals", "streams")},
    "diffplugin.default_bundle": "bundle",
    "diffplugin.hub": "bundle",
    "diffplugin.export.graphs": "export.checkpoints",
    # What the parts of export are made of: files, graphs, traces, measures.
    **{
        f"diffplugin.export.{name}": "export.tools"
        for name in (
            *("embedded", "measures", "onnx", "reading", "simplify", "step", "tokenizer", "writing", "written_out"),
        )
    },
}

# Extras that a room's code may need, beside the runtime's dependencies. Nothing in the other rooms may need one.
EXTRAS = {
    "runtime.photos": {"heif", "raw"},
    "command": {"completion"},
    "engines": {"cpu", "ncnn", "openvino", "cuda"},
    "engines.tensorrt": {"tensorrt", "tensorrt-rtx"},
    "plugins.networks": {"export"},
    "plugins.native": {"export"},
    "plugins.train": {"train", "datasets", "measures"},
    "runtime.serve": {"serve"},
    "runtime.scale": {"scale"},
    "bundle": {"hub"},
    "export": {"export", "ncnn-export", "quantize"},
    "export.checkpoints": {"export"},
    "export.fp16": {"cpu", "export"},
    "export.tools": {"export"},
    "bench": {"bench", "cpu"},
}
# Import names whose distribution is called otherwise; none of them is guessed.
DISTRIBUTIONS = {"PIL": "pillow", "cuda": "cuda-python", "google": "protobuf", "skimage": "scikit-image"}
# Modules that commands without their extra still load: nothing at their top may need an extra.
DOORS = ("diffplugin", "diffplugin.__main__", "diffplugin.command", "diffplugin.runtime.cli", "diffplugin.export.cli")

# Doors that come with an extra of their own: dp-serve and the scale-out.
EXTRA_DOORS = {"runtime.scale", "runtime.serve"}

IMPORT_MODULE = re.compile(r"importlib\.import_module\('([\w.]+)'\)")


class Import(NamedTuple):
    name: str
    line: int
    late: bool  # inside a function, or for type checkers only


def imports(path: Path, modules: Mapping[str, Path]) -> list[Import]:
    """What a file imports: modules of this package as far as they are modules, others by their full name."""

    def found(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{path}:{child.lineno}: a relative import"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield Import(full if full in modules else child.module, child.lineno, late)
            elif isinstance(child, ast.Call) and (named := IMPORT_MODULE.fullmatch(ast.unparse(child))):
                yield Import(named[1], child.lineno, True)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from found(child, late or typing_only or function)

    return list(found(ast.parse(path.read_text("utf-8")), False))


@cache
def graph() -> dict[str, list[Import]]:
    modules = module_files()
    return {name: imports(path, modules) for name, path in modules.items()}


def room(module: str) -> str:
    """The room of a module; KeyError names one that stands in no room."""
    if module in PART_OF:
        return PART_OF[module]
    parts = module.removeprefix("diffplugin.").split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in MAY_IMPORT:
            return name
    raise KeyError(f"{module} stands in no room of MAY_IMPORT: add its room and what it may import")


def allowed(name: str) -> set[str]:
    """Rooms that a room may import; ``runtime.*`` is every room below runtime but its other doors."""
    found = set()
    for entry in MAY_IMPORT.get(name, set()):
        prefix = entry.removesuffix("*")
        below = {other for other in MAY_IMPORT if other.startswith(prefix)} - (
            DOOR_ROOMS if name in DOOR_ROOMS else set()
        )
        found |= below if prefix != entry else {entry}
    return found - {name}


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """A circle, or nothing."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_circle() -> None:
    arrows = {name: {i.name for i in found if i.name in graph() and i.name != name} for name, found in graph().items()}
    assert sum(map(len, arrows.values())) > 300, "the code's own imports were not found"
    assert circles(arrows) == []


def test_every_room_imports_only_what_it_may() -> None:
    faults = []
    for module, found in graph().items():
        here = room(module)
        for name, line, _ in found:
            if name in graph() and (there := room(name)) not in {here, *allowed(here)}:
                faults.append(
                    f"{module_files()[module].relative_to(ROOT)}:{line}: {here} may not import {there} ({name})"
                )
    assert not faults, "\n".join(faults)


def test_the_table_goes_one_way() -> None:
    assert circles({name: allowed(name) for name in MAY_IMPORT}) == []


def test_the_circle_finder_finds_circles() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not circles({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch", [("torch", False)]),
        ("def f():\n    from scipy.ndimage import zoom", [("scipy.ndimage", True)]),
        ("if TYPE_CHECKING:\n    import a.b", [("a.b", True)]),
        ("try:\n    import a\nexcept ImportError:\n    import b", [("a", False), ("b", False)]),
        ("class C:\n    x = importlib.import_module('y')", [("y", True)]),
        (
            "from diffplugin.engines import base, nothing",
            [("diffplugin.engines.base", False), ("diffplugin.engines", False)],
        ),
    ],
)
def test_imports_are_read_wherever_they_stand(code: str, expected: list[tuple[str, bool]], tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(code)
    assert [(i.name, i.late) for i in imports(tmp_path / "m.py", module_files())] == expected


def declared() -> tuple[set[str], dict[str, set[str]]]:
    """(distributions of the runtime, those of each extra with the extras that it includes)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = set()
        for requirement in requirements:
            own = re.fullmatch(r"diffplugin\[(.+)\]", requirement)
            if own:
                found |= set().union(*(names(extras[extra.strip()]) for extra in own[1].split(",")))
            else:
                found.add(re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-"))
        return found

    return names(project["dependencies"]), {extra: names(listed) for extra, listed in extras.items()}


def distribution(name: str) -> str | None:
    """Distribution that an import comes from; None for Python's own and ours."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("diffplugin", "tests"):
        return None
    return DISTRIBUTIONS.get(top, top.lower().replace("_", "-"))


def test_every_third_party_import_is_declared_where_it_is_used() -> None:
    runtime, extras = declared()
    faults = []
    for module, found in graph().items():
        here = runtime.union(*(extras.get(extra, set()) for extra in EXTRAS.get(room(module), set())))
        if module.startswith("diffplugin.bench.suites"):  # pytest runs it: with the extra that brings pytest
            here |= extras["bench"] | {"pytest"}
        faults += [
            f"{module_files()[module].relative_to(ROOT)}:{i.line}: {i.name} is not of this room's extras"
            for i in found
            if (needed := distribution(i.name)) and needed not in here
        ]
    assert not faults, "\n".join(faults)


def test_every_import_of_the_tests_is_declared() -> None:
    runtime, extras = declared()
    modules = module_files()
    stand_ins = {distribution(path.name) for path in (ROOT / "tests").glob("**/python/*")}  # packages of the tests' own
    faults = [
        f"{path.relative_to(ROOT)}:{i.line}: {i.name} is not in the extra [test]"
        for path in (ROOT / "tests").rglob("*.py")
        for i in imports(path, modules)
        if (needed := distribution(i.name)) and needed not in runtime | extras["test"] | stand_ins
    ]
    assert not faults, "\n".join(faults)


def test_doors_load_without_any_extra() -> None:
    """What ``pip install diffplugin`` alone can import: the doors, and all that they import at their top."""
    runtime, _ = declared()
    waiting, seen, faults = (
        [*DOORS, *(m for m in graph() if room(m).startswith("runtime") and room(m) not in EXTRA_DOORS)],
        set(),
        [],
    )
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for name, line, late in graph()[module]:
            if not late and name in graph():
                waiting.append(name)
            elif not late and (needed := distribution(name)) and needed not in runtime:
                faults.append(f"{module}:{line}: {name}")
    assert not faults, "\n".join(faults)


def test_distributions_are_what_is_installed() -> None:
    """Where a package is installed, the distribution that this test takes it for is the one that holds it."""
    installed = importlib.metadata.packages_distributions()
    names = {i.name.partition(".")[0] for found in graph().values() for i in found if distribution(i.name)}
    for name in sorted(names & set(installed)):
        holders = {holder.lower().replace("_", "-") for holder in installed[name]}
        assert distribution(name) in holders or name == "cuda", (name, holders)


@pytest.mark.parametrize(
    ("command", "arguments", "extra"),
    [
        ("dp-bench", ("run", "--out", "out"), "bench"),
        ("dp-eval", ("restore", "--work", "work", "--out", "out"), "train"),
        ("dp-export", ("--out", "out"), "export"),
        ("dp-train", ("base", "--work", "work"), "train"),
    ],
)
def test_a_command_without_its_extra_names_it(
    command: str, arguments: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    """Here by packages that cannot be imported; tests/test_installs.py does so in an environment without them."""
    runtime, extras = declared()
    optional = set().union(*extras.values()) - runtime - extras.get("cpu", set())
    names = {i.name.partition(".")[0] for found in graph().values() for i in found if distribution(i.name) in optional}
    blocked = "import sys\nsys.modules |= dict.fromkeys(" + repr(sorted(names)) + ")\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    search = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    entry = f"from diffplugin.command import enter; import sys; sys.exit(enter({command!r}, sys.argv[1:]))"
    for given, code in ((("--help",), 0), (arguments, 1)):
        done = subprocess.run(
            [sys.executable, "-P", "-c", entry, *given],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
    assert done.stderr.startswith(f"{command}: ") and done.stderr.count("\n") == 1, done.stderr
    assert f"pip install 'diffplugin[{extra}]'" in done.stderr
