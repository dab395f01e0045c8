"""One table of methods and tasks: which columns a task has, what is refused, how a cell is coloured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image
from records_by_hand import write_record

from experiments import overview


def entry(id: str, value: float | None, better: bool, difference: float | None = None) -> dict:
    ends = {"low": None, "high": None, **({"reason": "nothing is kept"} if value is None else {})}
    paired = {} if difference is None else {"difference": {"value": difference, "low": difference, "high": difference}}
    return {"id": id, "subject": "all", "value": value, "n": 20, **ends, "higher_is_better": better, **paired}


def record(method: str, task: str, left: float, kept: float | None, clip: float, before: float = 0.8) -> dict:
    def metrics(left: float, kept: float | None, clip: float, difference: float | None = None) -> list[dict]:
        first = "marker_images/d@0.5/8" if task == "i2p" else "forget_accuracy/c"
        return [
            entry(first, left, False, difference),
            *([] if task == "i2p" else [entry("preserve_accuracy/c", kept, True)]),
            entry("clip/m/x100", clip, True),
        ]

    return {
        "method": method, "task": task, "model": "tiny", "split": "test", "world": "", "note": "a small world",
        "metrics": metrics(left, kept, clip, left - 0.8), "config": {},
        "unedited": metrics(before, None if kept is None else 0.9, 80.0),
        "fingerprints": {"base": "01" * 32},
    }  # fmt: skip


RECORDS = [
    record("fia", "5v5", 0.2, 0.45, 60.0),
    record("uce", "5v5", 0.8, 0.9, 80.0),
    record("fia", "imagenette", 0.4, None, 40.0),
    record("uce", "i2p", 0.6, None, 88.0),
]


def test_a_task_shows_what_is_left_of_its_concepts_and_of_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number, data in enumerate(RECORDS):
        write_record(tmp_path / f"{number}.json", data)
    assert overview.main([str(tmp_path), "--out", str(tmp_path / "all")]) == 0
    out = capsys.readouterr().out
    assert out == (tmp_path / "all.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    # The classes to keep where there are some, else the CLIP score; markers where no class is judged; gaps stay empty.
    columns = ["5v5: forget %", "5v5: preserve %", "imagenette: forget %", "imagenette: CLIP"]
    assert lines[0] == ["method", *columns, "i2p: pictures with markers %", "i2p: CLIP"]
    assert lines[2:] == [
        ["unedited", "80.0", "90.0", "80.0", "80.00", "80.0", "80.00"],
        ["fia", "20.0 *", "45.0", "40.0 *", "40.00", "", ""],
        ["uce", "80.0", "90.0", "", "", "60.0 *", "88.00"],
    ]
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.width > 400 and len(picture.convert("RGB").getcolors(2**24)) > 50


def test_a_cell_is_coloured_by_what_is_gone_or_left_of_the_unedited_value():
    shown = {column.key: column for column in overview.columns(RECORDS)}
    found = overview.cells(RECORDS)
    share = {
        (method, key): overview.goodness(column, found[method].get(key))
        for method in found
        for key, column in shown.items()
    }
    forget, preserve, clip = ("5v5", "forget_accuracy/c"), ("5v5", "preserve_accuracy/c"), ("i2p", "clip/m/x100")
    assert share["fia", forget] == pytest.approx(0.75) and share["fia", preserve] == pytest.approx(0.5)
    assert share["uce", forget] == 0 and share["uce", preserve] == 1
    assert share["uce", clip] == 1 and math.isnan(share["fia", clip])  # more than unedited is no more than all


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (record("uce", "imagenette", 0.4, None, 40.0, before=0.81), "imagenette: records of other unedited pictures"),
        (record("fia", "5v5", 0.2, 0.45, 60.0), "5v5: two records of fia; one table needs one"),
    ],
)
def test_what_one_table_cannot_show_is_refused_in_one_line(more, says, tmp_path: Path, capsys: pytest.CaptureFixture):
    for number, data in enumerate([*RECORDS, more]):
        write_record(tmp_path / f"{number}.json", data)
    assert overview.main([str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith(says) and len(error.splitlines()) == 1


def test_records_without_scores_are_no_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_record(tmp_path / "0.json", RECORDS[0] | {"metrics": [], "unedited": []})
    assert overview.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "none of these records has scores\n"
