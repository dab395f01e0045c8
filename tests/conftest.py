"""Shared fixtures: small random pipelines of the stock classes, saved to disk once a test session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The project runs from its checkout; its rooms are never installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The same inputs in every run, and no judgement by the clock.
settings.register_profile("tests", derandomize=True, max_examples=50, deadline=None, database=None)
settings.load_profile("tests")


# Files that take minutes: begun first, so that no process is left with one of them at the end.
LONG = ("test_faults.py", "test_run.py", "test_add_a_method.py", "test_contract.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def random_sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD's classes: 32-pixel pictures, random weights. Do not write to it."""
    import random_models

    return random_models.save(random_models.random_sd(), tmp_path_factory.mktemp("models") / "random_sd")


@pytest.fixture(scope="session")
def random_sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SDXL's classes: 32-pixel pictures, random weights. Do not write to it."""
    import random_models

    return random_models.save(random_models.random_sdxl(), tmp_path_factory.mktemp("models") / "random_sdxl")


@pytest.fixture
def random_sd_model(random_sd_folder: Path):
    """A fresh DiffusionModel of SD's classes."""
    from harness.model import DiffusionModel

    return DiffusionModel.load(random_sd_folder, name="random", suite="tiny")


@pytest.fixture
def random_sdxl_model(random_sdxl_folder: Path):
    """A fresh DiffusionModel of SDXL's classes."""
    from harness.model import DiffusionModel

    return DiffusionModel.load(random_sdxl_folder, name="random_xl", suite="tiny")


@pytest.fixture
def call(tmp_path: Path, random_sd_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs a command line in this process, from an empty folder on the random model: (exit code, output, errors).

    `call.work` is the folder, `call.own` a configuration folder with the toy suite. `small=False` leaves out the
    settings of a small run.
    """
    import toy_suite
    from hydra._internal.hydra import Hydra

    import run

    # Hydra composes every configuration twice, at first only to read hydra.mode, which nothing here sets.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    own = toy_suite.write(tmp_path / "own")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments: str, small: bool = True) -> tuple[int, str, str]:
        argv = ["--config-dir", str(own), *(toy_suite.run_on(random_sd_folder) if small else []), *arguments]
        monkeypatch.setattr(sys, "argv", sys.argv[:1])  # run.main sets it; put back afterwards
        capsys.readouterr()
        code = run.main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    call.work, call.own = work, own
    return call
