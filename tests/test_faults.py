"""Runs that are killed, terminated, starved of disk or run side by side; what the damage of stored files leads to.

The tools are in tests/faults.py, which `make faults` runs with twenty kills. What is marked `faults` takes minutes and
runs there too.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import FIA, Fault, Nursery, Site, exported, faults_of, kill_and_resume, leftovers, made, pictures, records

from harness.upkeep import damaged

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(nursery: Nursery, site: Site) -> tuple[Path, int]:
    """An unbroken run: its folder, and how often it changes files."""
    folder = site.folder("whole")
    outcome = nursery.run(folder, site.commands)
    assert outcome.code == 0, outcome.errors
    return folder, outcome.events


def test_the_runs_cover_what_a_run_does(whole):
    folder, events = whole
    kinds = {path.name for path in (folder / "store").iterdir()}
    assert {"edit", "rows", "image", "fia.saliency", "training.pictures"} <= kinds
    # Three classes and captions, three each: unedited, and edited by two of the three methods.
    assert len(records(folder)) == 3 and len(pictures(folder)) == made(folder) == 3 * 12
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in exported(folder))
    assert leftovers(folder) == [] and events > 100


@pytest.mark.parametrize("number", range(3))
def test_a_killed_run_goes_on_to_the_same_result(nursery: Nursery, site: Site, whole, number: int):
    folder, events = whole
    # One kill in each third of the run.
    at = random.Random(number).randint(1 + events * number // 3, events * (number + 1) // 3)
    assert kill_and_resume(nursery, site.folder(f"kill-{number}"), folder, site.commands, Fault("kill", at)) == []


def test_a_run_goes_on_after_signals_and_a_full_disk(nursery, site, whole):
    """One run, stopped four times: each time it ends in one line, and in the end the result is the unbroken run's."""
    folder, events = site.folder("stopped"), whole[1]
    for fault, code, words in (
        (Fault("full", 1), 1, "No space left on device"),
        (Fault("term", events // 4), 143, "terminated: what was computed is stored"),
        (Fault("interrupt", events // 4), 130, "interrupted: what was computed is stored"),
        (Fault("full", events // 5), 1, "No space left on device"),
    ):
        stopped = nursery.run(folder, site.commands, fault)
        assert stopped.code == code and words in stopped.errors.rstrip().splitlines()[-1], stopped.errors
        assert "Traceback" not in stopped.errors
        assert [name for name in leftovers(folder) if not name.startswith("store/.scratch/")] == []
    before = len(pictures(folder))
    assert nursery.run(folder, site.commands).code == 0
    assert faults_of(folder, whole[0], before) == []


def test_a_store_that_can_only_be_read(nursery, site, whole):
    """What is stored is enough for a run whose record goes elsewhere; what is missing is one line."""
    folder, fia = site.folder("readonly"), site.commands[0]
    shutil.copytree(whole[0] / "store", folder / "store")
    before = {path: path.read_bytes() for path in (folder / "store").rglob("*") if path.is_file()}
    found = nursery.run(folder, [fia], Fault("readonly"))
    assert found.code == 0 and found.events == 0, found.errors
    assert made(folder) == 0 and records(folder).items() <= records(whole[0]).items()
    for missing in map(sorted, map((folder / "store").glob, ("image/??/*.png", "edit/??/*/*"))):
        kept = {path: before.pop(path) for path in missing}
        for path in missing:
            path.unlink()
        stopped = nursery.run(folder, [fia], Fault("readonly"))
        assert stopped.code == 1 and "Read-only file system" in stopped.errors.rstrip().splitlines()[-1], stopped.errors
        assert "Traceback" not in stopped.errors
        assert {path: path.read_bytes() for path in (folder / "store").rglob("*") if path.is_file()} == before
        for path, data in kept.items():
            path.write_bytes(data)
        before |= kept


@pytest.mark.faults
def test_two_runs_on_one_store_at_once_are_both_right(nursery, site, whole):
    """Every artefact is made by one of them. A picture may be made by both, with the same pixels."""
    store = site.folder("shared") / "store"
    folders = [site.folder(name) for name in ("left", "right")]
    commands = [[*command, f"store={store}"] for command in site.commands]
    outcomes = nursery.run_together([(folder, commands) for folder in folders])
    assert [outcome.code for outcome in outcomes] == [0, 0], [outcome.errors for outcome in outcomes]
    expected = pictures(whole[0])
    assert pictures(store.parent) == expected
    assert len(expected) <= sum(map(made, folders)) <= 2 * len(expected)
    assert [_values(folder) for folder in folders] == [_values(whole[0])] * 2
    assert leftovers(store.parent) == []


@pytest.mark.faults
def test_four_jobs_of_a_sweep_on_one_store_at_once(nursery, site):
    """They share calibration and unedited pictures; each is as right as alone, and the calibration is made once."""
    store, alphas = site.folder("swept") / "store", ("0.6", "0.7", "0.8", "1.0")
    commands = [[*site.base, *FIA, "method.r2=0.2", f"method.alpha={alpha}"] for alpha in alphas]
    folders = [site.folder(f"alpha-{alpha}") for alpha in alphas]
    outcomes = nursery.run_together(
        [(folder, [[*command, f"store={store}"]]) for folder, command in zip(folders, commands)]
    )
    assert [outcome.code for outcome in outcomes] == [0] * 4, [outcome.errors for outcome in outcomes]
    alone = site.folder("alone")
    assert nursery.run(alone, commands).code == 0
    assert {name: value for folder in folders for name, value in _values(folder).items()} == _values(alone)
    assert pictures(store.parent) == pictures(alone)
    made_here, made_alone = ({p.name for p in root.glob("fia.*/??/*")} for root in (store, alone / "store"))
    assert made_here == made_alone
    assert leftovers(store.parent) == []


@pytest.mark.faults
def test_four_jobs_of_one_multirun_on_one_store(nursery, site):
    """Processes of their own under the joblib launcher: their results are those of runs one after another."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder, alphas = site.folder("multirun"), ("0.6", "0.7", "0.8", "1.0")
    command = [*site.base, *FIA[:-1], "method.r2=0.25"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "run.py", "-m", *command, f"method.alpha={','.join(alphas)}"),
            *("hydra/launcher=joblib", "hydra.launcher.n_jobs=4"),
        ],
        cwd=folder, capture_output=True, text=True, timeout=600,
        env=environment | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = site.folder("one-by-one")
    assert nursery.run(alone, [[*command, f"method.alpha={alpha}"] for alpha in alphas]).code == 0
    assert len(_values(folder)) == 4 and _values(folder) == _values(alone)
    assert pictures(folder) == pictures(alone)
    assert leftovers(folder / "store") == []


def _values(folder: Path) -> dict[str, list]:
    """Metrics by the record's name: where a run's store lies is part of its configuration, not of its name."""
    return {name: [data["metrics"], data["unedited"]] for name, data in records(folder).items()}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(bytes(data))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [_flip, _cut], ids=["flipped", "cut"])
def test_whatever_is_damaged_is_made_again_and_never_scored(nursery, site, whole, damage):
    """Edits, statistics, drawn pictures, metric rows and pictures, all of them at once."""
    folder = site.folder(f"damaged{damage.__name__}")
    store = folder / "store"
    shutil.copytree(whole[0] / "store", store)
    largest = [
        max(path.iterdir(), key=lambda file: file.stat().st_size) for path in store.glob("*/??/*") if path.is_dir()
    ]
    for path in [*largest, *store.glob("image/??/*.png")]:
        damage(path)
    assert len(list(damaged(store))) == len(largest) + len(pictures(whole[0]))
    outcome = nursery.run(folder, site.commands)
    assert outcome.code == 0, outcome.errors
    kinds = {path.relative_to(store).parts[0] for path in largest} | {"image"}
    assert [kind for kind in kinds if f"{kind} " not in _damage_lines(outcome.errors)] == []
    assert records(folder) == records(whole[0]) and pictures(folder) == pictures(whole[0])
    assert list(damaged(store)) == []


def _damage_lines(errors: str) -> str:
    return "\n".join(line for line in errors.splitlines() if "is damaged" in line)


@pytest.mark.parametrize("damage", [_flip, _cut], ids=["flipped", "cut"])
def test_a_damaged_checkpoint_is_not_trained_on(random_sd_model, tmp_path, monkeypatch, caplog, damage):
    from harness import trainer
    from harness.method import Scratch

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    names, steps = trainer.parameter_names(random_sd_model, "xattn_kv"), []
    text = random_sd_model.encode(["a tench"])

    def loss(network, draw):
        steps.append(draw.step)
        z, t = draw.noise(text.hidden.new_zeros(1, 4, 8, 8)), draw.timesteps()
        return network.predict(z, t, text).square().mean()

    def train() -> dict:
        settings = trainer.Settings(learning_rate=1e-3, batch=1)
        return trainer.train(
            random_sd_model, names, loss, settings, steps=2, seed=0, label="toy", scratch=Scratch(tmp_path)
        )

    whole = train()
    damage(tmp_path / trainer.CHECKPOINT)
    again = train()
    assert steps == [0, 1, 0, 1] and "is damaged" in caplog.text
    assert whole.keys() == again.keys() and all((whole[name] == again[name]).all() for name in whole)


def test_a_picture_does_not_depend_on_which_others_are_missing(random_sd_model, tmp_path):
    """A picture's place in its batch follows from its row: a resumed run then has the same bits on every device.

    The model here is one whose pictures depend on the place, as kernels may in their last bits.
    """
    from harness.generate import generate
    from harness.sampler import Sampler
    from harness.store import Store
    from harness.task import PromptSet, Row

    plain = random_sd_model.latents

    def with_place(seeds, width=None, height=None):
        noise = plain(seeds, width, height)
        return noise + 0.1 * noise.new_tensor(range(len(noise))).view(-1, 1, 1, 1)

    random_sd_model.latents = with_place
    prompts = PromptSet("classes", tuple(Row(f"r{i}", f"picture {i}", i) for i in range(7)))

    def draw(folder: Path) -> dict[str, bytes]:
        generate(
            random_sd_model, None, prompts, Sampler("ddim", 1, 1.0), Store(folder / "store"),
            batch_size=3, progress=False,
        )  # fmt: skip
        return pictures(folder)

    whole = draw(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for path in sorted((tmp_path / "resumed" / "store" / "image").glob("??/*.png"))[::2]:
        path.unlink()
    assert draw(tmp_path / "resumed") == whole
