"""Multiruns whose jobs are processes of their own, under Hydra's launchers. They are small and come with the lock."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from records_by_hand import write_record

from experiments import cli, gpus, sweep
from harness import generate
from harness.sampler import Sampler
from harness.store import Store
from harness.task import PromptSet, Row

BASES = {"one": "01" * 32, "two": "02" * 32}  # models by name: hashes of their files
LIMIT = 120  # seconds, for a busy machine; what ends by itself ends in a few
SAMPLER = Sampler("ddim", 2, 4.0)
ROWS = PromptSet("classes", tuple(Row(f"r{i}", f"a road {i}", seed=i) for i in range(8)))


def installed(name: str) -> bool:
    return importlib.util.find_spec("hydra_plugins") is not None and bool(
        importlib.util.find_spec(f"hydra_plugins.{name}")
    )


@pytest.fixture
def multirun(call: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs a multirun of the toy suite under a launcher; jobs import the suite from here."""

    def multirun(launcher: str, plugin: str, *arguments: str) -> tuple[int, str, str]:
        if not installed(plugin):
            pytest.skip(f"{plugin} is not installed")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        return call("-m", f"hydra/launcher={launcher}", *arguments, "method=none", "quality=off")

    return multirun


def failed(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("failed: ")]


def check_that_one_of_two_jobs_is_done(code: int, out: str, err: str) -> None:
    """Of seed=3,-1: one table, one record, and a line for the seed that there is not."""
    assert code == cli.BAD_INPUT, err
    # Whatever the jobs print of their own, the end is the multirun's.
    end = out[out.rindex("| method |") :]
    rows = [line.split("|")[1].strip() for line in end.splitlines() if line.startswith("| ")]
    assert rows == ["method", "---", "none"]
    record = Path(end.rstrip().splitlines()[-1].removeprefix("record: "))
    assert json.loads(record.read_text())["config"]["seed"] == 3
    (line,) = failed(err)
    assert "seed=-1" in line and "an integer from 0" in line


@pytest.mark.faults
def test_jobs_under_joblib_end_in_one_table_and_one_exit_code(multirun: Any):
    code, out, err = multirun("joblib", "hydra_joblib_launcher", "hydra.launcher.n_jobs=2", "seed=3,-1")
    check_that_one_of_two_jobs_is_done(code, out, err)


def test_jobs_under_submitit_end_in_one_table_and_leave_their_logs(multirun: Any, call: Any):
    options = ["hydra.launcher.timeout_min=5", "seed=3,-1"]
    code, out, err = multirun("submitit_local", "hydra_submitit_launcher", *options)
    check_that_one_of_two_jobs_is_done(code, out, err)
    assert len(list(call.work.glob("runs/multirun/*/.submitit/*/*.out"))) == 2


class Jobs:
    """Two jobs of a multirun that run beside each other in this test: each waits for the other with its first batch."""

    def __init__(self, model: Any, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.model, self.folder = model, folder
        self.meet, self.found = context.Barrier(2), context.SimpleQueue()
        self.processes = [context.Process(target=self.run) for _ in range(2)]

    def run(self) -> None:
        decode = self.model.decode

        def first(*args: Any, **options: Any) -> Any:
            self.meet.wait(LIMIT)
            self.model.decode = decode
            return decode(*args, **options)

        self.model.decode = first
        images = generate.generate(self.model, None, ROWS, SAMPLER, Store(self.folder), batch_size=2, progress=False)
        self.found.put((images.made, images.reused, [picture.tobytes() for picture in images.images]))

    def done(self) -> list[tuple[int, int, list[bytes]]]:
        for process in self.processes:
            process.start()
        for process in self.processes:
            process.join(LIMIT)
        for process in self.processes:
            process.kill()
        assert [process.exitcode for process in self.processes] == [0, 0]
        return [self.found.get() for _ in self.processes]


def test_jobs_beside_each_other_make_every_unedited_picture_once(
    random_sd_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generate, "CLAIMED", 2)
    one, other = Jobs(random_sd_model, tmp_path).done()
    # Both were at work at the same time, on different pictures, and in the end both have all of them.
    assert one[0] + other[0] == len(ROWS) and min(one[0], other[0]) >= 2
    assert one[0] + one[1] == other[0] + other[1] == len(ROWS)
    assert one[2] == other[2] and len(set(one[2])) == len(ROWS)
    assert len(list((tmp_path / "image").glob("??/*.png"))) == len(ROWS)


def test_a_job_that_ends_lets_go_of_its_pictures(random_sd_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(random_sd_model, "decode", interrupted)
        generate.generate(random_sd_model, None, ROWS, SAMPLER, Store(tmp_path), batch_size=2, progress=False)
    for path in (tmp_path / ".locks").iterdir():
        with FileLock(path, timeout=0):
            pass


def test_a_launcher_that_is_not_installed_is_named(call):
    code, _, err = call("-m", "hydra/launcher=ray", "seed=0,1", small=False)
    if installed("hydra_ray_launcher"):
        pytest.skip("hydra_ray_launcher is installed")
    assert code == cli.BAD_INPUT and err.count("\n") == 1
    assert "hydra/launcher 'ray'" in err and "docs/launchers.md" in err


def test_a_killed_job_counts_as_failed_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for number, outcome in enumerate([{"overrides": ["seed=0"], "record": None, "error": "too bad"}, None]):
        (tmp_path / str(number)).mkdir()
        if outcome:
            (tmp_path / str(number) / sweep.OUTCOME).write_text(json.dumps(outcome))
    (tmp_path / sweep.SCHEDULER_LOGS).mkdir()
    monkeypatch.setattr(sweep, "failures", [])
    sweep.gather(tmp_path)
    assert sweep.failures == ["seed=0: too bad", "job 1: its process ended before it did"]
    # The logs, which may say why, stay where no job left a record.
    monkeypatch.setattr(sweep, "folder", tmp_path)
    sweep.forget_empty()
    assert (tmp_path / sweep.SCHEDULER_LOGS).is_dir()


def test_a_multirun_over_tasks_and_models_ends_with_a_table_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    entry = {"id": "clip/x", "subject": "all", "value": 30.0, "n": 5, "low": 29.0, "high": 31.0}
    for number, (task, model) in enumerate([("a", "one"), ("b", "one"), ("a", "two"), ("a", "one")]):
        config = {"method": {"name": "fia", "alpha": number}, "task": {"name": task, "classes": [task]}}
        data = {"method": "fia", "task": task, "model": model, "split": "test", "fingerprints": {"base": BASES[model]}}
        data |= {"config": config, "metrics": [{**entry, "higher_is_better": True}], "edit": {"kind": "none"}}
        (tmp_path / "jobs" / str(number)).mkdir(parents=True)
        path = write_record(tmp_path / f"{number}.json", data)
        outcome = {"overrides": [], "record": str(path), "error": None}
        (tmp_path / "jobs" / str(number) / sweep.OUTCOME).write_text(json.dumps(outcome))
    sweep.gather(tmp_path / "jobs")
    out = capsys.readouterr().out
    assert out.startswith("\n### a, model one\n") and out.count("\n### ") == 3
    # Beside each other stand runs of one task and model, which differ in alpha; no list of classes is a column.
    assert [line for line in out.splitlines() if line.startswith("| method")] == [
        "| method | alpha | n | CLIP |", "| method | n | CLIP |", "| method | n | CLIP |",
    ]  # fmt: skip
    assert (tmp_path / "jobs" / "table.md").read_text().count("### ") == 3


def test_jobs_beside_each_other_take_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "LOCKS", tmp_path)
    cards = [SimpleNamespace(uuid="card-b"), SimpleNamespace(uuid="card-a")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    taken = []
    for _ in range(2):  # two processes; the second call in one finds what it holds
        monkeypatch.setattr(gpus, "_held", None)
        assert gpus.free_gpu(2) == gpus.free_gpu(2)
        taken.append(gpus._held)
    assert [number for number, _ in taken] == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-card-a.lock", "gpu-card-b.lock"]
    monkeypatch.setattr(gpus, "_held", None)
    with pytest.raises(RuntimeError, match=r"with joblib say hydra\.launcher\.n_jobs=2, with submitit_local"):
        gpus.free_gpu(2)
    taken[0][1].release()
    assert gpus.free_gpu(2) == 0
