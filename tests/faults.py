"""The fault suite: real runs that are killed, resumed and compared with an unbroken one. `make faults`.

The runs are small (a random model, the toy suite) and complete: calibration, an export, two trained methods, pictures,
scores, records. A *nursery* process imports everything once and forks a child for every run. A child counts what it
does to the files below its folder (openings for writing, renames, removals, new folders) and is struck at a chosen
count: the same seed hits the same moment on every machine, and every state that the disk can be in has a number. Every
other kill comes from outside instead, at a seeded share of the unbroken run's time, and strikes inside computations.

    python tests/faults.py [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["method.sampler.name=ddim", "method.sampler.steps=2"]
FIA = ["method=fia", *SMALL, "method.num_pairs=1", "method.words=[road]", "method.steps=1", "method.r2=0.3"]
FIA = [*FIA, "method.alpha=1.0"]
SALUN = ["method=salun", *SMALL, "method.images=2", "method.retain_images=2", "method.epochs=2", "method.batch=2"]
SALUN = [*SALUN, "method.learning_rate=1e-3", "method.parameters=xattn"]
MIM_MU = ["method=mim_mu", *SMALL, "method.images=2", "method.epochs=2", "method.batch=2", "method.precision=float32"]
MIM_MU = [*MIM_MU, "method.learning_rate=1e-3", "method.parameters=xattn", "edit_only=true"]
# Where the first run exports its edit.
EXPORT = "out/fia"
SIZE = ["task.n=3", "quality.n=3", "model.batch_size=4", "device=cpu"]
# What a record says about the run and not about the result.
TIMES = ("created", "cost", "counts", "environment", "sha256")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}
# A full disk still lets files be renamed and removed.
REFUSED = {"full": (errno.ENOSPC, {"open", "os.mkdir"}), "readonly": (errno.EROFS, {"open", *CHANGES})}


@dataclass
class Outcome:
    """How a child ended.

    Attributes:
        code: of its exit; minus the signal where one ended it.
        events: what it did to files.
        errors: its standard error.
        seconds: how long it ran.
    """

    code: int
    events: int
    errors: str
    seconds: float


@dataclass
class Fault:
    """What happens to a child.

    Attributes:
        what: `kill`, `term` or `interrupt`; `full`, no room on the disk from then on; `readonly`, a store that can
            only be read.
        at: at which change of a file.
        after: instead, so many seconds after its start, from outside; for `kill`.
    """

    what: str
    at: int = 0
    after: float = 0.0


class Nursery:
    """Forks runs from one process that has imported everything. Use as a context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def run(self, folder: Path, commands: Sequence[Sequence[str]], fault: Fault | None = None) -> Outcome:
        """Run command lines one after another in one child; it stops at the first that fails."""
        return self.run_together([(folder, commands)], fault)[0]

    def run_together(self, children: Sequence[tuple[Path, Any]], fault: Fault | None = None) -> list[Outcome]:
        """The same for several children at once."""
        jobs = [{"folder": str(folder), "commands": commands} for folder, commands in children]
        self._process.stdin.write(json.dumps({"jobs": jobs, "fault": fault and vars(fault)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the nursery has died")
        return [Outcome(**outcome) for outcome in json.loads(answer)]


@dataclass
class Site:
    """Where runs happen: the model and the configuration are shared, each run has a folder of its own."""

    root: Path
    commands: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        import random_models
        import toy_suite

        model = random_models.save(random_models.random_sd(), self.root / "model")
        self.base = ["--config-dir", str(toy_suite.write(self.root / "conf")), *toy_suite.run_on(model), *SIZE]
        self.commands = [[*self.base, *FIA, f"export={EXPORT}"], [*self.base, *SALUN], [*self.base, *MIM_MU]]

    def folder(self, name: str) -> Path:
        """A new folder for a run, which has its store and records in it."""
        folder = self.root / name
        folder.mkdir()
        return folder


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder's records, by file name: everything but times, counts of work and machine."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))}
    return {name: {key: value for key, value in data.items() if key not in TIMES} for name, data in found.items()}


def made(folder: Path) -> int:
    """Pictures that the runs of all records in a folder have made."""
    paths = (folder / "runs").glob("*.json")
    return sum(json.loads(path.read_text())["counts"]["images_made"] for path in paths)


def pictures(folder: Path) -> dict[str, bytes]:
    """The stored pictures by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "store" / "image").glob("??/*.png"))}


def exported(folder: Path) -> dict[str, bytes]:
    """The files of the exported model by name."""
    files = (path for path in sorted((folder / EXPORT).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[str]:
    """Temporary files, half-filled folders and unfinished work below a folder; locks may stay."""
    odd = []
    for path in folder.rglob("*"):
        hidden = path.name.startswith(".") and path.name not in (".locks", ".scratch", ".tmp")
        if hidden or path.suffix in (".tmp", ".part") or path.parent.name == ".scratch":
            odd.append(path.relative_to(folder).as_posix())
    return sorted(odd)


def faults_of(broken: Path, whole: Path, before: int) -> list[str]:
    """What is wrong with a resumed run, compared with an unbroken one.

    Args:
        before: pictures that were stored when the run was broken.
    """
    wrong = []
    one, other = records(broken), records(whole)
    for name, expected in other.items():
        if one.get(name) != expected:
            wrong.append(f"record {name}: {_first_difference(one.get(name), expected)}")
    one, other = pictures(broken), pictures(whole)
    changed = [name for name in one if name in other and one[name] != other[name]]
    if changed:
        wrong.append(f"{len(changed)} of {len(other)} pictures differ, such as {changed[0]}")
    if set(one) != set(other):
        wrong.append(f"{len(set(one) ^ set(other))} pictures are on one side only")
    if exported(broken) != exported(whole):
        wrong.append("the exported models differ")
    if made(broken) != len(other) - before:
        wrong.append(f"{made(broken)} pictures were made after the break, {len(other) - before} were missing")
    return wrong + [f"left behind: {name}" for name in leftovers(broken)]


def _first_difference(one: Any, other: Any, where: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                return _first_difference(one.get(name), other.get(name), f"{where}.{name}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (item, twin) in enumerate(zip(one, other)):
            if item != twin:
                return _first_difference(item, twin, f"{where}[{index}]")
    return f"{where}: {one!r:.80} and {other!r:.80}"


# The nursery


def _serve() -> None:
    """Answer jobs until standard input ends: one line in, one line out."""
    import random_models

    import run  # noqa: F401
    from baselines import mim_mu, salun  # noqa: F401
    from eval import classify, fid  # noqa: F401
    from experiments import run as pipeline  # noqa: F401
    from fia import fia  # noqa: F401

    # Libraries load their modules where they are first used; here, so that not every child does it again.
    random_models.random_sd()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    for line in sys.stdin:
        request = json.loads(line)
        start, after = time.monotonic(), (request["fault"] or {}).get("after")
        pids = [_fork(job, request["fault"]) for job in request["jobs"]]
        outcomes = []
        for pid, job in zip(pids, request["jobs"]):
            code = os.waitstatus_to_exitcode(_wait(pid, start + after if after else None))
            seconds = time.monotonic() - start
            log, count = Path(job["folder"]) / "log", Path(job["folder"]) / f"events-{pid}"
            events = int(count.read_text()) if count.exists() else 0
            count.unlink(missing_ok=True)
            errors = log.read_text(errors="replace") if log.exists() else ""
            outcomes.append({"code": code, "events": events, "errors": errors, "seconds": seconds})
        answers.write(json.dumps(outcomes) + "\n")
        answers.flush()


def _wait(pid: int, until: float | None) -> int:
    """Wait for a child and return its status; kill it where it still runs at that time."""
    while until is not None and time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    if until is not None:
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _fork(job: dict[str, Any], fault: dict[str, Any] | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = _child(Path(job["folder"]), job["commands"], fault)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _child(folder: Path, commands: Sequence[Sequence[str]], fault: dict[str, Any] | None) -> int:
    import run
    from harness import trainer

    # A checkpoint a step, so that kills between two of them are tried too.
    trainer.CHECKPOINT_SECONDS = trainer.CHECKPOINT_SHARE = 0
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may have it ignored
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    events = _strike(folder, fault)
    code = 0
    for argv in commands:
        code = run.main(list(argv))
        if code:
            break
    (folder / f"events-{os.getpid()}").write_text(str(events[0]))
    return code


def _strike(folder: Path, fault: dict[str, Any] | None) -> list[int]:
    """Count the changes of files below `folder` and let the fault happen; returns the running count."""
    count, below = [0], tuple(str(folder / name) for name in ("store", "runs", "out"))
    if fault and fault["what"] == "readonly":
        below = below[:1]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        if not os.path.join(folder, os.fspath(path)).startswith(below):
            return
        count[0] += 1
        if fault is None or fault["after"] or count[0] < fault["at"]:
            return
        if fault["what"] in REFUSED:
            number, events = REFUSED[fault["what"]]
            # Of a folder that exists the system says just that, whatever the disk is like.
            if event in events and not (event == "os.mkdir" and os.path.isdir(path)):
                raise OSError(number, os.strerror(number), os.fspath(path))
        elif count[0] == fault["at"]:
            os.kill(os.getpid(), SIGNALS[fault["what"]])

    sys.addaudithook(hook)
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Kill and resume runs at seeded moments; one line each, exit code 1 where a resumed run is wrong."""
    parser = argparse.ArgumentParser(prog="python tests/faults.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as place, Nursery() as nursery:
        site = Site(Path(place))
        whole = site.folder("whole")
        unbroken = nursery.run(whole, site.commands)
        if unbroken.code:
            print(f"the unbroken run ends with {unbroken.code}:\n{unbroken.errors}", file=sys.stderr)
            return 1
        print(f"unbroken: {len(pictures(whole))} pictures, {unbroken.events} changes of files")
        draw = random.Random(options.seed)
        for number in range(1, options.kills + 1):
            at, share = draw.randint(1, unbroken.events), draw.random()
            fault = Fault("kill", at) if number % 2 else Fault("kill", after=share * unbroken.seconds)
            moment = f"change {at}" if number % 2 else f"{share:.1%} of the time"
            folder = site.folder(f"kill-{number}")
            wrong = kill_and_resume(nursery, folder, whole, site.commands, fault)
            bad += bool(wrong)
            print(f"kill {number:2d} at {moment}: {'; '.join(wrong) if wrong else 'resumed, the same result'}")
            shutil.rmtree(folder)
    print(f"{options.kills - bad} of {options.kills} resumed runs are the same as the unbroken one")
    return 1 if bad else 0


def kill_and_resume(
    nursery: Nursery, folder: Path, whole: Path, commands: Sequence[Sequence[str]], fault: Fault
) -> list[str]:
    """Kill a run, run it again, and say what is wrong with the result."""
    killed = nursery.run(folder, commands, fault)
    while fault.after and killed.code == 0:  # it was quicker than the unbroken run, and done before the kill
        shutil.rmtree(folder)
        folder.mkdir()
        fault = replace(fault, after=0.8 * fault.after)
        killed = nursery.run(folder, commands, fault)
    if killed.code != -signal.SIGKILL:
        return [f"the run was not killed but ended with {killed.code}"]
    # Records of the killed run count pictures that are stored: only those of the resumed run are of interest.
    before = len(pictures(folder))
    resumed = nursery.run(folder, commands)
    if resumed.code:
        return [f"the resumed run ended with {resumed.code}: {resumed.errors[-500:]}"]
    return faults_of(folder, whole, before)


if __name__ == "__main__":
    if sys.argv[1:] == ["nursery"]:
        _serve()
    else:
        sys.exit(main())
