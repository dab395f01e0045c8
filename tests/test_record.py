"""Records: validity, identity, replacement, environment, and that the documentation names every field."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import record as records
from harness.record import Record, commit, environment, read, validate
from harness.store import content_key

REPOSITORY = Path(__file__).resolve().parents[1]
METRIC = {
    "id": "forget_accuracy/x",
    "subject": "all",
    "value": 0.1,
    "n": 100,
    "low": 0.05,
    "high": 0.2,
    "higher_is_better": False,
}


class Interval(NamedTuple):
    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Value:
    id: str = "clip/y"
    subject: str = "all"
    value: float = 31.4
    n: int = 5
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = True
    sd: float | None = None
    repeats: int | None = None
    difference: Interval | None = None


def _record(**changes) -> Record:
    settings = {
        "method": "fia",
        "task": "imagenette_5v5",
        "model": "tiny",
        "suite": "tiny",
        "split": "test",
        "config": {"seed": 1, "device": "cpu", "method": {"r2": 0.01}, "model": {"batch_size": 8}},
        "fingerprints": {"base": "a" * 64, "edit": "b" * 64},
        "concepts": [{"name": "church", "kind": "object"}],
        "keep": ["tench"],
        "metrics": [METRIC, Value()],
        "unedited": [Value(value=31.5)],
        "cost": {"edit": {"seconds": 1.5, "samples": 10, "peak_bytes": None}},
        "counts": {"images_made": 3, "images_reused": 0, "screened": 0},
        "environment": {"versions": {}},
        "world": "tiny-v1",
    }
    return Record(**{**settings, **changes})


def test_round_trip(tmp_path):
    path = _record().write(tmp_path / "deep")
    again = read(path)
    given = {"id": "clip/y", "subject": "all", "n": 5, "low": None, "high": None, "higher_is_better": True}
    assert again.unedited == [{**given, "value": 31.5}]
    assert again.metrics == [METRIC, {**given, "value": 31.4}]
    assert again.value("forget_accuracy/x") == 0.1 and again.created.endswith("+00:00")
    assert dataclasses.replace(again, created="").as_dict() == _record().as_dict()
    assert again.identity == _record().identity
    with pytest.raises(KeyError, match="no metric fid of all"):
        again.value("fid")


def test_a_repeated_run_replaces_its_record(tmp_path):
    first = _record().write(tmp_path)
    elsewhere = {"seed": 1, "device": "cuda", "store": "/x", "method": {"r2": 0.01}, "model": {"batch_size": 1}}
    elsewhere["speed"] = {"chunk": 3}
    again = _record(config=elsewhere, created="2031-01-01T00:00:00+00:00", counts={"images_made": 0}).write(tmp_path)
    assert again == first and [p.name for p in tmp_path.iterdir()] == [first.name]
    assert first.name == f"fia-imagenette_5v5-tiny-test-{_record().identity[:8]}.json"
    assert read(first).counts == {"images_made": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"seed": 2}},
        {"fingerprints": {"base": "a" * 64}},
        {"split": "tuning"},
        {"preset": "tiny"},
        {"world": "tiny-v2"},
        {"suite": "sd"},
    ],
)
def test_another_run_has_another_record(tmp_path, changes):
    _record().write(tmp_path)
    _record(**changes).write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_file_names_are_plain(tmp_path):
    path = _record(method="../x y", model="folder:/a").write(tmp_path)
    assert path.parent == tmp_path and path.name.startswith("x_y-imagenette_5v5-folder_a-test-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ""}, "'method' is empty"),
        ({"config": []}, "'config' is a list"),
        ({"config": {"x": float("nan")}}, "config.x is nan"),
        ({"cost": {"edit": {"seconds": float("inf")}}}, "cost.edit.seconds is inf"),
        ({"edit": {"mask": Path("x")}}, "edit.mask is a "),
        ({"fingerprints": {"base": "abc"}}, "fingerprints.base is 'abc'"),
        ({"counts": {"images_made": -1}}, "counts.images_made is -1"),
        ({"concepts": ["church"]}, r"concepts\[0\]"),
        ({"metrics": [{**METRIC, "value": float("nan")}]}, "value is nan.*null with a reason"),
        ({"metrics": [{**METRIC, "value": None}]}, "value is None"),
        ({"metrics": [{**METRIC, "value": True}]}, "value is True"),
        ({"metrics": [{**METRIC, "low": float("inf")}]}, "low is inf"),
        ({"metrics": [{**METRIC, "low": 0.3}]}, "above its high end"),
        ({"metrics": [{**METRIC, "n": -1}]}, "n is -1"),
        ({"metrics": [{**METRIC, "n": 1.0}]}, "n is 1.0"),
        ({"metrics": [{**METRIC, "id": ""}]}, "no id or subject"),
        ({"metrics": [{**METRIC, "higher_is_better": "no"}]}, "higher_is_better"),
        ({"metrics": [{**METRIC, "std": 1.0}]}, "unknown field 'std'"),
        ({"metrics": [{k: v for k, v in METRIC.items() if k != "n"}]}, "lacks 'n'"),
        ({"metrics": [METRIC, METRIC]}, "is there twice"),
        ({"metrics": [{**METRIC, "sd": 0.1}]}, "one of sd and repeats"),
        ({"metrics": [{**METRIC, "sd": 0.1, "repeats": 1}]}, "repeats is 1, not a count of at least 2"),
        ({"metrics": [{**METRIC, "sd": -0.1, "repeats": 3}]}, "sd is -0.1"),
        ({"metrics": [{**METRIC, "difference": {"value": 1.0}}]}, "not an object of value, low and high"),
        ({"metrics": [{**METRIC, "difference": {"value": None, "low": 0, "high": 1}}]}, "difference: value is None"),
        ({"metrics": [{**METRIC, "difference": {"value": 1, "low": 2, "high": 1}}]}, "low end 2 is above"),
        ({"metrics": [5]}, "is a int"),
        ({"unedited": [METRIC, METRIC]}, r"unedited\[1\].* is there twice"),
    ],
)
def test_invalid_records_are_not_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        _record(**changes).write(tmp_path)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_what_cannot_be_computed_is_null_with_a_reason(tmp_path):
    metric = {**METRIC, "value": None, "low": None, "high": None, "n": 0, "reason": "no kept classes"}
    assert read(_record(metrics=[metric]).write(tmp_path)).value("forget_accuracy/x") is None


@pytest.mark.parametrize("schema", [2, 3])
def test_a_record_of_a_layout_before_can_be_read(tmp_path, schema):
    path = _record().write(tmp_path)
    data = json.loads(path.read_text())
    del data["sha256"]
    path.write_text(json.dumps({**data, "schema": schema}))
    assert read(path).schema == schema and read(path).identity == _record().identity
    metrics = read(path).metrics
    assert read(read(path).write(tmp_path)).metrics == metrics and read(path).schema == records.SCHEMA


def test_records_that_are_kept_are_valid():
    kept = list((REPOSITORY / "results" / "records").rglob("*.json"))
    assert kept and all(read(path).metrics is not None for path in kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["metrics"][0].update(value=0.2), "it has changed since it was written"),
        (lambda data: data["cost"]["edit"].update(seconds=0.5), "it has changed since it was written"),
        (lambda data: data.update(sha256="0" * 64), "it has changed since it was written"),
        (lambda data: data.pop("sha256"), "'sha256' is missing"),
    ],
)
def test_what_was_changed_by_hand_is_refused(tmp_path, change, message):
    path = _record().write(tmp_path)
    data = json.loads(path.read_text())
    assert data["sha256"] == content_key({name: value for name, value in data.items() if name != "sha256"})
    path.write_text(json.dumps(data))
    read(path)  # spaces and the order of fields say nothing
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_what_only_some_metrics_have_is_left_out_elsewhere(tmp_path):
    away = Interval(-0.5, -0.7, None)
    metrics = [Value(sd=0.1, repeats=3, difference=away), Value(id="fid/z")]
    first, second = read(_record(metrics=metrics).write(tmp_path)).metrics
    assert (first["sd"], first["repeats"]) == (0.1, 3)
    assert first["difference"] == {"value": -0.5, "low": -0.7, "high": None}
    assert not {"sd", "repeats", "difference", "reason"} & set(second)


def test_reading_refuses_other_layouts(tmp_path):
    path = _record().write(tmp_path)
    data = json.loads(path.read_text())
    for changed, message in (
        ({**data, "schema": 5}, "schema 5 is not known; this checkout reads schema 2, 3, 4"),
        ({k: v for k, v in data.items() if k != "cost"}, "'cost' is missing"),
        ({**data, "wandb": 1}, "'wandb' is not part of schema"),
        ([], "not a list"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))
    path.write_text("{")
    with pytest.raises(ValueError, match=path.name):
        read(path)
    with pytest.raises(ValueError, match="no such record"):
        read(tmp_path / "none.json")


def test_environment_is_json_and_names_what_matters():
    found = environment()
    assert {"torch", "diffusers", "transformers", "python"} <= set(found["versions"])
    assert (
        found["versions"]["torch"] and found["hardware"]["cores"] >= 1 and isinstance(found["hardware"]["gpus"], list)
    )
    assert set(found["code"]) == {"commit", "dirty"}
    validate({**_record().as_dict(), "environment": json.loads(json.dumps(found))})


def test_commit_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(REPOSITORY / ".git"))  # as set inside hooks; it must not be followed
    assert commit(tmp_path) == {"commit": None, "dirty": None}

    def git(*arguments: str) -> None:
        settings = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        environ = {"PATH": __import__("os").environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        subprocess.run(
            ["git", "-C", str(tmp_path), *settings, *arguments], check=True, capture_output=True, env=environ
        )

    git("init")
    assert commit(tmp_path)["commit"] is None
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "x")
    clean = commit(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "r.json").write_text("{}")
    assert commit(tmp_path) == clean
    (tmp_path / "a.py").write_text("2")
    assert commit(tmp_path) == {**clean, "dirty": True}
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") == {"commit": None, "dirty": None}


def test_git_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(REPOSITORY) == {"commit": None, "dirty": None}


def test_documentation_names_every_field():
    text = (REPOSITORY / "docs" / "record.md").read_text()
    for item in dataclasses.fields(Record):
        assert f"`{item.name}`" in text, item.name
    for name in (
        *METRIC,
        records.SHA256,
        "reason",
        "sd",
        "repeats",
        "difference",
        *records.NOT_IDENTITY,
        *environment(),
        *environment()["hardware"],
        *("judges", "photos"),
    ):
        assert f"`{name}`" in text, name
