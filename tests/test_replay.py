"""Replay: a record that is computed again is the same, and every difference is seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import toy_suite
from records_by_hand import changed_record

from experiments import cli
from experiments.replay import Difference, differences, environment_changes
from experiments.targets import targets

RUN = ["method=none", "logger=none"]


@pytest.fixture
def recorded(call) -> Path:
    """A record of a small run, made in `call.work`."""
    code, out, err = call(*RUN)
    assert code == cli.DONE, err
    return Path(out.rstrip().splitlines()[-1].removeprefix("record: "))


def changed(path: Path, change) -> Path:
    data = json.loads(path.read_text())
    change(data)
    return changed_record(path.with_name("changed.json"), data)


def test_a_record_is_computed_again_in_a_fresh_store(call, recorded: Path, tmp_path: Path, monkeypatch):
    passing = tmp_path / "passing"
    (passing / "forget-bench-replay-store-killed" / "image").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(passing))
    before = {path: path.read_bytes() for path in call.work.rglob("*") if path.is_file()}
    code, out, err = call(f"replay={recorded}", small=False)
    assert code == cli.DONE, err
    assert "computed again: the edit and all 5 pictures, in a fresh store" in out
    assert "the same device, hardware, versions and commit" in out and out.rstrip().endswith("compared: equal")
    assert {path: path.read_bytes() for path in call.work.rglob("*") if path.is_file()} == before
    assert list(passing.iterdir()) == [], "nothing is left of this replay, nor of the killed one"


def test_a_replay_from_a_store_says_that_it_found_everything(call, recorded: Path):
    code, out, _ = call(f"replay={recorded}", "store=store", "records=again", small=False)
    assert code == cli.DONE and "0 pictures were computed again, 5 found" in out
    assert "does not show that it can be computed again" in out
    (again,) = Path("again").glob("*.json")
    assert again.name == recorded.name


def test_another_value_is_a_failure_and_is_shown(call, recorded: Path):
    def other(data: dict) -> None:
        data["metrics"][0]["value"] += 0.125
        del data["environment"]["judges"]  # as in a record from before they were written down

    copy = changed(recorded, other)
    metric = json.loads(copy.read_text())["metrics"][0]
    code, out, err = call(f"replay={copy}", small=False)
    assert code == cli.FAILED and err.rstrip().splitlines()[-1].startswith("ReplayDiffers: 1 differences from")
    assert f"edited, {metric['id']} of {metric['subject']}: {metric['value']}" in out and "DIFFERENT" in out
    assert "judges" not in out


def test_judges_and_photos_are_named_by_hash_and_are_no_failure_by_themselves(call, monkeypatch):
    suite = call.own / "suite" / "toy.yaml"
    given = 'photos: {_target_: toy_suite.photos, _partial_: true}, photos_name: "grey"'
    suite.write_text(suite.read_text().replace('photos: null, photos_name: ""', given))
    code, out, err = call(*RUN)
    assert code == cli.DONE, err
    path = Path(out.rstrip().splitlines()[-1].removeprefix("record: "))
    found = json.loads(path.read_text())["environment"]
    assert found["judges"] == {"classify/toy-colour": "colour-1", "features/toy-means": "means-1"}
    ((id, photos),) = found["photos"].items()
    assert id == "features/toy-means" and re.fullmatch("[0-9a-f]{64}", photos)
    monkeypatch.setattr(toy_suite.ColourJudge, "fingerprint", "colour-2")
    again = (f"replay={path}", "store=store", "records=again")
    code, out, err = call(*again, small=False)
    assert code == cli.DONE, err
    assert "judges.classify/toy-colour: colour-1 -> colour-2\n" in out and out.rstrip().endswith("compared: equal")
    assert next(Path("again").glob("*.json")).name == path.name, "the hashes are no part of the identity"
    # Other photos give another FID, and that is one.
    monkeypatch.setattr(toy_suite, "photos", lambda n, split: [np.zeros((8, 8, 3), np.uint8)] * n)
    code, out, err = call(*again, small=False)
    assert code == cli.FAILED and f"photos.{id}: {photos[:57]}... -> " in out
    assert "fid/toy-means/grey-n2 of all: " in out


def test_the_preset_and_what_decides_speed_are_put_back(call):
    quick = ["method.num_pairs=1", "method.words=[road]", "method.sampler.name=ddim", "method.sampler.steps=2"]
    code, out, err = call("method=fia", *quick, "method.steps=1", "method.r2=0.3", "method.chunk=3", "edit_only=true")
    assert code == cli.DONE, err
    path = Path(out.rstrip().splitlines()[-1].removeprefix("record: "))
    code, out, err = call(f"replay={path}", small=False)
    assert code == cli.DONE, err
    assert "0 values compared: equal" in out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: d["config"]["method"].update(_target_="os.system"), "names the code os.system, which neither conf/"),
        (
            lambda d: d["config"]["suite"]["captions"].update(_target_="harness.store.os.system"),
            "harness.store.os.system",
        ),
        (lambda d: d["config"]["suite"]["metrics"][0]["judge"].update(_target_="subprocess.run"), "subprocess.run"),
        (lambda d: d["config"]["model"].update(path="${oc.env:HOME}"), "a recorded configuration is resolved"),
        (lambda d: d["config"].pop("method"), "its configuration has no method"),
        (lambda d: d["config"].update(colour="red"), "unknown key 'colour'"),
        (lambda d: d.pop("metrics"), "the field 'metrics' is missing"),
        (lambda d: d.update(schema=1), "schema 1 is not known"),
    ],
)
def test_what_is_no_record_or_names_other_code_is_refused(call, recorded: Path, change, line: str):
    copy = changed(recorded, change)
    code, out, err = call(f"replay={copy}", small=False)
    assert code == cli.BAD_INPUT and line in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["method=uce"], "method=uce: a replay runs the record's own configuration"),
        (["records=runs"], "records=runs holds the record itself"),
        (["device=abacus"], "device='abacus'"),
    ],
)
def test_what_cannot_be_said_beside_a_replay(call, recorded: Path, arguments: list[str], line: str):
    code, out, err = call(f"replay={recorded}", *arguments, small=False)
    assert code == cli.BAD_INPUT and line in err and err.count("\n") == 1 and out == ""


# The comparison


def metric(
    value: float | None, low: float | None = None, high: float | None = None, n: int = 10, id: str = "a"
) -> dict:
    return {"id": id, "subject": "all", "value": value, "n": n, "low": low, "high": high, "higher_is_better": True}


def record(**changes) -> dict:
    data = dict.fromkeys(("method", "task", "model", "suite", "split", "preset", "world"), "x")
    data |= {"concepts": [], "keep": [], "fingerprints": {"base": "b", "edit": "e"}, "counts": {"screened": 0}}
    return (
        data
        | {"edit": {"kind": "mask", "shares": {"unet": 0.1}}, "metrics": [], "unedited": [], "stages": []}
        | changes
    )


def verdicts(one: dict, other: dict, same_machine: bool) -> list[tuple[str, bool]]:
    return [(found.what, found.fatal) for found in differences(record(**one), record(**other), same_machine)]


def test_on_the_same_machine_the_last_bit_counts():
    one, other = {"metrics": [metric(0.1 + 0.2)]}, {"metrics": [metric(0.3)]}
    assert verdicts(one, other, True) == [("edited, a of all", True)]
    assert verdicts(one, one, True) == []
    ends = {"metrics": [metric(0.3, 0.1, 0.5)]}, {"metrics": [metric(0.3, 0.1, 0.6)]}
    assert verdicts(*ends, True) == [("edited, a of all, high", True)]


@pytest.mark.parametrize("same_machine", [True, False])
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("low", 0.1, 0.2),
        ("high", 0.5, None),
        ("sd", 0.01, 0.02),
        ("difference", {"value": 0.1, "low": 0.0, "high": 0.2}, {"value": 0.1, "low": 0.0, "high": 0.3}),
        ("reason", "one picture", "two pictures"),
    ],
)
def test_what_follows_from_values_is_always_shown(name: str, before: object, after: object, same_machine: bool):
    one, other = ({"metrics": [metric(0.3, 0.1, 0.5) | {name: value}]} for value in (before, after))
    assert verdicts(one, other, same_machine) == [(f"edited, a of all, {name}", same_machine)]
    assert verdicts(one, one, same_machine) == []


@pytest.mark.parametrize("same_machine", [True, False])
def test_black_pictures_are_compared(same_machine: bool):
    one, other = ({"counts": {"screened": 0, "images_black": count}} for count in (0, 3))
    assert verdicts(one, other, same_machine) == [("pictures of one single colour", same_machine)]


def test_on_another_machine_a_value_lies_in_the_recorded_interval():
    one = {"metrics": [metric(0.3, 0.2, 0.4)]}
    assert verdicts(one, {"metrics": [metric(0.4, 0.2, 0.4)]}, False) == [("edited, a of all", False)]
    assert verdicts(one, {"metrics": [metric(0.41, 0.2, 0.4)]}, False) == [("edited, a of all", True)]
    # Without an interval it may differ by one part in a hundred.
    assert verdicts({"metrics": [metric(50.0)]}, {"metrics": [metric(50.4)]}, False) == [("edited, a of all", False)]
    assert verdicts({"metrics": [metric(50.0)]}, {"metrics": [metric(50.6)]}, False) == [("edited, a of all", True)]


@pytest.mark.parametrize("same_machine", [True, False])
@pytest.mark.parametrize(
    "other",
    [
        {"metrics": []},
        {"metrics": [metric(0.3, n=9)]},
        {"metrics": [metric(None)]},
        {"metrics": [metric(0.3), metric(0.3, id="b")]},
        {"metrics": [metric(0.3)], "fingerprints": {"base": "another", "edit": "e"}},
        {"metrics": [metric(0.3)], "counts": {"screened": 1}},
        {"metrics": [metric(0.3)], "edit": {"kind": "delta", "shares": {"unet": 0.1}}},
    ],
)
def test_what_differs_on_every_machine(other: dict, same_machine: bool):
    found = verdicts({"metrics": [metric(0.3)]}, other, same_machine)
    assert len(found) == 1 and found[0][1]


def test_the_edit_s_bits_count_on_the_same_machine_only():
    other = {"fingerprints": {"base": "b", "edit": "another"}}
    assert verdicts({}, other, True) == [("fingerprint of edit", True)] and verdicts({}, other, False) == []


def test_a_difference_says_both_values_and_the_tolerance():
    found = Difference("edited, a of all", 0.5, None, "has to be equal", True)
    assert str(found) == "edited, a of all: 0.5 -> nothing (has to be equal): DIFFERENT"


def test_changes_of_the_environment_are_named():
    one = {"versions": {"torch": "2.6", "numpy": "2.0"}, "hardware": {"cpu": "a"}}
    other = {"versions": {"torch": "2.7", "numpy": "2.0"}, "hardware": {"cpu": "a", "cores": 4}}
    assert environment_changes(one, other) == {"hardware.cores": (None, 4), "versions.torch": ("2.6", "2.7")}


def test_code_is_found_wherever_it_is_named():
    assert list(targets({"a": {"_target_": "x.Y", "b": [{"_target_": "z"}]}, "c": "_target_"})) == ["x.Y", "z"]
