"""Tables and the front, from small records written by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from experiments import front, tables, values


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
        "fingerprints": {"base": "0123"},
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


def test_only_settings_that_differ_become_columns():
    group = [record(0.5, 0.9, alpha=0.4, r1=0.05), record(0.2, 0.8, alpha=0.8, r1=0.05)]
    assert tables.differing(group) == ["method.alpha"]  # not the store, not r1
    header, body = tables.rows(group)
    assert header == ["method", "alpha", "n", "forget %", "preserve %", "overall %"]
    assert body[0] == ["unedited", "", "50", "100.0 [95.0, 105.0]", "98.0 [93.0, 103.0]", "49.0 [44.0, 54.0]"]
    assert body[2][:4] == ["fia", "0.8", "50", "20.0 [15.0, 25.0]"]


def test_a_parameter_of_one_method_is_no_difference_between_methods():
    assert tables.differing([record(0.5, 0.9, alpha=0.4), record(0.1, 0.7, method="uce", weight=2)]) == []


def test_two_judges_never_share_a_column():
    header, body = tables.rows([record(0.5, 0.9), record(0.5, 0.9, judge="judge-2")])
    assert "forget_accuracy/judge-1 %" in header and "forget_accuracy/judge-2 %" in header
    first, second = (header.index(f"forget_accuracy/judge-{i} %") for i in (1, 2))
    mine, other = body[-2:]
    assert mine[first] and not mine[second]
    assert other[second] and not other[first]


def test_notes_say_what_the_model_is_and_which_way_is_better():
    text = tables.markdown([record(0.5, 0.9)])
    assert "not Stable Diffusion" in text
    assert "forget_accuracy/judge-1, lower is better" in text


def test_csv_holds_fractions_under_full_ids():
    rows = list(csv.DictReader(io.StringIO(tables.as_csv([record(0.5, 0.9)]))))
    assert float(rows[0]["forget_accuracy/judge-1"]) == 0.5
    assert float(rows[0]["preserve_accuracy/judge-1:low"]) == pytest.approx(0.85)


def test_latex_escapes_percent_and_underscores():
    text = tables.latex([record(0.5, 0.9, method="fia_release")])
    assert r"fia\_release" in text and r"forget \%" in text


def test_what_could_not_be_computed_is_said():
    assert values.show(metric("clip", None)) == "n/a"
    assert values.show(None) == ""


def test_command_line_prints_one_table_a_task(tmp_path: Path, capsys: pytest.CaptureFixture):
    one, two = record(0.5, 0.9), record(0.4, 0.8) | {"task": "imagenette"}
    for name, data in (("a", one), ("b", two)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    assert tables.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("| fia |") == 2 and "### imagenette_5v5, model tiny" in out and "### imagenette, model" in out


@pytest.mark.parametrize("content", ["{", '{"method": "fia"}', "[]"])
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, content: str):
    (tmp_path / "a.json").write_text(content)
    assert tables.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a.json" in error


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
        (tmp_path / f"{i}.json").write_text(json.dumps(data))
    out = tmp_path / "tables" / "front"
    assert front.main([str(tmp_path), "--out", str(out)]) == 0
    text = out.with_suffix(".md").read_text()
    assert text.count("| yes |") == 3
    assert "Best overall score: overall 82.0 %, forget 30.0 %, preserve 94.0 % at alpha 0.6, r2 0.1." in text
    assert "lower is better" in text
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_front_refuses_to_mix_splits():
    with pytest.raises(ValueError, match="one split"):
        front.points([SWEEP[0], SWEEP[1] | {"split": "tuning"}])


def test_front_refuses_to_mix_a_draft_with_the_frozen_world():
    with pytest.raises(ValueError, match="frozen world"):
        front.points([SWEEP[0], SWEEP[1] | {"world": "tiny-v1@aaaa"}])
    with pytest.raises(ValueError, match="unedited model"):
        front.points([SWEEP[0], SWEEP[1] | {"fingerprints": {"base": "4567"}}])
