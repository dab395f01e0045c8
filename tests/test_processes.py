"""One run on two processes, with real gloo between them: the same pictures and the same record.

They are forked from this one and started as a launcher would start them, by environment variables; there is none that
could clean up after them, so whatever ends them is our own. One test starts them with `torchrun` and with `accelerate
launch`, as users do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_explicit
from accelerate.state import AcceleratorState

import run
from experiments import cli, scores
from harness import generate, processes
from harness.generate import ImageSet
from harness.processes import Team
from harness.task import PromptSet, Row

LIMIT = 600  # seconds, for a busy machine; what ends by itself ends in a few
SMALL = ["method=uce", "device=cpu", "task.n=3", "quality.n=3"]


def ranks(
    folder: Path, argv: list[str], tamper: Callable[[int], None] = lambda rank: None
) -> list[tuple[int, str, str]]:
    """Run a command line on two processes: (exit code or minus the signal, output, errors) of each.

    `tamper` is called with the rank first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    folder.mkdir(exist_ok=True)
    waiting: dict[int, int] = {}
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.environ.update(where, RANK=str(rank), LOCAL_RANK=str(rank))
                # A test of this process may have trained, on one process; a launcher's processes are new.
                AcceleratorState._reset_state(reset_partial_state=True)
                sys.stdout, sys.stderr = ((folder / f"{name}{rank}").open("w") for name in ("out", "err"))
                tamper(rank)
                code = run.main(argv)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        waiting[child] = rank
    codes, end = {}, time.monotonic() + LIMIT
    while waiting and time.monotonic() < end:
        for child in list(waiting):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[waiting.pop(child)] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for child in waiting:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not waiting, f"ranks {sorted(waiting.values())} hang; the others ended with {codes}"
    return [(codes[rank], *((folder / f"{name}{rank}").read_text() for name in ("out", "err"))) for rank in range(2)]


@pytest.fixture
def commands(call: Any, random_sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Command lines of a small run; scores are stored in chunks of four."""
    import toy_suite

    monkeypatch.setattr(generate, "SCORED", 4)
    monkeypatch.setattr(processes, "_joined", False)

    def of(place: str, *arguments: str) -> list[str]:
        own = [f"store={place}/store", f"records={place}/records"]
        return ["--config-dir", str(call.own), *toy_suite.run_on(random_sd_folder), *SMALL, *own, *arguments]

    of.work = call.work
    return of


def only_record(place: Path) -> dict[str, Any]:
    (path,) = (place / "records").glob("*.json")
    return json.loads(path.read_text())


def pictures(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place / "store" / "image").glob("??/*.png")}


RESULTS = ("metrics", "unedited", "fingerprints", "edit", "counts", "note", "concepts", "keep")


def test_two_processes_make_the_same_pictures_and_the_same_record_as_one(commands: Any, capsys):
    assert run.main(commands("one")) == cli.DONE
    capsys.readouterr()
    first, second = ranks(commands.work / "logs", commands("two"))
    assert first[0] == second[0] == cli.DONE, (first, second)
    # Only the main process speaks.
    assert first[1].count("record: ") == 1 and second[1:] == ("", "")
    one, two = (only_record(commands.work / place) for place in ("one", "two"))
    assert {name: two[name] for name in RESULTS} == {name: one[name] for name in RESULTS}
    assert pictures(commands.work / "two") == pictures(commands.work / "one")
    # 3 classes x 3 pictures and 3 captions, before and after: each was made once, by the one or the other.
    assert two["counts"]["images_made"] == len(pictures(commands.work / "two")) == 24
    assert two["cost"]["unet_samples"] == one["cost"]["unet_samples"] > 0
    assert (one["cost"]["processes"], two["cost"]["processes"]) == (1, 2)
    samples = {name: stage["unet_samples"] for name, stage in two["cost"]["stages"].items()}
    assert samples == {name: stage["unet_samples"] for name, stage in one["cost"]["stages"].items()}


@pytest.mark.faults
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --nproc_per_node=2 --master_port={port}",
        # Without a configuration file of its own accelerate asks for the others; `--cpu` would start one process.
        "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
        "--dynamo_backend=no --main_process_port={port}",
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers_start_a_run_on_two_processes(commands: Any, launcher: str):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [sys.executable, "-m", *launcher.format(port=port).split()]
    argv = [*started, run.__file__, *commands("two", "method=none", "task.n=1", "quality.n=2")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == cli.DONE, done.stderr
    assert done.stdout.count("record: ") == 1
    record = only_record(commands.work / "two")
    assert record["cost"]["processes"] == 2
    assert record["counts"]["images_made"] == len(pictures(commands.work / "two")) == 3 + 2


def test_the_main_process_trains_by_itself_and_the_others_find_the_edit(commands: Any):
    small = ["images=1", "retain_images=1", "epochs=1", "batch=2", "sampler.name=ddim", "sampler.steps=2"]
    argv = [*commands("two", *(f"method.{one}" for one in small)), "edit_only=true"]
    argv = [{"method=uce": "method=salun"}.get(one, one) for one in argv]
    first, second = ranks(commands.work / "logs", argv)
    assert first[0] == second[0] == cli.DONE, (first, second)
    assert only_record(commands.work / "two")["edit"]["kind"] == "delta"


def test_a_killed_process_ends_the_run_and_the_next_goes_on(commands: Any, capsys):
    inputs = generate._inputs

    def tamper(rank: int) -> None:
        batches = []

        def killed(*args: Any) -> Any:
            batches.append(rank)
            if rank == 1 and len(batches) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return inputs(*args)

        generate._inputs = killed

    first, second = ranks(commands.work / "logs", commands("two"), tamper)
    assert second[0] == -signal.SIGKILL
    assert first[0] == cli.FAILED and "record: " not in first[1]
    assert first[2].rstrip().splitlines()[-1].startswith("PeerLost: another process of this run is gone")
    assert "Traceback" not in first[2]
    kept = len(pictures(commands.work / "two"))
    assert kept > 0
    assert run.main(commands("two")) == cli.DONE
    assert only_record(commands.work / "two")["counts"]["images_reused"] == kept


def test_a_process_that_fails_says_why_and_the_others_are_silent(commands: Any):
    share = scores._share_rows

    def tamper(rank: int) -> None:
        def fail(*args: Any) -> None:
            if rank == 1:
                raise MemoryError("no room for the judge")
            share(*args)

        scores._share_rows = fail

    first, second = ranks(commands.work / "logs", commands("two"), tamper)
    assert (first[0], second[0]) == (cli.FAILED, cli.FAILED)
    assert second[2] == "rank 1: MemoryError: no room for the judge\n"
    assert "PeerLost" not in first[2] and "Traceback" not in first[2] and "record: " not in first[1]


def test_bad_input_is_one_line_of_all_processes(commands: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "KNOCK", processes.KNOCK / 10)
    first, second = ranks(commands.work / "logs", commands("two", "seed=-1"))
    assert (first[0], second[0]) == (cli.BAD_INPUT, cli.BAD_INPUT)
    # There is no launcher here that keeps the count of who has spoken.
    for _, _, said in (first, second):
        assert said.count("\n") == 1 and "seed=-1" in said


def test_pictures_that_nobody_keeps_are_dealt_out_by_chunks(
    commands: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generate, "CHUNK", 2)
    own = str(toy_explicit.write(tmp_path / "explicit"))
    extra = ["suite=toy_explicit", "task=i2p", "task.n=5", f"hydra.searchpath=[file://{own}]"]

    def command(place: str) -> list[str]:
        return [item for item in commands(place) if not item.startswith(("task", "suite"))] + extra

    assert run.main(command("one")) == cli.DONE
    first, second = ranks(commands.work / "logs", command("two"))
    assert first[0] == second[0] == cli.DONE, (first, second)
    one, two = (only_record(commands.work / place) for place in ("one", "two"))
    assert {name: two[name] for name in RESULTS} == {name: one[name] for name in RESULTS}
    assert len(pictures(commands.work / "two")) == 6  # the captions'


@pytest.mark.parametrize("n", [1, 4, 5, 23])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_item_has_one_process_and_its_place_in_the_batch(n: int, count: int):
    items = [(i, None, {"width": 32 if i % 3 else 64, "height": 32, "guidance": 5.0}) for i in range(n)]
    places = {
        item[0]: place
        for batch in generate._batches(items, range(n), 4)
        for place, item in batch.items()
    }  # fmt: skip
    shares = [generate._share(items, 4, Team(rank, count)) for rank in range(count)]
    assert sorted(item[0] for share in shares for item in share) == list(range(n))
    for share in shares:
        for batch in generate._batches(share, range(n), 4):
            assert {item[0]: place for place, item in batch.items()}.items() <= places.items()


def test_chunks_that_are_scored_together_are_the_whole_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generate, "SCORED", 4)
    rows = tuple(Row(f"test/{i}", f"a road {i}", i) for i in range(10))
    images = ImageSet(PromptSet("quality", rows, screened=3), [np.full((2, 2, 3), i, np.uint8) for i in range(10)], "k")
    parts = images.scored()
    assert [len(part.prompts) for part in parts] == [4, 4, 2] and len({part.key for part in parts}) == 3
    assert [row for part in parts for row in part.prompts] == list(rows)
    assert [int(image[0, 0, 0]) for part in parts for image in part.images] == list(range(10))
    assert [int(image[0, 0, 0]) for image in parts[1].images[1:3]] == [5, 6]
    assert ImageSet(PromptSet("quality", rows[:4]), images.images[:4], "k").scored()[0].key == "k"


def test_what_several_processes_cannot_do_is_one_line(call: Any, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "KNOCK", processes.KNOCK / 50)
    for arguments, words in (
        (["-m", "seed=0,1"], "a launcher gives each job a GPU"),
        (["device=cuda:1"], "say device=cuda"),
        (["replay=x.json"], "replay runs on one process"),
    ):
        code, _, err = call(*arguments)
        assert code == cli.BAD_INPUT and words in err and err.count("\n") == 1
