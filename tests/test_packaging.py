"""What a stranger gets: a wheel with one name in it, and a library that needs torch only."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# numba and triton are core, but nothing needs them before a kernel runs.
IMPORT_WITHOUT_EXTRAS = """
import sys

BLOCKED = {"stable_baselines3", "sb3_contrib", "gymnasium", "minigrid", "tensorboard", "matplotlib", "tyro",
           "envs", "agents", "train", "beartype", "pytest", "triton", "numba"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)

sys.meta_path.insert(0, Blocker())
import fwp_rl
print(fwp_rl.__file__)
print(fwp_rl.__version__)
memory = fwp_rl.build_memory("none", 3)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline with the hatchling of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    script = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", script, str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"the wheel cannot be built: {result.stderr}"
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).parts[0] for name in archive.namelist()}
    assert names == {"fwp_rl", f"fwp_rl-{version()}.dist-info"}


def test_the_wheel_holds_every_module_of_the_library_and_its_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("fwp_rl/")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fwp_rl").rglob("*.py")}
    assert shipped == modules | {"fwp_rl/py.typed"}


def test_the_library_of_the_wheel_imports_without_anything_optional(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-P", "-c", IMPORT_WITHOUT_EXTRAS]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    file, shown_version = result.stdout.split("\n")[:2]
    assert Path(file).is_relative_to(tmp_path), "the checkout was imported, not the wheel"
    assert shown_version == version()


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version()}\n" in citation
    assert f"## [{version()}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_requirement_has_a_version_that_ci_uses() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "constraints.txt holds versions, nothing else"
    pinned = {_normal(pin.split("==")[0]) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for name in extras if name != "video" for each in extras[name])]
    needed = {_normal(re.split(r"[\[<>=; ]", each)[0]) for each in wanted}
    assert needed - pinned == {"fwp-rl"}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
