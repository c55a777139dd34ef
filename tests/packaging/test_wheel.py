"""The wheel as a user gets it: what is in it, and that it works away from the source tree."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("orm", "outbox", "sagas", "workers")
PACKAGES = (*FOLDERS, "testing")
# One build and one environment serve the whole file; xdist must not make them once per worker.
pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the source tree and return what it printed; its failure is the test's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "CROSSTIE_"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from it: CROSSTIE_TEST_DIST where that is given, else built here."""
    if given := os.environ.get("CROSSTIE_TEST_DIST"):
        return (ROOT / given).resolve()
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The one wheel of the build."""
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has the wheel, and this environment's libraries behind it."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A plain path line adds the libraries but, unlike the environment they are in, does not run its .pth files: the
    # editable installation of the source tree stays out of reach.
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_the_namespace_and_nothing_else(wheel: Path) -> None:
    """A top-level `orm` or `workers` would overwrite packages of the user's own."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"crosstie", "crosstie-0.1.0.dist-info"}


def test_the_namespace_is_open(wheel: Path) -> None:
    """A `crosstie/__init__.py` would hide three of the four source roots from type checkers."""
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if name.startswith("crosstie/")]
    assert {name.split("/")[1] for name in files} == set(PACKAGES)


def test_the_wheel_holds_every_module_of_the_source_tree(wheel: Path) -> None:
    """Nothing that imports in the source tree may be missing for users, and no test may come along."""
    source = {
        str(path.relative_to(ROOT / root)) for root in FOLDERS for path in (ROOT / root).rglob("crosstie/**/*.py")
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    assert packed == source


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_marked_as_typed(wheel: Path, package: str) -> None:
    """Without the marker a user's type checker ignores the annotations."""
    with zipfile.ZipFile(wheel) as archive:
        assert f"crosstie/{package}/py.typed" in archive.namelist()


def test_the_metadata_tell_what_it_is_and_under_which_license(wheel: Path) -> None:
    """Index pages and license scanners read only this."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read("crosstie-0.1.0.dist-info/METADATA"))
        assert b"Apache License" in archive.read("crosstie-0.1.0.dist-info/licenses/LICENSE")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"postgres", "mysql", "redis", "dashboard", "metrics", "otel", "migrations", "dev"} <= extras


def test_the_sdist_can_be_built_and_tested(dist: Path) -> None:
    """Distributors start from the sdist: it has the sources, the tests and what they read, and no local leftovers."""
    (found,) = dist.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "compose.yaml", "Makefile"}
    needed |= {"tests/packaging/test_wheel.py", "docs/decisions/0001-one-namespace-four-source-roots.md"}
    assert needed <= names
    assert [name for name in names if "__pycache__" in name or name.startswith((".venv", ".ci"))] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_imports_from_the_wheel(fresh_python: Path, package: str) -> None:
    """From the fresh environment, not from the source tree."""
    place = run(
        fresh_python, "-c", f"import crosstie.{package} as it; print(it.__file__)", cwd=fresh_python.parent
    ).strip()
    assert Path(place).is_relative_to(fresh_python.parents[1])


def test_pytest_finds_the_plugin_of_the_wheel(fresh_python: Path) -> None:
    """By its entry point; and it does not import the rest of crosstie."""
    printed = run(fresh_python, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider", cwd=fresh_python.parent)
    assert "crosstie_time" in printed
    loaded = "import crosstie.testing.plugin, sys; print([one for one in sys.modules if one == 'sqlalchemy'])"
    assert run(fresh_python, "-c", loaded, cwd=fresh_python.parent).strip() == "[]"


def test_the_wheel_brings_the_command(fresh_python: Path) -> None:
    """`crosstie --help` is the first thing that a new user types."""
    printed = run(fresh_python.with_name("crosstie"), "--help", cwd=fresh_python.parent)
    for subcommand in ("init", "worker", "beat", "audit", "status"):
        assert subcommand in printed
