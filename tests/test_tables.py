"""Tables and the front, from small records written by hand."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from records_by_hand import write_record

from experiments import front, show, tables, values


def metric(family: str, value: float | None, subject: str = "all", judge: str = "judge-1") -> dict:
    better = family != "forget_accuracy"
    low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
    entry = {"id": f"{family}/{judge}", "subject": subject, "value": value, "n": 100, "low": low, "high": high}
    return {**entry, "higher_is_better": better, **({"reason": "too few pictures"} if value is None else {})}


def scores(forget: float, preserve: float, judge: str = "judge-1") -> list[dict]:
    overall = (preserve + 1 - forget) / 2
    return [
        metric("forget_accuracy", forget, judge=judge),
        metric("preserve_accuracy", preserve, judge=judge),
        metric("overall_score", overall, judge=judge),
        metric("forget_accuracy", forget, "tench", judge),
    ]


def record(forget: float, preserve: float, method: str = "fia", judge: str = "judge-1", **settings) -> dict:
    return {
        "method": method,
        "task": "imagenette_5v5",
        "model": "tiny",
        "split": "test",
        "world": "",
        "fingerprints": {"base": "0123" * 16},
        "note": "the tiny world, not Stable Diffusion.",
        "metrics": scores(forget, preserve, judge),
        "unedited": scores(1.0, 0.98),
        "config": {
            "method": {"name": method, **settings},
            "task": {"n": 50},
            "model": {"words": "the tiny world, not Stable Diffusion"},
            "store": f"store-{forget}",
        },
    }


def quality(n: int = 64, kid: float = 0.0123, change: float | None = -0.31) -> list[dict]:
    """CLIP, FID and KID; `change` None for the unedited model, which is not compared with itself."""

    def entry(id: str, value: float, better: bool, half: float) -> dict:
        ends = {"low": value - half, "high": value + half}
        return {"id": id, "subject": "all", "value": value, "n": n, **ends, "higher_is_better": better}

    found = [
        {**metric("judge_agreement", 0.9), "higher_is_better": None, "n": 500},
        entry("clip/rn/x100", 25.0, True, 0.5),
        entry(f"fid/cnn128/rendered-n{n}", 40.0, False, 5),
        entry(f"kid/cnn128/rendered-n{n}", kid, False, 0.02),
    ]
    compared = [
        entry("clip_difference/rn/x100", change or 0, True, 0.2),
        entry(f"kid_vs_base/cnn128/n{n}", 0.001, False, 0),
    ]
    return found if change is None else [*found, *compared]


def with_quality(data: dict, n: int = 64) -> dict:
    return data | {"metrics": data["metrics"] + quality(n), "unedited": data["unedited"] + quality(n, change=None)}


def test_only_settings_that_differ_become_columns():
    group = [record(0.5, 0.9, alpha=0.4, r1=0.05), record(0.2, 0.8, alpha=0.8, r1=0.05)]
    assert tables.differing(group) == ["method.alpha"]  # not the store, not r1
    (table,) = tables.tables(group)
    assert table.header == ["method", "alpha", "n", "forget %", "preserve %", "overall %"]
    assert table.body[0] == ["unedited", "", "50", "100.0 [95.0, 105.0]", "98.0 [93.0, 103.0]", "49.0 [44.0, 54.0]"]
    assert table.body[2][:4] == ["fia", "0.8", "50", "20.0 [15.0, 25.0]"]


def test_presets_that_differ_are_named_in_every_row():
    fia, uce = (record(0.5, 0.9, name) | {"preset": preset} for name, preset in (("fia", "tiny"), ("uce", "")))
    (table,) = tables.tables([fia, uce])
    assert [row[:3] for row in [table.header, *table.body]] == [
        ["method", "preset", "n"], ["unedited", "", "50"], ["fia", "tiny", "50"], ["uce", "", "50"],
    ]  # fmt: skip
    assert [row["preset"] for row in csv.DictReader(io.StringIO(tables.as_csv([fia, uce])))] == ["tiny", ""]
    # The unedited model has none; edits of one preset need no column.
    (table,) = tables.tables([fia, record(1.0, 0.98, "none") | {"preset": ""}])
    assert "preset" not in table.header


def test_quality_has_a_table_of_its_own_with_its_n():
    scores_table, table = tables.tables([with_quality(record(0.5, 0.9))])
    assert (
        scores_table.header[-2:] == ["overall %", "judges agree %"] and scores_table.body[1][-1] == "90.0 [85.0, 95.0]"
    )
    assert table.header == [
        "method", "n", "CLIP", "CLIP - unedited", "FID", "KID x1000", "KID vs unedited x1000",
    ]  # fmt: skip
    assert table.body[0][:4] == ["unedited", "64", "25.00 [24.50, 25.50]", ""]
    assert table.body[1][3:] == ["-0.31 [-0.51, -0.11]", "40.00 [35.00, 45.00]", "12.3 [-7.7, 32.3]", "1.0 [1.0, 1.0]"]


def test_another_n_is_another_column():
    _, table = tables.tables([with_quality(record(0.5, 0.9)), with_quality(record(0.4, 0.9), n=100)])
    first, second = (table.header.index(f"KID (rendered-n{n}) x1000") for n in (64, 100))
    assert [row[1] for row in table.body] == ["64", "100"]  # and no unedited row: they do not share one
    assert [bool(row[first]) for row in table.body] == [True, False] == [not row[second] for row in table.body]


def repeated(value: float, sd: float, repeats: int = 3, **more: object) -> dict:
    """A forget accuracy over repeats."""
    return {**metric("forget_accuracy", value), "sd": sd, "repeats": repeats, "n": 100 * repeats, **more}


def test_a_mean_over_repeats_has_its_deviation():
    data = record(0.5, 0.9) | {"metrics": [repeated(0.5, 0.0123)], "unedited": [repeated(1.0, 0)]}
    (table,) = tables.tables([data])
    assert [row[-1] for row in table.body] == ["100.0 ± 0.0 [95.0, 105.0]", "50.0 ± 1.2 [45.0, 55.0]"]
    (table,) = tables.tables([data], sd=True)
    assert [row[-1] for row in table.body] == ["100.0 ± 0.0", "50.0 ± 1.2"]
    assert "standard deviation over repeats" in tables.markdown([data])
    # A plain run beside it keeps its interval: it has no deviation.
    (table,) = tables.tables([data, record(0.4, 0.9)], sd=True)
    assert table.body[-1][2] == "40.0 [35.0, 45.0]"


def test_two_repeats_have_no_interval_to_show():
    assert values.show(repeated(0.5, 0.01, repeats=2)) == "50.0 ± 1.0"
    assert values.show(repeated(0.5, 0.01)) == "50.0 ± 1.0 [45.0, 55.0]"


def test_csv_has_deviations_where_they_are_asked_for():
    data = record(0.5, 0.9) | {"metrics": [repeated(0.5, 0.0123)]}
    (row,) = csv.DictReader(io.StringIO(tables.as_csv([data], sd=True)))
    assert row["forget_accuracy/judge-1:sd"] == "0.0123"
    assert ":sd" not in tables.as_csv([data])


def difference(low: float | None, high: float | None) -> dict:
    return {"value": 0.0, "low": low, "high": high}


@pytest.mark.parametrize(
    ("change", "mark"),
    [((-0.3, -0.1), True), ((0.1, 0.3), True), ((-0.1, 0.1), False), ((0.0, 0.3), False), ((None, None), False)],
)
def test_a_mark_says_that_the_edit_differs_from_the_unedited_model(change: tuple, mark: bool):
    entry = {**metric("forget_accuracy", 0.5), "difference": difference(*change)}
    assert values.marked(entry) == values.show(entry) + (" *" if mark else "")
    data = record(0.5, 0.9) | {"metrics": [entry], "unedited": [metric("forget_accuracy", 1.0)]}
    (table,) = tables.tables([data])
    assert table.body[1][-1].endswith("*") is mark and not table.body[0][-1].endswith("*")
    assert any(line.startswith("*: differs from the unedited model") for line in tables.notes([data]))
    assert not any("*" in line for line in tables.notes([record(0.5, 0.9)]))


def test_distances_of_different_n_never_share_a_column(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Our ids have the n in them; a record of another program's may not."""

    def data(n: int, **more: object) -> dict:
        entry = {**metric("fid", 40.0), "id": "fid/other", "n": n, **more}
        return record(0.5, 0.9) | {"metrics": [entry], "unedited": []}

    with pytest.raises(ValueError, match=r"fid/other is over 64 and 100 pictures: distances of different n"):
        tables.tables([data(64), data(100)])
    # Three repeats of 64 captions are 64 captions.
    (table,) = tables.tables([data(64), data(192, sd=1.0, repeats=3)])
    assert [row[1] for row in table.body] == ["64", "64"]
    for n in (64, 100):
        write_record(tmp_path / f"{n}.json", data(n))
    assert tables.main([str(tmp_path)]) == 2 and "do not share a column" in capsys.readouterr().err


def test_a_record_without_quality_is_not_a_row_of_the_quality_table():
    both = [with_quality(record(0.5, 0.9, alpha=0.4)), record(0.2, 0.8, alpha=0.8)]
    scores_table, table = tables.tables(both)
    assert [row[:2] for row in table.body] == [["unedited", ""], ["fia", "0.4"]]
    assert [row[1] for row in scores_table.body if row[0] == "fia"] == ["0.4", "0.8"]


def test_a_family_that_no_list_names_is_shown_all_the_same():
    data = record(0.5, 0.9)
    data["metrics"] = [*data["metrics"], metric("strangeness", 0.25)]
    (table,) = tables.tables([data])
    assert table.header[-1] == "strangeness" and table.body[-1][-1] == "0.250 [0.200, 0.300]"


def test_notes_give_every_n_and_say_what_kid_is_for():
    notes = tables.notes([with_quality(record(0.5, 0.9)), with_quality(record(0.4, 0.9), n=100)])
    assert "judges agree %: judge_agreement/judge-1, n = 500, no direction." in notes
    assert "CLIP: clip/rn/x100, n = 64 to 100, higher is better." in notes
    assert any("KID is not" in line for line in notes)
    assert not any("KID" in line for line in tables.notes([record(0.5, 0.9)]))


def edit_only(**settings: object) -> dict:
    return record(0.5, 0.9, **settings) | {"metrics": [], "unedited": []}


def test_records_without_scores_are_counted_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture):
    group = [record(0.5, 0.9, alpha=0.4), edit_only(alpha=0.9), edit_only(alpha=1.0)]
    for text in (tables.markdown(group), tables.latex(group)):
        assert "Left out: 2 records without scores (edit_only=true)." in text
        assert "0.9 " not in text and "alpha" not in text  # neither their rows nor a setting that only they change
    for i, data in enumerate(group):
        write_record(tmp_path / f"{i}.json", data)
    assert tables.main([str(tmp_path), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert len(list(csv.reader(io.StringIO(out.strip())))) == 2
    assert err == "Left out: 2 records without scores (edit_only=true).\n"
    assert "Left out" not in tables.markdown(group[:1])
    alone = tables.markdown(group[1:2])
    assert "Left out: 1 record without" in alone and "|" not in alone


def test_the_screen_shows_two_tables():
    data = with_quality(record(0.5, 0.9)) | {
        "edit": {"kind": "mask", "shares": {"unet": 0.0123}}, "cost": {"edit_made": {"seconds": 4.0}},
    }  # fmt: skip
    data["metrics"][0]["difference"] = difference(-0.6, -0.4)
    first, second = show.summary_tables(data)
    heads = [[column.header for column in table.columns] for table in (first, second)]
    assert heads[0][1:5] == ["forget %", "preserve %", "overall %", "judges agree %"]
    assert heads[0][5:] == ["zero weights of the UNet %", "seconds to edit"]
    assert heads[1][1:] == ["CLIP", "CLIP - unedited", "FID", "KID x1000", "KID vs unedited x1000"]
    assert [list(column.cells) for column in first.columns][-2:] == [["", "1.23"], ["", "4.0"]]
    assert list(first.columns[1].cells) == ["100.0 [95.0, 105.0]", "50.0 [45.0, 55.0] *"]
    assert list(second.columns[2].cells) == ["", "-0.31 [-0.51, -0.11]"]
    assert "judges agree %: judge_agreement/judge-1, n = 500, no direction." in show.legend(data)


def test_a_parameter_of_one_method_is_no_difference_between_methods():
    assert tables.differing([record(0.5, 0.9, alpha=0.4), record(0.1, 0.7, method="uce", weight=2)]) == []


def test_what_a_sweep_over_classes_keeps_is_no_setting_of_its_own():
    def run(x: int, keep: list[str], told: list[str]) -> dict:
        data = record(0.5, 0.9, "salun", keep=told)
        data["config"]["task"] |= {"x": x, "classes": ["a", "b", "c"], "keep": keep}
        return data

    first, second = run(1, ["b", "c"], ["b", "c"]), run(2, ["c"], ["c"])
    assert tables.differing([first, second]) == ["task.x"]
    assert tables.differing([first, run(2, ["a"], ["a"])]) == ["task.x", "task.keep"]
    assert tables.differing([first, run(1, ["b", "c"], ["b"])]) == ["method.keep"]


def test_two_judges_never_share_a_column():
    (table,) = tables.tables([record(0.5, 0.9), record(0.5, 0.9, judge="judge-2")])
    first, second = (table.header.index(f"forget (judge-{i}) %") for i in (1, 2))
    mine, other = table.body[-2:]
    assert mine[first] and not mine[second]
    assert other[second] and not other[first]


def test_notes_say_what_the_model_is_and_which_way_is_better():
    text = tables.markdown([record(0.5, 0.9)])
    assert "not Stable Diffusion" in text
    assert "forget_accuracy/judge-1, n = 100, lower is better" in text


def test_csv_holds_fractions_under_full_ids():
    rows = list(csv.DictReader(io.StringIO(tables.as_csv([record(0.5, 0.9)]))))
    assert float(rows[0]["forget_accuracy/judge-1"]) == 0.5
    assert float(rows[0]["preserve_accuracy/judge-1:low"]) == pytest.approx(0.85)
    assert (rows[0]["n"], rows[0]["preserve_accuracy/judge-1:n"]) == ("50", "100")


def test_latex_escapes_percent_and_underscores():
    text = tables.latex([record(0.5, 0.9, method="fia_release")])
    assert r"fia\_release" in text and r"forget \%" in text


def test_what_could_not_be_computed_is_said():
    assert values.show(metric("clip", None)) == "n/a"
    assert values.show(None) == ""


def test_command_line_prints_one_table_a_task(tmp_path: Path, capsys: pytest.CaptureFixture):
    one, two = record(0.5, 0.9), record(0.4, 0.8) | {"task": "imagenette"}
    for name, data in (("a", one), ("b", two), ("c", one | {"split": "tuning"})):
        write_record(tmp_path / f"{name}.json", data)
    assert tables.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    headings = ("imagenette_5v5, model tiny", "imagenette, model tiny", "imagenette_5v5, model tiny, tuning split")
    assert out.count("| fia |") == 3 and all(f"### {heading}\n" in out for heading in headings)


@pytest.mark.parametrize("content", ["{", '{"method": "fia"}', "[]"])
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, content: str):
    (tmp_path / "a.json").write_text(content)
    assert tables.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a.json" in error


def test_a_changed_digit_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_record(tmp_path / "a.json", record(0.5, 0.9))
    text = path.read_text()
    assert text.count('"value": 0.5,') == 2
    path.write_text(text.replace('"value": 0.5,', '"value": 0.4,'))
    assert tables.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a.json" in error and "it has changed since it was written" in error


def test_no_record_at_all(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert tables.main([str(tmp_path)]) == 2
    assert "no record" in capsys.readouterr().err


SWEEP = [
    record(0.60, 0.97, alpha=0.4, r2=0.1),
    record(0.30, 0.94, alpha=0.6, r2=0.1),
    record(0.30, 0.90, alpha=0.8, r2=0.1),  # dominated: forgets the same and keeps less
    record(0.05, 0.60, alpha=0.8, r2=0.2),
    record(0.40, 0.93, alpha=0.6, r2=0.2),  # dominated by the second
]


def test_front_keeps_what_nothing_dominates():
    line = front.front(front.points(SWEEP))
    assert [(p.forget, p.preserve) for p in line] == [(0.05, 0.60), (0.30, 0.94), (0.60, 0.97)]


def test_chosen_points():
    found = front.points(SWEEP)
    assert front.best_overall(found).settings == {"method.alpha": 0.6, "method.r2": 0.1}
    assert front.best_keeping(found).forget == 0.30  # 0.94 >= 0.95 * 0.98
    assert front.best_keeping(found, share=0.99) is None


def test_front_table_and_plot(tmp_path: Path):
    for i, data in enumerate(SWEEP):
        write_record(tmp_path / f"{i}.json", data)
    out = tmp_path / "tables" / "front"
    assert front.main([str(tmp_path), "--out", str(out)]) == 0
    text = out.with_suffix(".md").read_text()
    assert text.count("| yes |") == 3
    best = "Best overall score: overall 82.0 %, forget 30.0 %, preserve 94.0 % at alpha 0.6, r2 0.1"
    assert f"{best} (chosen on this split, so these values flatter it)." in text
    assert "Area under the front of these 5 settings, test split: 82.0 %." in text
    assert "lower is better" in text
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_area_under_the_front_is_the_area_of_its_steps():
    found = front.points(SWEEP)
    by_hand = 0.60 * (0.30 - 0.05) + 0.94 * (0.60 - 0.30) + 0.97 * (1 - 0.60)
    assert front.area(found) == pytest.approx(by_hand)
    # Counted: the share of a fine grid of corners that some setting reaches.
    grid = [(i + 0.5) / 400 for i in range(400)]
    reached = sum(any(p.forget <= f and p.preserve >= keep for p in found) for f in grid for keep in grid)
    assert reached / 400**2 == pytest.approx(by_hand, abs=1e-2)
    ideal = record(0.0, 1.0)
    assert front.area(front.points([ideal])) == 1 and front.area(front.points([record(1.0, 1.0)])) == 0


def tuned(forget: float, preserve: float, **settings: object) -> dict:
    """A record of the tuning split: fewer pictures, no captions."""
    data = record(forget, preserve, **settings) | {"split": "tuning"}
    data["config"] |= {"task": {"n": 10, "split": "tuning"}, "quality": {"n": 0}}
    return data


def test_what_was_chosen_on_tuning_is_reported_by_its_values_on_test():
    # On tuning the fifth setting of SWEEP is the best and the only one that keeps enough is the first.
    tuning = [
        tuned(0.50, 0.95, alpha=0.4, r2=0.1),
        tuned(0.40, 0.80, alpha=0.6, r2=0.1),
        tuned(0.10, 0.92, alpha=0.6, r2=0.2),
    ]
    found, chosen_on = front.sweeps([*tuning, *SWEEP])
    assert (len(found), len(chosen_on)) == (5, 3)
    text = front.markdown(found, chosen_on)
    assert (
        "Best overall score, chosen on the tuning split: overall 76.5 %, forget 40.0 %, preserve 93.0 % at alpha 0.6, "
        "r2 0.2 (on tuning: overall 91.0 %, forget 10.0 %, preserve 92.0 % at alpha 0.6, r2 0.2)."
    ) in text
    assert "preserve accuracy, chosen on the tuning split: overall 68.5 %, forget 60.0 %, preserve 97.0 %" in text
    assert "alpha 0.6, r2 0.1 (chosen on this split, so these values flatter it)" in text
    assert text.count("| yes |") == 3 and "Area under the front of these 5 settings, test split" in text


def test_a_setting_that_was_not_run_on_test_has_no_values_there():
    found, chosen_on = front.sweeps([tuned(0.1, 0.9, alpha=0.5, r2=0.3), *SWEEP])
    text = front.markdown(found, chosen_on)
    assert "chosen on the tuning split: the only setting was not run on this split (on tuning: overall 90.0 %" in text


def test_a_tuning_sweep_alone_is_not_a_result():
    found, chosen_on = front.sweeps([tuned(0.1, 0.9, alpha=0.5), tuned(0.2, 0.95, alpha=0.6)])
    assert not chosen_on
    assert "(chosen on this split, report it on the test split)" in front.markdown(found)


def test_points_are_of_one_split_and_one_method():
    with pytest.raises(ValueError, match="one split"):
        front.points([SWEEP[0], SWEEP[1] | {"split": "tuning"}])
    with pytest.raises(ValueError, match="one method"):
        front.sweeps([SWEEP[0], record(0.1, 0.9, method="uce")])


def test_front_refuses_to_mix_a_draft_with_the_frozen_world():
    with pytest.raises(ValueError, match="frozen world"):
        front.points([SWEEP[0], SWEEP[1] | {"world": "tiny-v1@aaaa"}])
    with pytest.raises(ValueError, match="unedited model"):
        front.points([SWEEP[0], SWEEP[1] | {"fingerprints": {"base": "4567"}}])
