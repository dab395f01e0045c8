"""Two records against each other, from the rows in the store: the command and what a multirun prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from records_by_hand import changed_record

from experiments import cli, compare, side_by_side

SMALL = ["task.n=2", "quality.n=0"]
FIA = [
    *("method=fia", "method.num_pairs=1", "method.words=[road]", "method.sampler.name=ddim", "method.sampler.steps=2"),
    *("method.steps=1", "method.alpha=1.0", "method.seed=null"),
]


@pytest.fixture
def made(call):
    """Runs a small configuration in `call.work` and returns its record's path."""

    def run(*overrides: str) -> Path:
        code, out, err = call(*SMALL, *([] if "method=none" in overrides else FIA), *overrides)
        assert code == cli.DONE, err
        return Path(out.rstrip().splitlines()[-1].removeprefix("record: "))

    return run


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = compare.main([*map(str, arguments)])
    return code, *capsys.readouterr()


def values(path: Path) -> dict[tuple[str, str], float]:
    return {(m["id"], m["subject"]): m["value"] for m in json.loads(path.read_text())["metrics"]}


def test_two_records_are_compared_from_their_rows(call, made, capsys: pytest.CaptureFixture):
    own = ["--config-dir", str(call.own)]
    one, other, before = made("method.r2=0.3"), made("method.r2=0.05"), made("method=none")
    for first, second in ((one, other), (other, one), (one, before)):
        found = {(d.metric["id"], d.metric["subject"]): d.found for d in differences(first, second)}
        here, there = values(first), values(second)
        assert found.keys() == {key for key in here if "accuracy" in key[0] or "overall" in key[0]}
        assert {key: d.value for key, d in found.items()} == pytest.approx({k: here[k] - there[k] for k in found})
    # To the unedited model it is the difference that the record holds.
    kept = {
        (m["id"], m["subject"]): m["difference"] for m in json.loads(one.read_text())["metrics"] if "difference" in m
    }
    assert {key: d._asdict() for key, d in found.items()} == kept
    code, out, _ = printed(capsys, one, other, *own)
    assert code == cli.DONE and "| forget % | all | 4 |" in out and "| tench |" not in out
    assert "| tench |" in printed(capsys, one, other, "--classes", *own)[1]
    assert printed(capsys, with_photos(one), other, *own)[:2] == (cli.DONE, out.replace(one.name, "photos.json"))
    refused(call, made, capsys, one, other)


def with_photos(path: Path) -> Path:
    """A copy of the record of a run that had COCO's photos; here they are not."""
    data = json.loads(path.read_text())
    (fid,) = (metric for metric in data["config"]["suite"]["metrics"] if metric["_target_"] == "eval.fid.Fid")
    fid |= {"photos": {"_target_": "eval.coco.val2014", "folder": "elsewhere"}, "photos_name": "coco-val2014"}
    copy = path.with_name("photos.json")
    changed_record(copy, data)
    return copy


def differences(one: Path, other: Path) -> list[compare.Difference]:
    return compare.Side.of(one).differences(compare.read(other), other)


def refused(call, made, capsys: pytest.CaptureFixture, one: Path, other: Path) -> None:
    """Whatever does not let two records be compared is one line."""
    own = ["--config-dir", str(call.own)]
    longer, scoreless = made("method.r2=0.3", "task.n=3"), made("method.r2=0.2", "edit_only=true")
    foreign = one.with_name("foreign.json")
    data = json.loads(one.read_text())
    data["fingerprints"]["base"] = "0" * 64
    changed_record(foreign, data)
    for arguments, words in (
        ([one, other], "names the code toy_suite.captions"),
        ([one, longer, *own], "have other classes prompts: their rows are not pairs"),
        ([one, scoreless, *own], "has no scores (edit_only=true)"),
        ([foreign, other, *own], "this checkout has another model than the record"),
        ([one, "none.json", *own], "none.json: there is no such record"),
        ([one, other, "--store", "elsewhere", *own], "are not in the store"),
    ):
        code, out, err = printed(capsys, *arguments)
        assert code == cli.BAD_INPUT and out == "" and err.count("\n") == 1 and words in err, err


def test_repeated_records_are_compared_repeat_by_repeat(call, made, capsys: pytest.CaptureFixture):
    one, other = made("method.r2=0.3", "repeats=3"), made("method.r2=0.05", "repeats=3")
    here, there = values(one), values(other)
    for found in differences(one, other):
        key = found.metric["id"], found.metric["subject"]
        assert found.found.value == pytest.approx(here[key] - there[key])
        assert -1 <= found.found.low <= found.found.value <= found.found.high <= 1
    single = made("method.r2=0.3")
    code, _, err = printed(capsys, one, single, "--config-dir", str(call.own))
    assert code == cli.BAD_INPUT and "have another repeats: 3 and 1" in err


def test_a_multirun_names_what_it_cannot_compare(made):
    one, other = made("method.r2=0.3"), made("method.r2=0.3", "task.n=3")
    (line,) = compare.against_first([one, other])
    assert re.match(r"No differences: .* have other classes prompts", line)
    assert compare.against_first([one, one]) == compare.against_first([one, made("method=none")]) == []


def test_methods_side_by_side_are_the_stored_pictures(call, made, capsys: pytest.CaptureFixture, monkeypatch):
    """Pictures of a run with two a class stand in the columns; records of other prompts are refused."""
    one, other, few = made("method.r2=0.3"), made("method.r2=0.05"), made("method.r2=0.3", "task.split=tuning")
    shown = {}
    monkeypatch.setattr(side_by_side, "method_grid", lambda columns, forget, caption: shown.update(columns) or caption)
    monkeypatch.setattr(side_by_side, "save_png", lambda sheet, path: path)

    def run(*arguments: str) -> tuple[int, str]:
        shown.clear()
        own = ["--config-dir", str(call.own), "--out", str(call.work / "new.png")]
        code = side_by_side.main([*map(str, arguments), *own])
        return code, capsys.readouterr().err

    assert run(one, other) == (cli.DONE, "")
    assert list(shown) == ["unedited", "fia", "fia 2"]
    assert all(len(column) == len(shown["unedited"]) > 1 for column in shown.values())
    first = {name: column["tench"].copy() for name, column in shown.items()}
    assert (first["unedited"] != first["fia"]).any() and (first["fia"] != first["fia 2"]).any()
    assert run(one, "--number", "1")[0] == cli.DONE and (shown["unedited"]["tench"] != first["unedited"]).any()
    for arguments, message in (
        ((one, "--number", "2"), "tench has 2 pictures"),
        ((one, few), "are of other prompts, noise or models"),
        ((one, "--store", str(call.work / "nowhere")), "nowhere"),
    ):
        code, err = run(*arguments)
        assert code == cli.BAD_INPUT and message in err and err.count("\n") == 1
