"""Shared fixtures: small random pipelines of the stock classes, saved to disk once a test session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The project runs from its checkout; its rooms are never installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


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
