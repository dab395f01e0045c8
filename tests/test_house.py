"""The house rules that a reader cannot see at a glance: the lock, the Makefile, what git holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("help", "setup", "demo", "test", "coverage", "faults", "bench", "tables", "lint", "types")
LARGEST_FILE = 15_000_000  # bytes
# Absolute paths that exist on one machine only. Python's own slashes, URLs and globs do not match.
MACHINE_PATH = re.compile(r"(?<![\w.:*~/})-])/(?:home|root|work|mnt|opt|Users)/[\w.-]")

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files that git keeps and that are there."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing is tracked")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def locked() -> list[tuple[Requirement, list[str]]]:
    """The entries of the lock with their hashes; every line must be part of one.

    Raises:
        ValueError: for a line that is neither `name==version [; marker]` nor `--hash=sha256:...`, such as an index.
    """
    entries: list[tuple[Requirement, list[str]]] = []
    for number, line in enumerate((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines(), start=1):
        text = line.removesuffix("\\").strip()
        if re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) and entries:
            entries[-1][1].append(text)
        elif re.match(r"[a-z0-9.-]+==[0-9]", text):
            entries.append((Requirement(text), []))
        else:
            raise ValueError(f"requirements.lock line {number}: {text!r} is neither an exact version nor a hash")
    return entries


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, development tools included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Requirement(text) for text in project["project"]["dependencies"] + project["dependency-groups"]["dev"]]


def test_the_lock_holds_exact_versions_and_hashes_only():
    entries = locked()
    assert len(entries) > 50
    assert [str(requirement) for requirement, hashes in entries if not hashes] == []
    assert [str(requirement) for requirement, _ in entries if requirement.url] == []


@pytest.mark.parametrize("wanted", declared(), ids=lambda requirement: requirement.name)
def test_the_lock_meets_pyproject(wanted: Requirement):
    versions = [
        next(iter(requirement.specifier)).version
        for requirement, _ in locked()
        if canonicalize_name(requirement.name) == canonicalize_name(wanted.name)
    ]
    assert versions, f"{wanted.name} is not in requirements.lock"
    assert all(wanted.specifier.contains(version, prereleases=True) for version in versions), (wanted, versions)


def test_no_tracked_file_is_too_large(tracked: list[Path]):
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE} == {}


def test_no_tracked_file_names_a_machine(tracked: list[Path]):
    found = []
    for path in tracked:
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("model.path=/" + "home/someone/sd15", True),
        ('root = "/' + 'mnt/disk"', True),
        ("see https://example.org/home/page", False),
        ("results/data/x.csv and ./opt/thing", False),
        ("forget / preserve", False),
    ],
)
def test_the_path_check_sees(text: str, is_path: bool):
    assert bool(MACHINE_PATH.search(text)) is is_path


def test_nothing_is_installed_under_a_generic_name():
    """`eval`, `harness` and the others are found beside run.py only: the project is never a package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "build-system" not in project
    assert project["tool"]["uv"]["package"] is False


def test_the_readme_names_real_targets():
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named <= set(TARGETS)


@needs_make
def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert tuple(re.findall(r"^  make (\w+) +\S", shown, flags=re.MULTILINE)) == TARGETS


@needs_make
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "help"])
def test_one_command_is_enough_on_a_fresh_machine(target: str, tmp_path: Path):
    """In a folder without an environment, every target first installs what the lock says."""
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    plan = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "--require-hashes requirements.lock" in plan
    # Once the environment is newer than the lock, it is left alone.
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    again = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "--require-hashes" not in again


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 5
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target.partition("#")[0]).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
