"""Arrows between packages run one way: train -> agents -> envs, agents -> fwp_rl.sb3 -> fwp_rl -> torch."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = {"torch", "jaxtyping", "numpy", "fwp_rl"}
COMPILERS = {"numba", "llvmlite", "triton"}
LEARNER = {"stable_baselines3", "sb3_contrib", "gymnasium", "safetensors"}
APPLICATION = {"envs", "agents", "train"}


def imports(tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported module, in full, and whether it is imported only when a function runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full, not relative ones"
            assert node.module is not None
            yield node.module, inside_function
            yield from ((f"{node.module}.{alias.name}", inside_function) for alias in node.names)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, inside_function or is_function)


def top(module: str) -> str:
    return module.split(".")[0]


def is_private(path: Path) -> bool:
    return path.name.startswith("_") and path.name != "__init__.py"


def complaint(path: Path, module: str, inside_function: bool) -> str | None:
    """Why the file at `path` (relative to the checkout) must not import `module`; None if it may."""
    package, name = path.parts[0].removesuffix(".py"), top(module)
    if name == "train" and package != "tests":
        return "nobody imports the front door"
    if package == "fwp_rl":
        return _complaint_in_library(path, module, inside_function)
    if package == "envs" and name in {"torch", "stable_baselines3", "sb3_contrib", "fwp_rl", "agents"}:
        return "tasks know neither the learner nor torch"
    return None


def _complaint_in_library(path: Path, module: str, inside_function: bool) -> str | None:
    name = top(module)
    if name in APPLICATION:
        return "the library does not know the application"
    in_learner = path.parts[1] == "sb3"
    if name in sys.stdlib_module_names or (name in LIBRARY and (in_learner or not module.startswith("fwp_rl.sb3"))):
        return None
    if in_learner and (name in LEARNER):
        return None
    if name in COMPILERS:
        return None if inside_function or is_private(path) else "compilers belong into functions or underscore files"
    return "outside fwp_rl/sb3 the library needs torch only" if not in_learner else "unknown dependency of fwp_rl/sb3"


def source_files() -> list[Path]:
    found = [path for package in ("fwp_rl", "envs", "agents") for path in sorted((ROOT / package).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in [*found, ROOT / "train.py"]]


def test_the_walk_finds_every_package() -> None:
    assert {path.parts[0] for path in source_files()} == {"fwp_rl", "envs", "agents", "train.py"}


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_file_imports_only_what_its_layer_may(path: Path) -> None:
    complaints = [
        f"{path} imports {module}: {why}"
        for module, inside_function in imports(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if (why := complaint(path, module, inside_function))
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("path", [p for p in source_files() if p.parts[0] == "fwp_rl" and not is_private(p)], ids=str)
def test_underscore_files_with_compilers_are_imported_inside_functions(path: Path) -> None:
    """Else `import fwp_rl` would import numba or triton after all."""
    for module, inside_function in imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        file = ROOT / (module.replace(".", "/") + ".py")
        if inside_function or not (is_private(file) and file.exists()):
            continue
        needs = {top(name) for name, lazily in imports(ast.parse(file.read_text(encoding="utf-8"))) if not lazily}
        assert not needs & COMPILERS, f"{path} imports {module} at its top, and that imports {needs & COMPILERS}"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("fwp_rl/memories/wrong.py", "import gymnasium"),
        ("fwp_rl/memories/wrong.py", "from stable_baselines3 import PPO"),
        ("fwp_rl/memories/wrong.py", "from fwp_rl.sb3 import MemoryPPO"),
        ("fwp_rl/memories/wrong.py", "from fwp_rl import sb3"),
        ("fwp_rl/memories/wrong.py", "import safetensors"),
        ("fwp_rl/ops/wrong.py", "import numba"),
        ("fwp_rl/ops/wrong.py", "if True:\n    import triton.language as tl"),
        ("fwp_rl/__init__.py", "import numba"),
        ("fwp_rl/sb3/wrong.py", "def late():\n    from agents import training"),
        ("fwp_rl/sb3/wrong.py", "import pandas"),
        ("envs/wrong.py", "import torch.nn"),
        ("envs/wrong.py", "def late():\n    import stable_baselines3"),
        ("envs/wrong.py", "from fwp_rl.state import State"),
        ("envs/wrong.py", "from agents import training"),
        ("agents/wrong.py", "import train"),
        ("envs/wrong.py", "import train"),
    ],
)
def test_a_forbidden_import_is_found(path: str, line: str) -> None:
    assert any(complaint(Path(path), module, lazily) for module, lazily in imports(ast.parse(line)))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("fwp_rl/ops/_numba.py", "import numba"),
        ("fwp_rl/ops/right.py", "def late():\n    import triton"),
        ("fwp_rl/sb3/right.py", "import safetensors.torch, gymnasium, stable_baselines3"),
        ("envs/right.py", "import gymnasium, numpy, minigrid"),
        ("agents/right.py", "from envs import tasks\nfrom fwp_rl.sb3 import MemoryPPO"),
    ],
)
def test_an_allowed_import_passes(path: str, line: str) -> None:
    assert not any(complaint(Path(path), module, lazily) for module, lazily in imports(ast.parse(line)))
