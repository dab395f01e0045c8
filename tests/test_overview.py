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
        "fingerprints": {"base": "01" * 32}, "preset": "",
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
    assert "of the rest, test split" in out and "forget %: forget_accuracy/c, n = 20, lower is better." in out
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


def test_of_several_judges_the_first_is_shown_and_headers_say_which():
    """As in the suite of published judges, which has two CLIP encoders and several sets of parts."""
    further = [entry("marker_images/d@0.5/strict", 0.1, False), entry("clip/n/x100", 20.0, True)]
    explicit = RECORDS[-1] | {side: [*RECORDS[-1][side], *further] for side in ("metrics", "unedited")}
    shown = overview.columns([*RECORDS[:-1], explicit])
    assert [column.id for column in shown if column.task == "i2p"] == ["marker_images/d@0.5/8", "clip/m/x100"]
    other = RECORDS[2] | {side: [entry("forget_accuracy/e", 0.5, False)] for side in ("metrics", "unedited")}
    assert overview.titles(overview.columns([RECORDS[0], other])) == ["forget (c) %", "preserve %", "forget (e) %"]


def test_every_value_of_the_picture_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cell without a colour is white: its words are not. Here the unedited model draws nothing of the concepts."""
    drawn = []
    monkeypatch.setattr(overview.render, "save_chart", lambda figure, path: drawn.append(figure) or path)
    overview.draw([record("fia", "5v5", 0.2, 0.45, 60.0, before=0.0)], tmp_path / "picture.png")
    shown = [(text.get_text(), text.get_color()) for text in drawn[0].axes[0].texts[:4]]
    assert shown == [("0.0", "black"), ("90.0", "black"), ("20.0", "black"), ("45.0", "white")]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (record("uce", "art", 0.4, 0.5, 40.0) | {"split": "tuning"}, "records of the splits test and tuning"),
        (record("uce", "art", 0.4, 0.5, 40.0) | {"preset": "tiny"}, "uce: records of different presets"),
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
