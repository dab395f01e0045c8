"""The equal-budget search and the table of its methods, on a small random model with a judge of our own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import toy_suite
from records_by_hand import write_record

from experiments import front, methods, search
from experiments.records import read_records

FILE = """
budget: 2
common: [{common}]
tuning: [task.split=tuning]
test: [task.split=test, task.n=2]
tasks: [custom]
random: [scapre_scale]
random_test: [task.n=1, repeats=3]
defaults: {{uce: [method.erase_scale=2]}}
methods:
  uce: {{method.ridge: [0.5, 0.001]}}
  scapre_scale: {{}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, random_sd_folder: Path) -> Path:
    """A search file and an empty folder for its records."""
    root = tmp_path_factory.mktemp("search")
    common = [
        *(f"hydra.searchpath=[file://{toy_suite.write(root / 'conf')}]", *toy_suite.run_on(random_sd_folder)),
        *(f"store={root / 'store'}", "device=cpu", "allow_noop=true"),
    ]
    (root / "toy.yaml").write_text(FILE.format(common=", ".join(map(json.dumps, common))))
    return root


@pytest.fixture(scope="module")
def found(place: Path) -> Path:
    """The folder of records of the whole search."""
    folder = place / "records"
    assert search.main([str(place / "toy.yaml"), "--out", str(folder)]) == 0
    return folder


def record(folder: Path, name: str) -> dict:
    paths = list(folder.glob(f"{name}-*.json"))
    assert len(paths) == 1, paths
    return read_records(paths)[0]


def test_settings_are_chosen_on_tuning_and_reported_on_test(found: Path):
    tried = front.points(read_records(sorted((found / "tuning" / "uce").glob("*.json"))))
    assert {point.record["split"] for point in tried} == {"tuning"} and len(tried) == 2
    by_ridge = {point.record["config"]["method"]["ridge"]: point for point in tried}
    chosen = record(found / "test" / "searched" / "custom", "uce")
    assert chosen["split"] == "test"
    assert by_ridge[chosen["config"]["method"]["ridge"]].overall == front.best_overall(tried).overall
    kept = record(found / "test" / "keeping" / "custom", "uce")
    assert by_ridge[kept["config"]["method"]["ridge"]].forget == front.best_keeping(tried).forget
    own = record(found / "test" / "defaults" / "custom", "uce")["config"]["method"]
    assert (own["ridge"], own["erase_scale"]) == (0.5, 2)


def test_random_methods_are_repeated_on_the_test_split_only(found: Path):
    assert record(found / "tuning" / "scapre_scale", "scapre_scale")["config"]["repeats"] == 1
    assert record(found / "test" / "searched" / "custom", "scapre_scale")["config"]["repeats"] == 3
    assert record(found / "test" / "searched" / "custom", "uce")["config"]["repeats"] == 1


def test_what_was_tried_names_the_roles(found: Path):
    assert (found / "uce.md").read_text().count("searched") == 1


def test_a_search_that_is_done_computes_nothing(found: Path, place: Path, capsys: pytest.CaptureFixture):
    before = {path: path.read_bytes() for path in found.rglob("*.md")}
    assert search.main([str(place / "toy.yaml"), "--out", str(found), "uce"]) == 0
    assert {path: path.read_bytes() for path in found.rglob("*.md")} == before
    assert all(r["counts"]["images_made"] == 0 for r in read_records(found.glob("test/*/custom/uce-*.json")))


def test_records_of_an_earlier_search_stand_for_its_tuning(found: Path, place: Path, capsys: pytest.CaptureFixture):
    again = place / "again"
    assert search.main([str(place / "toy.yaml"), "uce", "--tuned", str(found), "--out", str(again)]) == 0
    assert not (again / "tuning").exists()
    assert (again / "uce.md").read_text() == (found / "uce.md").read_text()
    roles = {path.parent.parent.name: path.name for path in again.glob("test/*/custom/*.json")}
    assert roles == {path.parent.parent.name: path.name for path in found.glob("test/*/custom/uce-*.json")}
    other = (place / "toy.yaml").read_text().replace("[0.5, 0.001]", "[0.5, 0.25]")
    (place / "other.yaml").write_text(other)
    assert search.main([str(place / "other.yaml"), "uce", "--tuned", str(found), "--out", str(again)]) == 2
    assert "0 records in" in capsys.readouterr().err


def test_all_methods_stand_in_one_table(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert methods.main([str(found), "--out", str(tmp_path / "table")]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "table.md").read_text()
    lines = text.splitlines()
    assert "## custom, test split" in lines and any(line.startswith("## Fronts on custom, tuning") for line in lines)
    rows = [line.split(" | ") for line in lines if line.startswith("| uce |")]
    # Searched, defaults and keeping on the test split; one front.
    assert sorted(row[1].partition(":")[0] for row in rows) == ["2", "defaults", "keeping", "searched"]
    # Three repeats have a deviation, and unedited pictures of their own.
    assert "±" in next(line for line in lines if line.startswith("| scapre_scale | defaults"))
    assert sum(line.startswith("| unedited |") for line in lines) == 2
    for name in ("table.png", "table_test.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_settings_of_another_model_are_refused(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(found / "test", tmp_path / "test")
    other = tmp_path / "tuning" / "uce"
    other.mkdir(parents=True)
    for data in read_records((found / "tuning" / "uce").glob("*.json")):
        write_record(other / "0.json", data | {"fingerprints": data["fingerprints"] | {"base": "0" * 64}})
    assert methods.main([str(tmp_path)]) == 2
    assert "records of different unedited models" in capsys.readouterr().err


def test_a_task_that_keeps_no_classes_is_drawn_over_its_captions(tmp_path: Path):
    """As a task on all classes, whose preserve accuracy is empty; without captions either, there is nothing to draw."""
    kept = Path(__file__).parents[1] / "results" / "records" / "tiny_methods" / "test" / "searched" / "imagenette_5v5"
    whole = record(kept, "fia")
    for metric in whole["metrics"]:
        if metric["id"].startswith("preserve_accuracy"):
            metric |= {"value": None, "low": None, "high": None}
    bare = whole | {"metrics": [metric for metric in whole["metrics"] if not metric["id"].startswith("clip/")]}
    by_task = {"all": [("searched", whole)], "bare": [("searched", bare)], "defaults": [("defaults", whole)]}
    assert methods.plot_tested(by_task, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert list(methods._searched(by_task)) == ["all"]


def test_bars_are_the_intervals_of_the_table():
    """In the unit of the family; two repeats have none there, so they have no bar."""
    metric = {"id": "forget_accuracy/c", "value": 0.5, "low": 0.25, "high": 0.75}
    assert methods._ends(metric) == (50.0, 25.0, 75.0)
    assert methods._ends(metric | {"repeats": 2}) == (50.0, 50.0, 50.0)
    assert methods._ends(metric | {"id": "clip/m/x100", "value": 75.0, "low": None, "high": None}) == (75.0,) * 3


def test_bad_input_is_one_line(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture):
    assert methods.main([str(tmp_path)]) == 2
    assert "run python -m experiments.search" in capsys.readouterr().err
    assert search.main([str(tmp_path / "none.yaml")]) == 2
    assert search.main([str(place / "toy.yaml"), "uec"]) == 2
    assert "uce" in capsys.readouterr().err
    (tmp_path / "large.yaml").write_text((place / "toy.yaml").read_text().replace("budget: 2", "budget: 1"))
    assert search.main([str(tmp_path / "large.yaml"), "uce"]) == 2
    assert "uce has 2 settings, the budget of this search is 1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
