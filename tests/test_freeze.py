"""Freezing: the folder is whole, loadable, hashed as it lies, and names no place."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tinyworld.freeze import card, freeze, stamp, verify


def test_a_frozen_world_names_no_place_and_is_as_hashed(random_sd_folder: Path, tmp_path: Path):
    from harness.model import DiffusionModel

    trained = tmp_path / "trained"
    shutil.copytree(random_sd_folder, trained / "pipeline")
    (trained / "recipe.json").write_text(json.dumps({"seed": 0, "without": ["church"]}))
    (trained / "judges").mkdir()
    (trained / "judges" / "config.json").write_text(json.dumps({"_name_or_path": str(trained), "width": 3}))
    (trained / "judges" / "config.json").chmod(0o600)
    target = tmp_path / "world"
    old = os.umask(0o022)
    try:
        result = freeze(trained, target, "toy-v1")
    finally:
        os.umask(old)
    verify(target)
    assert result["without"] == ["church"]
    assert result == card(target) and stamp(target) == f"toy-v1@{result['hash'][:12]}"
    for path in (target, *target.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
        if path.suffix == ".json":
            assert "_name_or_path" not in path.read_text() and str(trained) not in path.read_text(), path
    assert json.loads((target / "judges" / "config.json").read_text()) == {"width": 3}
    assert DiffusionModel.load(target).unet.config.sample_size == 8
    (target / "unet" / "config.json").write_text("{}")
    for check in (verify, stamp):
        with pytest.raises(ValueError, match=r"unet/config.json is not the file that was frozen as toy-v1; put"):
            check(target)
