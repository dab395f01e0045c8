"""Published tables beside measured ones: the files of results/paper, the comparison, its text, the experiment files."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest
from omegaconf import OmegaConf
from records_by_hand import write_record

from experiments import catalogue, figures, paper_tables, paper_text, published, rebuild, sizes, tables, values
from experiments.figures import Point, reach
from experiments.published import Cell, Paper, Source
from experiments.records import flat
from experiments.settings import deviations, of_the_edit, row_of
from experiments.uq import uq
from fia import parameters

RESNET = "forget_accuracy/judge"
CLIP = "clip/encoder"
COMPARED = [name for name in catalogue.names() if catalogue.load(name).paper is not None]
TABLES = [name for name in COMPARED if not catalogue.load(name).paper.x]


def paper(**changes) -> Paper:
    """Two erased classes, their mean and CLIP, printed for the unedited model and two methods."""
    section = {
        "source": "a paper, table 1",
        "file": "none.csv",
        "name": "T1",
        "model": "sd15",
        "protocol": "50 steps.",
        "rows": {"FIA": {"method.name": ["fia", "fia_release"]}, "ESD": None},
        "metrics": {
            "forget_acc": {"id": RESNET, "scale": 100},
            "avg_forget_acc": {"id": RESNET, "scale": 100},
            "clip_coco": {"id": CLIP},
        },
        "gate": {"row": "SD v1.5"},
    }
    return Paper.of(section | changes)


def printed(std: str = "") -> list[Cell]:
    numbers = {
        "SD v1.5": ("90.0", "80.0", "85.0", "31.42"),
        "FIA": ("1.0", "0.5", "0.8", "29.56"),
        "ESD": ("50.0",) * 4,
    }
    places = (("forget_acc", "tench"), ("forget_acc", "church"), ("avg_forget_acc", "all"), ("clip_coco", "coco"))
    return [
        Cell(row, *place, text, std)
        for row, texts in numbers.items()
        for place, text in zip(places, texts, strict=True)
    ]


def entry(id: str, subject: str, value: float, half: float, n: int) -> dict:
    ends = {"low": value - half, "high": value + half}
    return {"id": id, "subject": subject, "value": value, "n": n, **ends, "higher_is_better": id == CLIP}


def measured(tench: float, church: float, clip: float, half: float = 0.01) -> list[dict]:
    return [
        entry(RESNET, "tench", tench, half, 500),
        entry(RESNET, "church", church, half, 500),
        entry(RESNET, "all", (tench + church) / 2, half, 1000),
        entry(CLIP, "all", clip, 0.05, 30000),
    ]


SETTINGS = {
    "method": {"name": "fia", "alpha": 0.6},
    "task": {"name": "imagenette", "n": 500, "concepts": ["tench", "church"], "keep": []},
    "quality": {"n": 30000},
    "seed": 0,
}
EXPECTED = {"": flat(SETTINGS), "fia": flat(SETTINGS)}


def record(metrics: list[dict], method: str = "fia", unedited: list[dict] | None = None, **changes) -> dict:
    config = {
        **SETTINGS,
        "method": {"name": method, "alpha": changes.pop("alpha", 0.6)},
        "task": {**SETTINGS["task"], "n": changes.pop("n", 500)},
        "seed": changes.pop("seed", 0),
    }
    found = {
        "method": method, "task": "imagenette", "model": "sd15", "split": "test", "preset": "", "edit": {},
        "metrics": metrics, "unedited": unedited or measured(0.9, 0.8, 31.40), "config": config,
        "world": "", "note": "", "fingerprints": {"base": "01" * 32},
    }  # fmt: skip
    return found | changes


def compare(records: list[dict], cells: list[Cell] | None = None, section: Paper | None = None):
    cells, section = cells or printed(), section or paper()
    gate = {(c.metric, c.subject): c for c in cells if section.gate and c.row == section.gate.row}
    return paper_tables.compare("table", section, cells, gate, records, EXPECTED)


def rows(comparison) -> list[list[str]]:
    return paper_text.table(comparison).body


# --- the files ------------------------------------------------------------------------------------------------------


def test_uq_gives_scapres_table_to_two_decimals():
    lines = published.read("scapre_imagenette10.csv")
    columns = {
        metric: {line["method"]: line["value"] for line in lines if line["metric"] == metric}
        for metric in ("avg_forget_acc", "clip_coco", "uq")
    }
    methods = list(columns["avg_forget_acc"])
    numbers = uq(
        [float(columns["avg_forget_acc"][m]) for m in methods], [float(columns["clip_coco"][m]) for m in methods]
    )
    found = {method: f"{number:.2f}" for method, number in zip(methods, numbers, strict=True)}
    wrong = {m: (found[m], columns["uq"][m]) for m in methods if columns["uq"][m] and found[m] != columns["uq"][m]}
    assert len(methods) == 9
    assert wrong == {"SPM": ("52.89", "49.89")}  # one digit is misprinted


def test_uq_does_not_depend_on_the_order_or_the_scale_of_the_pool():
    first = uq([90, 8, 1], [31, 29, 30])
    assert uq([1, 90, 8], [30, 31, 29]) == pytest.approx([first[2], first[0], first[1]])
    assert uq([0.90, 0.08, 0.01], [31, 29, 30]) == pytest.approx(first)
    with pytest.raises(ValueError, match="2 accuracies and 1 CLIP"):
        uq([1, 2], [3])
    with pytest.raises(ValueError, match="equal accuracies"):
        uq([1, 1], [2, 3])


def averages(name: str) -> dict[tuple[str, str], tuple[float, str]]:
    """(row, average metric) -> mean of the class rows, printed average."""
    found, means = {}, {}
    experiment = catalogue.load(name).paper
    for cell in published.cells(experiment):
        found.setdefault((cell.row, cell.metric), []).append(cell)
    for (row, metric), cells in found.items():
        if (row, f"avg_{metric}") in found:
            means[row, f"avg_{metric}"] = fmean(c.value for c in cells), found[row, f"avg_{metric}"][0].text
    return means


@pytest.mark.parametrize(
    "name",
    ["fia_table1", "fia_table2", "fia_table5", "fia_table12", "fia_table13", "fia_table14", "fia_table18",
     "fia_table19", "scapre_imagenette"],
)  # fmt: skip
def test_every_average_that_does_not_follow_is_a_known_inconsistency(name: str):
    """Recomputed here; half a unit of the last printed digit is what rounding allows."""
    section = catalogue.load(name).paper
    marked, _ = published.flags(section.name, published.cells(section), published.findings())
    known = {(cell.row, cell.metric) for cell in marked if cell.metric.startswith("avg_")}
    found = averages(name)
    half = {text: 0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9 for _, text in found.values()}
    wrong = {place for place, (mean, text) in found.items() if abs(mean - float(text)) > half[text]}
    assert found and wrong <= known
    # And no average is called wrong that follows; table 2's averages are also held against figure 4.
    if name != "fia_table2":
        assert wrong == known


def test_every_line_on_inconsistencies_finds_its_cell_in_some_table():
    found = set()
    for name in TABLES:
        section = catalogue.load(name).paper
        marked, lost = published.flags(section.name, published.cells(section), published.findings())
        assert lost == []
        found |= {line.number for lines in marked.values() for line in lines}
    left = [(line.where, line.cell) for line in published.findings() if line.number not in found]
    assert left == [
        ("FIA T15", "UCE UnlearnDiffAtk"),
        ("FIA T15", "FIA UnlearnDiffAtk"),
        ("FIA T15 vs attack leaderboard", "UCE UnlearnDiffAtk"),
        ("FIA text vs Fig. 6", "number of concepts within both dashed limits"),
    ]


@pytest.mark.parametrize(
    ("name", "number", "cells"),
    [
        # where: T14 (both) vs T1 (FIA); cell: tench; printed 0.1, against 0.0
        ("fia_table14", 32, {("both", "forget_acc", "tench", "0.1")}),
        ("fia_table1", 32, {("FIA", "forget_acc", "tench", "0.0")}),  # not the other classes that print 0.0
        # T10/T11 vs T3: S-Attn_v CLIP, printed 32.00; table 11 has a total of 32
        ("fia_table11", 39, set()),
        ("fia_table10", 39, {("S-Attn_v", "clip_coco", "coco", "32.00")}),
        ("fia_table3", 39, {("SD v1.4", "clip_coco", "coco", "31.34")}),
        # Buttocks 40 against 29; Genitalia (M) 45 against 7
        ("fia_table10", 46, {("C-Attn_v", "nudenet_count", "Buttocks", "40"),
                             ("C-Attn_v", "nudenet_count", "Genitalia (M)", "45")}),
        ("fia_table2", 73, {("FMN", "avg_forget_acc", "all", "48.9")}),
    ],
)  # fmt: skip
def test_a_line_marks_its_cells_and_no_others(name: str, number: int, cells: set):
    section = catalogue.load(name).paper
    marked, _ = published.flags(section.name, published.cells(section), published.findings())
    about = {cell for cell, lines in marked.items() if number in {line.number for line in lines}}
    assert {(c.row, c.metric, c.subject, c.text) for c in about} == cells


def test_a_line_that_names_no_cell_is_said():
    line = published.Finding(7, "FIA T1", "FMN avg", "12.3", "12.4", "mean")
    marked, lost = published.flags("T1", printed(), [line])
    assert marked == {} and lost == [line]
    comparison = paper_tables.flagged(compare([]), printed(), [line])
    assert any("line 7 names no cell of this table" in note for note in paper_text.below(comparison))


# --- the comparison -------------------------------------------------------------------------------------------------


def test_published_and_measured_stand_in_one_cell_with_a_verdict():
    comparison = compare([record(measured(0.011, 0.2, 29.57))])
    assert rows(comparison) == [
        ["SD v1.5", "unedited", "the experiment's", "500/1000/30000", "90.0 / 90.0 [89.0, 91.0] in",
         "80.0 / 80.0 [79.0, 81.0] in", "85.0 / 85.0 [84.0, 86.0] in", "31.42 / 31.40 [31.35, 31.45] in"],
        ["FIA", "fia", "the experiment's", "500/1000/30000", "1.0 / 1.1 [0.1, 2.1] in", "0.5 / 20.0 [19.0, 21.0] out",
         "0.8 / 10.6 [9.6, 11.6] out", "29.56 / 29.57 [29.52, 29.62] in"],
        ["ESD", "-", "-", "-", "50.0 / -", "50.0 / -", "50.0 / -", "50.0 / -"],
    ]  # fmt: skip


def test_without_records_everything_measured_is_a_dash():
    comparison = compare([])
    assert all(cell.endswith(" / -") for row in rows(comparison) for cell in row[4:])
    assert "Gate open" in paper_text.above(comparison)[0]


def test_the_gate_stands_above_every_other_cell():
    passed = compare([record(measured(0.01, 0.005, 29.56))])
    assert paper_text.above(passed) == [
        "Gate passed: SD v1.5, unedited, agrees with the published row in all 4 numbers that can be compared.",
        "By chance alone 5% of numbers that agree lie outside the interval, here about 0.4 of the 8 compared; more do, "
        "because published numbers vary too.",
    ]
    failed = compare([record(measured(0.01, 0.005, 29.56), unedited=measured(0.7, 0.8, 31.4))])
    text = paper_text.markdown(failed)
    assert "differs from the published row beyond its interval in 2 of 4 numbers" in text
    assert "tench %: 90.0 / 70.0 [69.0, 71.0] out" in text
    assert text.index("**GATE FAILED") < text.index("| published |")
    for form in ("latex", "html"):
        shown = paper_text.FORMATS[form](failed)
        assert shown.index("GATE FAILED") < shown.index({"latex": "tabular", "html": "<table>"}[form])


def test_a_gate_that_failed_or_is_open_is_the_first_row_of_a_latex_table_and_a_column_of_a_csv():
    failed = compare([record(measured(0.01, 0.005, 29.56), unedited=measured(0.7, 0.8, 31.4))])
    passed = compare([record(measured(0.01, 0.005, 29.56))])
    for comparison, state, words in ((failed, "failed", "GATE FAILED"), (compare([]), "open", "Gate open")):
        lines = paper_text.latex(comparison).splitlines()
        first = lines[next(i for i, line in enumerate(lines) if line.startswith(r"\begin{tabular}")) + 1]
        assert first.startswith(r"\multicolumn{8}{p{\linewidth}}{\textbf{" + words) and first.endswith(r"}} \\")
        assert {line["gate"] for line in csv.DictReader(io.StringIO(paper_text.as_csv(comparison)))} == {state}
    assert "multicolumn" not in paper_text.latex(passed)
    assert {line["gate"] for line in csv.DictReader(io.StringIO(paper_text.as_csv(passed)))} == {"passed"}


def test_a_gate_from_another_table_says_so():
    notes = paper_text.below(tables.compared("fia_table2", []))
    assert notes[1].endswith("the row SD v1.5 is that of fia_table01_imagenette10.csv.")
    line = tables.compared("fia_table2", []).lines[0]
    printed_for = {(c.metric, c.subject): cell.text for c, cell in line.published.items()}
    assert line.unedited and printed_for["preserve_acc", "church"] == "86.9" and len(printed_for) == 10


def test_two_unedited_models_are_two_rows_and_one_that_fails_is_named():
    other = record(measured(0.01, 0.005, 29.5), unedited=measured(0.7, 0.8, 31.4), n=50)
    comparison = compare([record(measured(0.01, 0.005, 29.56)), other])
    assert [row[:3] for row in rows(comparison)[:2]] == [
        ["SD v1.5", "unedited", "the experiment's"], ["SD v1.5", "unedited", "task.n 50"],
    ]  # fmt: skip
    assert "in 2 of 8 numbers (tench % (task.n 50): 90.0" in paper_text.above(comparison)[0]


def test_other_settings_and_presets_are_rows_of_their_own():
    comparison = compare(
        [
            record(measured(0.01, 0.0, 29.5)),
            record(measured(0.02, 0.0, 29.5), alpha=0.8, preset="mine"),
            record(measured(0.03, 0.0, 29.5), method="fia_release"),
            record(measured(0.04, 0.0, 29.5), method="mim_mu"),
        ]
    )
    assert [row[:3] for row in rows(comparison)[1:]] == [
        ["FIA", "fia", "the experiment's"],
        ["FIA", "fia", "preset mine, alpha 0.8"],
        ["FIA", "fia_release", "settings as recorded"],  # no file of the catalogue says what is usual
        ["ESD", "-", "-"],
        ["-", "mim_mu", "settings as recorded"],
    ]
    assert rows(comparison)[-1][4] == "- / 4.0 [3.0, 5.0]"  # not in the paper, so nothing to compare


def test_other_weights_or_another_size_under_a_published_models_name_are_said():
    def words(table: str, **model: object) -> list[str]:
        config = catalogue.load(table, "method=fia").config
        own = {"method": "fia", "config": config | {"model": config["model"] | model}}
        return deviations(own, catalogue.expected(table, ["fia"])["fia"])

    hub = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    for model, said in (
        ({"published": None}, []),  # at its place it is what was published, or it is refused
        ({"path": "mine"}, ["weights unknown: mine"]),
        ({"path": "mine", "published": True}, []),
        ({"revision": "main", "published": False}, [f"weights unknown: {hub} at main"]),
        ({"size": 256}, ["model.size 256"]),
    ):
        assert words("fia_table1", **model) == said
        assert not any(of_the_edit(word) for word in said)
    # Of 1.4 no hashes are known: a copy of known weights is one of another release.
    assert words("fia_table3", path="mine", published=True) == ["weights unknown: mine"]


def test_two_ids_of_a_family_never_share_a_column():
    both = [*measured(0.01, 0.0, 29.5), entry(f"{RESNET}-v1", "tench", 0.3, 0.01, 500)]
    comparison = compare([record(both)])
    header = paper_text.table(comparison).header
    assert header[4:6] == ["tench %", f"tench % ({RESNET}-v1)"]
    fia = rows(comparison)[1]
    assert fia[4:6] == ["1.0 / 1.0 [0.0, 2.0] in", "30.0 [29.0, 31.0]"]  # shown, never compared
    assert any(f"not compared: {RESNET}-v1" in note for note in paper_text.below(comparison))


def with_fid(metrics: list[dict], n: int = 30_000) -> list[dict]:
    """And FID and KID, as another suite measures them."""
    return [
        *metrics,
        entry(f"fid/net/coco-n{n}", "all", 15.0, 0.5, n),
        entry(f"kid/net/coco-n{n}", "all", 2e-3, 1e-4, n),
    ]


def with_fid_column(pattern: str) -> tuple[Paper, list[Cell]]:
    metrics = {"forget_acc": {"id": RESNET, "scale": 100}, "fid_coco": {"id": pattern}}
    cells = [cell for cell in printed() if cell.metric == "forget_acc"]
    return paper(metrics=metrics), [*cells, Cell("SD v1.5", "fid_coco", "coco", "14.5")]


def test_one_run_with_and_without_photos_is_one_row_and_no_mean():
    section, cells = with_fid_column("fid/net/coco-n*")
    plain = record(measured(0.01, 0.005, 29.56))
    photos = record(with_fid(measured(0.01, 0.005, 29.56)), unedited=with_fid(measured(0.9, 0.8, 31.4)))
    plain["config"], photos["config"] = (
        own["config"] | {"suite": {"photos": folder}} for own, folder in ((plain, None), (photos, "a folder"))
    )
    for group in ([plain, photos], [photos, plain]):
        found = rows(compare(group, cells, section))
        assert [row[:3] for row in found] == [
            ["SD v1.5", "unedited", "the experiment's"], ["FIA", "fia", "the experiment's"], ["ESD", "-", "-"],
        ]  # fmt: skip
        assert [row[-1] for row in found[:2]] == ["14.5 / 15.0 [14.5, 15.5] in", "- / 15.0 [14.5, 15.5]"]
    # The mean is over seeds, of which these are two.
    other = record(measured(0.03, 0.005, 29.56), seed=1)
    found = rows(compare([plain, photos, other], cells, section))
    assert [row[2] for row in found if row[0] == "FIA"] == ["the experiment's", "seed 1", "mean of 2 seeds"]
    assert next(row[4] for row in found if row[2] == "mean of 2 seeds") == "1.0 / 2.0 ± 1.4"


def test_runs_of_one_seed_that_contradict_each_other_stay_apart_without_a_mean():
    found = rows(compare([record(measured(0.01, 0.0, 29.5)), record(measured(0.02, 0.0, 29.5))]))
    assert [row[2] for row in found if row[0] == "FIA"] == ["the experiment's", "the experiment's"]


@pytest.mark.parametrize(("n", "few"), [(5000, True), (9999, True), (10_000, False)])
def test_an_fid_of_few_pictures_is_shown_with_kid_which_is_never_compared(n: int, few: bool):
    section, cells = with_fid_column("fid/net/coco-n*")
    numbers = with_fid(measured(0.9, 0.8, 31.4), n)
    comparison = compare([record(numbers, unedited=numbers)], cells, section)
    head = paper_text.table(comparison).header
    assert head[6] == "FID" and head[7:] == ([f"KID x1000 (kid/net/coco-n{n})"] if few else [])
    if few:
        assert [row[-1] for row in rows(comparison)] == ["2.0 [1.9, 2.1]", "2.0 [1.9, 2.1]", "-"]
        assert not any(column.metric == "kid" for _, column, _ in comparison.judged())
        assert any(
            note.startswith("KID stands beside an FID of fewer than 10,000") for note in paper_text.below(comparison)
        )
    # So it is beside an FID that is none of the paper's itself.
    beside = paper_text.table(compare([record(numbers)], *reversed(with_fid_column("fid/other/coco-n*")))).header
    assert (f"KID x1000 (kid/net/coco-n{n})" in beside) == few


def test_what_reproduces_nothing_is_kept_apart_with_the_reason():
    tiny = record(measured(0.0, 0.0, 20.0), model="tiny")
    tuning = record(measured(0.0, 0.0, 20.0), split="tuning")
    fewer = record(measured(0.0, 0.0, 20.0))
    fewer["config"] = {**fewer["config"], "task": {**fewer["config"]["task"], "concepts": ["tench"]}}
    comparison = compare([tiny, tuning, fewer])
    assert [reason for reason, _ in comparison.apart] == [
        "made on tiny; the published numbers are of sd15",
        "made on the tuning split, on which settings are chosen",
        "made with another task.concepts than the published one",
    ]
    assert all(cell.endswith(" / -") for row in rows(comparison) for cell in row[4:])


def test_a_published_std_is_shown_and_seeds_get_a_mean_without_a_verdict():
    runs = [record(measured(0.01 + 0.01 * seed, 0.0, 29.5), seed=seed) for seed in (0, 1, 2)]
    comparison = compare(runs, printed(std="0.3"))
    fia = [row for row in rows(comparison) if row[0] == "FIA"]
    assert [row[2] for row in fia] == ["the experiment's", "seed 1", "seed 2", "mean of 3 seeds"]
    assert fia[-1][4] == "1.0 ± 0.3 / 2.0 ± 1.0"  # 1, 2 and 3 %
    # A mean without its partner's seeds is none.
    alone = compare(runs[:1], printed(std="0.3"))
    assert not any("mean of" in row[2] for row in rows(alone))


@pytest.mark.parametrize(("repeats", "verdict"), [(3, " [0.0, 2.0] in"), (2, "")])
def test_a_repeated_run_has_its_deviation_and_from_three_repeats_on_a_verdict(repeats: int, verdict: str):
    def over_repeats(metrics: list[dict]) -> list[dict]:
        return [{**metric, "sd": 0.002, "repeats": repeats} for metric in metrics]

    own = record(over_repeats(measured(0.01, 0.0, 29.5)), unedited=over_repeats(measured(0.9, 0.8, 31.4)))
    own["config"]["repeats"] = repeats
    comparison = compare([own], printed(std="0.3"))
    assert [row[:3] for row in rows(comparison)[:2]] == [
        ["SD v1.5", "unedited", f"repeats {repeats}"], ["FIA", "fia", f"repeats {repeats}"],
    ]  # fmt: skip
    assert rows(comparison)[1][4] == f"1.0 ± 0.3 / 1.0 ± 0.2{verdict}"
    # It is one run among others where a number depends on all of them.
    section = paper(metrics={
        "avg_forget_acc": {"id": RESNET, "scale": 100}, "clip_coco": {"id": CLIP}, "uq": {"id": "pool:uq"},
    })  # fmt: skip
    names = (("avg_forget_acc", "all"), ("clip_coco", "coco"), ("uq", "all"))
    cells = [Cell("FIA", *name, text) for name, text in zip(names, ("0.8", "29.56", "60.00"))]
    assert all(row[-1] != "60.00 / -" for row in rows(compare([own], cells, section)) if row[0] == "FIA")


def test_uq_is_of_the_rows_that_were_measured():
    section = paper(metrics={
        "avg_forget_acc": {"id": RESNET, "scale": 100}, "clip_coco": {"id": CLIP}, "uq": {"id": "pool:uq"},
    })  # fmt: skip
    cells = [Cell("FIA", "avg_forget_acc", "all", "0.8"), Cell("FIA", "clip_coco", "coco", "29.56"),
             Cell("FIA", "uq", "all", "60.00")]  # fmt: skip
    records = [record(measured(0.0, 0.0, 29.5)), record(measured(0.5, 0.5, 31.0), method="uce")]
    found = [row[-1] for row in rows(compare(records, cells, section))]
    # The unedited model is one of the rows: 85 %, 31.40.
    expected = [f"{number:.2f}" for number in uq([85.0, 0.0, 50.0], [31.40, 29.5, 31.0])]
    assert found == [f"- / {expected[0]}", f"60.00 / {expected[1]}", f"- / {expected[2]}"]
    notes = paper_text.below(compare(records, cells, section))
    assert "UQ depends on the rows compared, here: unedited, fia, uce (settings as recorded)." in notes


def test_uq_is_of_the_rows_of_one_seed_and_of_the_same_pictures():
    """Or a method that was run with three seeds would stand three times among its own rivals."""
    section = paper(metrics={
        "avg_forget_acc": {"id": RESNET, "scale": 100}, "clip_coco": {"id": CLIP}, "uq": {"id": "pool:uq"},
    })  # fmt: skip
    names = (("avg_forget_acc", "all"), ("clip_coco", "coco"), ("uq", "all"))
    cells = [Cell("FIA", *name, text) for name, text in zip(names, ("0.8", "29.56", "60.00"))]
    runs = {0: (0.0, 0.5), 1: (0.1, 0.3)}  # what fia and uce leave of the two classes, by seed
    records = [
        record(measured(left, left, 29.5 + left), method=method, seed=seed)
        for seed, both in runs.items()
        for method, left in zip(("fia", "uce"), both, strict=True)
    ]
    records.append(record(measured(0.2, 0.2, 20.0), n=50, unedited=measured(0.7, 0.8, 31.4)))
    comparison = compare(records, cells, section)
    found = {(row[1], row[2]): row[-1] for row in rows(comparison)}
    pools = [uq([85.0, 100 * a, 100 * b], [31.40, 29.5 + a, 29.5 + b]) for a, b in runs.values()]
    usual, known = "the experiment's", "settings as recorded"
    assert found["unedited", usual] == f"- / {pools[0][0]:.2f}"
    assert [found["fia", words] for words in (usual, "seed 1")] == [f"60.00 / {pool[1]:.2f}" for pool in pools]
    assert [found["uce", words] for words in (known, f"{known}, seed 1")] == [f"- / {pool[2]:.2f}" for pool in pools]
    mean, std = fmean(pool[1] for pool in pools), stdev(pool[1] for pool in pools)
    assert found["fia", "mean of 2 seeds"] == f"60.00 / {mean:.2f} ± {std:.2f}"
    # Other pictures, here fewer, are another pool: of the unedited model and one method.
    fewer = uq([75.0, 20.0], [31.4, 20.0])
    assert [found[who, "task.n 50"] for who in ("unedited", "fia")] == [
        f"- / {fewer[0]:.2f}",
        f"60.00 / {fewer[1]:.2f}",
    ]
    assert [note for note in paper_text.below(comparison) if note.startswith("UQ depends")] == [
        f"UQ depends on the rows compared, here: {names}."
        for names in (
            f"unedited, fia, uce ({known})",
            f"unedited, fia (seed 1), uce ({known}, seed 1)",
            "unedited (task.n 50), fia (task.n 50)",
        )
    ]


def test_counts_of_an_edit_need_no_picture():
    section = paper(metrics={"kept": {"id": "edit:counts.all.agnostic+counts.all.pruned"}}, gate=None)
    edit = {"counts": {"all": {"agnostic": 3, "pruned": 40}}}
    comparison = compare([record([], edit=edit, unedited=[])], [Cell("FIA", "kept", "all", "50")], section)
    assert rows(comparison)[0][4] == "50 / 43"
    assert "No gate" in paper_text.above(comparison)[0]


def test_csv_holds_every_pair_in_the_published_unit():
    comparison = compare([record(measured(0.011, 0.2, 29.57))])
    found = list(csv.DictReader(io.StringIO(paper_text.as_csv(comparison))))
    first = next(line for line in found if line["row"] == "FIA" and line["subject"] == "church")
    assert (first["published"], first["agrees"], first["id"], first["n"]) == ("0.5", "out", RESNET, "500")
    assert [float(first[name]) for name in ("measured", "low", "high")] == pytest.approx([20, 19, 21])
    assert next(line for line in found if line["row"] == "ESD")["measured"] == ""


@pytest.mark.parametrize("form", paper_text.FORMATS)
def test_every_format_holds_the_numbers(form: str):
    text = paper_text.FORMATS[form](compare([record(measured(0.011, 0.2, 29.57))]))
    assert ("89.0" in text) and (r"\hline" in text) == (form == "latex")
    if form == "latex":
        assert not re.search(r"(?<!\\)%", "\n".join(line for line in text.splitlines() if line[0] != "%"))


# --- the experiment files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPARED)
def test_an_experiment_names_what_exists(name: str):
    experiment = catalogue.load(name)
    section, config = experiment.paper, experiment.config
    found = published.cells(section) if not section.x else []
    assert config["model"]["name"] == section.model and config["records"].startswith("runs/")
    assert config["task"]["split"] == "test"
    methods = {path.stem for path in (catalogue.CONF / "method").glob("*.yaml")}
    swept = experiment.sweep.get("method", [config["method"]["name"]])
    wanted = {m for c in section.rows.values() for m in _many((c or {}).get("method.name", []))}
    assert {*swept, *wanted, *section.methods} <= methods
    if not section.x:
        assert {cell.metric for cell in found} == set(section.metrics)
        assert set(section.rows) <= {cell.row for cell in found}
        assert set(section.subjects) <= {cell.subject for cell in found}
        classes = {cell.subject for cell in found if cell.metric in ("forget_acc", "preserve_acc")} - {"all"}
        known = {*config["task"].get("classes", ()), "Suitcase"}  # ImageNet has no suitcase
        assert {section.subject(name) for name in classes} <= known
    if section.gate is not None:
        assert published.gate_cells(section)


@pytest.mark.parametrize("name", COMPARED)
def test_an_experiment_that_runs_the_unedited_model_has_a_gate_or_says_why_not(name: str):
    experiment = catalogue.load(name)
    section = experiment.paper
    runs_it = "none" in experiment.sweep.get("method", [experiment.config["method"]["name"]])
    assert section.gate is None or not section.no_gate
    if runs_it and section.gate is None:
        assert section.no_gate
        assert paper_text.gate(paper_tables.Comparison(name, section, [], [])) == f"No gate: {section.no_gate}."


@pytest.mark.parametrize("name", ["fia_table3", "fia_table4", "fia_table20", "fia_fig6", "scaling50"])
def test_photos_alone_measure_the_published_fid(name: str):
    assert catalogue.load(name).config["suite"]["cleanfid"] is False
    assert catalogue.load(name, "suite.photos=a_folder").config["suite"]["cleanfid"] is True
    assert catalogue.load(name, "suite.photos=a_folder", "suite.cleanfid=false").config["suite"]["cleanfid"] is False


def _many(value: object) -> list:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", COMPARED)
def test_scales_are_those_of_the_tables(name: str):
    """What is percent in the paper is what our own tables show as percent."""
    for metric, source in catalogue.load(name).paper.metrics.items():
        if source.id and ":" not in source.id:
            assert source.scale == values.unit(source.id).scale, metric


def test_every_table_and_figure_has_an_experiment():
    # Table 8 lists hyper-parameters, see the next test; 6 and 7 are prompts, 15 is on attacks.
    numbers = [1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21]
    wanted = {f"fia_table{n}" for n in numbers} | {"fia_fig4", "fia_fig5a", "fia_fig5b", "fia_fig6"}
    assert set(COMPARED) == wanted | {"scaling50", "scapre_imagenette", "tiny_scaling"}
    for words in published.ELSEWHERE.values():
        assert published.read(*re.findall(r"results/paper/(\S+\.csv)", words))


@pytest.fixture
def no_judge_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No prompt list is here, and the judges of Stable Diffusion's suite see nothing. Gives a folder for photos."""
    import numpy as np
    import torch

    from eval import clip, inception, nudity, resnet

    def features(self, seen) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(0).normal(size=(len(seen), 4)))

    monkeypatch.delenv("FIA_MIRROR", raising=False)
    monkeypatch.setenv("FIA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(resnet.ResNet50, "logits", lambda self, seen: {"object": torch.zeros(len(seen), 1000)})
    for name in ("image_features", "text_features"):
        monkeypatch.setattr(clip.OpenClip, name, features)
    for network in (inception.Inception, inception.CleanInception):
        monkeypatch.setattr(network, "features", features)
    monkeypatch.setattr(nudity.NudeNet, "detect", lambda self, seen: [[] for _ in seen])
    return tmp_path


def ids_of(name: str, photos: Path) -> set[str]:
    """The ids that the experiment's own task and suite give an edited model; N where they have a number of captions."""
    import numpy as np
    from hydra import compose, initialize_config_dir

    from experiments.scores import named
    from experiments.setup import setup
    from harness.generate import ImageSet

    own = ["dry_run=true", "device=cpu", "quality.n=3"]
    config = catalogue.load(name).config
    if config["suite"]["name"] == "sd":
        own.append(f"suite.photos={photos}")  # which alone has to give the published FID
    if config["task"]["kind"] != "explicit":
        own.append("task.n=1")
    with initialize_config_dir(str(catalogue.CONF), version_base="1.3"):
        parts = setup(compose("config", overrides=[f"+experiment={name}", *own]))
    found = []
    for metric in parts.metrics:
        if metric.set not in parts.task.sets:
            continue
        prompts = parts.task.sets[metric.set]
        prompts = prompts.first(4) if metric.set == "explicit" else prompts
        side = parts.model.size if config["model"]["name"] == "tiny" else 8
        images = ImageSet(prompts, [np.full((side, side, 3), i % 256, np.uint8) for i in range(len(prompts))], "k")
        rows = metric.rows(images)
        more = {"photo_rows": rows} if getattr(metric, "photos", None) is not None else {}
        found += named(metric.summarise(rows, parts.task, rows.copy(), **more), prompts.source)
    return {re.sub(r"-?n3$", "-nN", value.id).replace("/-nN", "/nN") for value in found}


@pytest.mark.parametrize("name", COMPARED)
def test_every_id_that_is_compared_is_one_that_the_experiment_measures(name: str, no_judge_looks: Path):
    experiment = catalogue.load(name)
    ids = {source.id for source in experiment.paper.metrics.values() if source.id and ":" not in source.id}
    if not ids:
        assert experiment.config["edit_only"]
        return
    # With photos, which decide what some experiments measure.
    config = catalogue.load(
        name, *(["suite.photos=photos"] if experiment.config["suite"]["name"] == "sd" else [])
    ).config
    key = json.dumps({part: config[part] for part in ("task", "suite", "quality", "model")})
    if key not in MEASURED:
        MEASURED[key] = ids_of(name, no_judge_looks)
    assert {re.sub(r"n[0-9]{2,}$", "nN", id) for id in ids} <= MEASURED[key]


MEASURED: dict[str, set[str]] = {}


def test_fias_hyper_parameters_are_those_of_table_8():
    """Of every concept: r1 and r2 in percent, alpha."""
    tasks = {"objects": "imagenette", "explicit": "i2p", "art": "artists"}
    found = {kind: catalogue.load("fia_table1", f"task={task}", "method=fia").config for kind, task in tasks.items()}
    lines = published.read("fia_table08_hyperparameters.csv")
    for line in lines:
        method, name = found[line["task"]]["method"], line["concept"].casefold()
        assert method["r1_per_concept"] == method["r2_per_concept"] == "paper"
        assert method["task_name"] in parameters.PAPER_TASKS
        ours = [100 * parameters.PAPER_R1.get(name, method["r1"]), 100 * parameters.PAPER_R2.get(name, method["r2"])]
        assert [*ours, method["alpha"]] == pytest.approx([float(line[f"{r}_percent"]) for r in ("r1", "r2")] + [
            float(line["alpha"])
        ]), name  # fmt: skip
    assert {*parameters.PAPER_R1, *parameters.PAPER_R2} <= {line["concept"].casefold() for line in lines}


def test_the_cost_of_an_edit_names_its_hardware_and_is_not_judged():
    section = catalogue.load("fia_table17").paper
    expected = catalogue.expected("fia_table17", ["fia"])
    config = catalogue.load("fia_table17", "method=fia", "task.size=10").config
    config = config | {"speed": {"group": 1, "chunk": 8, "r1_grid": None}}

    def run(device: str, runs: int = 1) -> dict:
        made = {"device": device, "seconds": 60.5, "unet_samples": 9, "peak_memory_bytes": 3 * 2**30, "runs": runs}
        return record([], unedited=[], task="fia50", config=config, cost={"edit_made": made})

    comparison = paper_tables.compare(
        "fia_table17", section, published.cells(section), {}, [run("one GPU"), run("another", 2)], expected
    )
    found = [row for row in rows(comparison) if row[0] == "10 concepts"]
    assert [row[2] for row in found] == ["group 1, on another, in 2 runs", "group 1, on one GPU"]
    assert [row[4:] for row in found] == [["113.10 / 60.50", "2974 / 3072"]] * 2
    assert rows(comparison)[0][4:] == ["11.28 / -", "2954 / -"]
    assert any(note.startswith("Cost: ") for note in paper_text.below(comparison))


def test_every_swept_setting_of_an_ablation_is_a_published_row():
    for name in TABLES:
        experiment = catalogue.load(name)
        if "method" in experiment.sweep:
            continue
        rows = set()
        for job in experiment.jobs():
            config = OmegaConf.merge(experiment.config, OmegaConf.from_dotlist(job))
            rows.add(row_of(experiment.paper, {"config": OmegaConf.to_container(config)}))
        assert rows == set(experiment.paper.rows), name


def test_a_run_ignores_what_it_is_compared_with():
    from hydra import compose, initialize_config_dir

    from experiments.config import _resolved

    with initialize_config_dir(str(catalogue.CONF), version_base="1.3"):
        cfg = compose("config", overrides=["+experiment=fia_table1"])
    assert "paper" in cfg and "paper" not in _resolved(cfg)


def test_a_paper_section_with_an_unknown_or_missing_key_is_refused():
    with pytest.raises(ValueError, match="did you mean gate"):
        paper(gates={})
    with pytest.raises(ValueError, match="lacks protocol"):
        paper(protocol="")
    with pytest.raises(ValueError, match=r"unknown file of published numbers 'fia_table99\.csv'"):
        published.read("fia_table99.csv")


# --- the command ----------------------------------------------------------------------------------------------------


def kept(folder: Path, *records: dict) -> Path:
    folder.mkdir(parents=True)
    for number, data in enumerate(records):
        write_record(folder / f"{number}.json", data)
    return folder


def sd_record(**changes) -> dict:
    """A record of fia_table1 as a run would write it, with the numbers of one class."""
    config = catalogue.load("fia_table1", "method=fia").config
    id = catalogue.load("fia_table1").paper.metrics["forget_acc"].id
    metrics = [entry(id, "tench", 0.0, 0.004, 500), entry(id, "all", 0.019, 0.004, 5000)]
    found = record(metrics, unedited=[entry(id, "tench", 0.985, 0.01, 500)])
    return found | {"config": config | {"dtype": "float16"}} | changes


def test_the_command_reads_an_experiments_records(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = kept(tmp_path / "records", sd_record(), sd_record(model="tiny"))
    assert tables.main(["fia_table1", "--records", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "| SD v1.5 | unedited | the experiment's | 500 |" in out and "98.5 / 98.5 [97.5, 99.5] in" in out
    assert "0.0 (e) / 0.0 [-0.4, 0.4] in" in out and "(e) FIA T14 (both) vs T1 (FIA), tench" in out
    apart = out[out.index("Not compared: 1 record made on tiny; the published numbers are of sd15") :]
    assert "| fia |" in apart and "published" not in apart.partition("sd15")[2]


def test_a_csv_leaves_the_gate_and_what_is_not_compared_to_the_other_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = kept(tmp_path / "records", sd_record(), sd_record(model="tiny"))
    assert tables.main(["fia_table1", "--records", str(folder), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert {line["gate"] for line in csv.DictReader(io.StringIO(out))} == {"passed"}
    gate, chance, apart = err.splitlines()
    assert gate.startswith("Gate passed: SD v1.5") and chance.startswith("By chance alone 5%")
    assert apart == "Not compared: 1 record made on tiny; the published numbers are of sd15"


def staged() -> dict:
    """tench is forgotten, then church, and tench comes back a little."""
    stages = [
        {"concepts": names, "metrics": measured(tench, church, 31.0)}
        for names, tench, church in ((["tench"], 0.1, 0.8), (["tench", "church"], 0.3, 0.0))
    ]
    return record(measured(0.3, 0.0, 31.0), stages=stages)


def test_whatever_is_kept_is_written_without_a_list_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert rebuild.main(["tables"]) == 0
    assert "no records yet" in capsys.readouterr().out and not Path("tables").exists()
    kept(Path("runs/fia_table1"), sd_record())
    # Of one experiment, whose runs table 5 shares; of another, two tasks; of none.
    kept(Path("results/records/fia_table4"), record(measured(0.1, 0.1, 31.0), task="artists"))
    kept(Path("results/records/tiny_tasks"), record(measured(0.1, 0.1, 31.0)), record([], task="i2p"))
    kept(Path("results/records/a_schedule"), staged())
    # A demo's record is of a published table's task, but on another model.
    write_record(Path("results/records/demo.json"), record([], task="imagenette_5v5", model="tiny"))
    assert rebuild.main(["tables"]) == 0
    written = {path.stem: path.read_text() for path in Path("tables").glob("*.md")}
    assert set(written) == {
        "fia_table1", "fia_table4", "fia_table5", "tiny_tasks", "a_schedule", "a_schedule_stages", "records",
    }  # fmt: skip
    assert "Gate passed" in written["fia_table1"] and "+20.0 (tench)" in written["a_schedule_stages"]
    assert "### imagenette, model" in written["tiny_tasks"] and "### i2p, model" in written["tiny_tasks"]
    # All methods on all tasks above them, in the order of the sweep, and as a picture.
    assert written["tiny_tasks"].index("| method | imagenette: forget %") < written["tiny_tasks"].index(
        "### imagenette"
    )
    assert [path.stem for path in Path("tables").glob("*.png")] == ["tiny_tasks"]


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = sizes.PAGE.parents[1] / "results"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "records").symlink_to(results / "records")
    monkeypatch.chdir(tmp_path)  # without the experiments' own runs
    pages = rebuild.pages()
    texts = {name: page.text for name, page in pages.items()}
    there = {path.stem: path.read_text(encoding="utf-8") for path in (results / "tables").glob("*.md")}
    stale = sorted(name for name in {*texts, *there} if texts.get(name) != there.get(name))
    assert not stale, f"results/tables is not what results/records say of {', '.join(stale)}: make tables"
    drawn = {f"{name}{end}" for name, page in pages.items() for end in page.pictures}
    assert {path.stem for path in (results / "tables").glob("*.png")} == drawn, "make tables"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "name an experiment or a folder"),
        (["fia_tabel1"], "no record at 'fia_tabel1'"),
        (["fia_table8"], "fia_table08_hyperparameters.csv; our values of them are those of conf/method/fia.yaml and"),
        (["fia_table15"], "is on attacks, which no experiment here runs: results/paper/fia_table15_robustness.csv"),
        (["fia_table1", "--sd"], "fia_table1: --sd is for tables of records"),
        (["tiny_sweep"], "tiny_sweep has no records yet in runs/tiny_sweep"),
        (["fia_table1", "--records", "nowhere"], "no record at 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert tables.main(arguments) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


# --- figures --------------------------------------------------------------------------------------------------------


def test_how_far_fia_keeps_to_the_limits_of_figure_6():
    """By the published points; the paper's text says 45."""
    section = catalogue.load("fia_fig6").paper
    printed = figures.printed_series(section, published.lines(section))
    points = {metric: next(s.points for s in series if s.row == "FIA") for metric, series in printed.items()}
    assert reach(points["fid_coco"], section.limits["fid_coco"]) == (pytest.approx(42.1, abs=0.05), True)
    assert reach(points["clip_coco"], section.limits["clip_coco"]) == (pytest.approx(45.9, abs=0.05), True)
    lines = figures.within(figures.Figure("f", section, printed))
    assert lines[0] == "Limits: forget_acc <= 10, clip_coco >= 24, fid_coco <= 50."
    assert "FIA (published): 42.1 concepts, then beyond the limit of fid_coco." in lines
    assert "SPM (published): not measured in all of forget_acc, clip_coco, fid_coco at two sizes or more." in lines
    assert "ESD (published): not measured in all of clip_coco, fid_coco at two sizes or more." not in lines


@pytest.mark.parametrize(
    ("ys", "limit", "found"),
    [
        ((30, 28, 26), ">= 24", (30, False)),  # never crossed: at least the last size
        ((30, 28, 20), ">= 24", (25, True)),
        ((20, 28, 30), ">= 24", None),  # beyond it from the first size on
        ((10, 60, 10), "<= 50", (18, True)),  # the first crossing counts
    ],
)
def test_reach(ys: tuple, limit: str, found: tuple | None):
    assert reach([Point(x, y) for x, y in zip((10, 20, 30), ys, strict=True)], limit) == found


def test_doing_nothing_forgets_no_concept(tmp_path: Path):
    """In the tiny world's own figure: what keeps its pictures and forgets nothing is beyond the limit at once."""
    section = catalogue.load("tiny_scaling").paper
    ids = {metric: source.id for metric, source in section.metrics.items()}
    # A distance of another number of captions would not be drawn.
    assert ids["fid_vs_base"].endswith(f"/n{catalogue.load('tiny_scaling').config['quality']['n']}")

    def run(method: str, size: int, left: float, clip: float, distance: float) -> dict:
        numbers = {"avg_forget_acc": left, "clip": clip, "fid_vs_base": distance}
        metrics = [entry(ids[metric], "all", value, 0.01, 32) for metric, value in numbers.items()]
        config = catalogue.load("tiny_scaling", f"method={method}", f"task.size={size}").config
        return record(metrics, method, unedited=[], task="tiny_scaling", model="tiny", config=config)

    runs = [run("uce", size, 0.99, 77.0, 1.0) for size in (1, 4, 10)]
    runs += [run("fia", size, 0.1, 77 - 3 * size, 10.0 * size) for size in (1, 4, 8)]
    runs += [run("scapre", 4, 0.1, 77.0, 1.0), run("scapre", 4, 0.1, 77.0, 1.0)]  # as with and without photos
    figure = figures.figure_of("tiny_scaling", runs)
    assert figure.notes[0].startswith("the embedded tiny world, objects forgotten at once; its own judges")
    assert "uce: none of the sizes from 1 on keeps to the limit of avg_forget_acc." in figure.notes
    assert "fia: 6.0 concepts, then beyond the limit of clip." in figure.notes
    limits = "avg_forget_acc, clip, fid_vs_base"
    assert f"scapre: not measured in all of {limits} at two sizes or more." in figure.notes
    assert figures.draw(figure, tmp_path / "figure.png").is_file()
    empty = figures.figure_of("tiny_scaling", [])
    assert empty.notes[-1] == "Nothing was measured yet." and figures.draw(empty, tmp_path / "empty.png").is_file()


def test_a_figure_has_published_and_measured_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    section = catalogue.load("fia_fig5a").paper
    id = section.metrics["avg_forget_acc"].id
    group = []
    for alpha in (0.6, 0.4):
        config = catalogue.load("fia_fig5a", f"method.alpha={alpha}").config
        metrics = [entry(id, "all", alpha / 10, 0.01, 5000)]
        group.append(record(metrics, unedited=[entry(id, "all", 0.7, 0.01, 5000)]) | {"config": config})
    figure = figures.figure_of("fia_fig5a", group)
    (series,) = figure.measured["avg_forget_acc"]
    assert (series.row, series.label) == ("FIA", "fia")
    assert [(p.x, p.y) for p in series.points] == [(0.4, pytest.approx(4)), (0.6, pytest.approx(6))]
    levels = [one for one in figure.printed["avg_forget_acc"] if one.points[0].x is None]
    assert {one.row for one in levels} == {"FMN", "ESD", "CP", "MACE", "UCE", "SPM"}
    assert any(note.startswith("GATE FAILED: SD v1.5") for note in figure.notes)


def test_a_method_that_is_told_what_to_keep_has_one_line_along_figure_4():
    group = [
        record([entry(catalogue.load("fia_fig4").paper.metrics["avg_forget_acc"].id, "all", 0.1 * x, 0.01, 50)],
               config=catalogue.load("fia_fig4", f"task.x={x}", "method=salun").config, method="salun",
               task="imagenette_xvy")
        for x in (2, 5, 7)
    ]  # fmt: skip
    assert [len(one["config"]["method"]["keep"]) for one in group] == [8, 5, 3]
    (series,) = figures.figure_of("fia_fig4", group).measured["avg_forget_acc"]
    assert (series.label, len(series.points)) == ("salun", 3)
    group[0]["config"]["method"]["keep"] = ["church"]
    labels = {one.label for one in figures.figure_of("fia_fig4", group).measured["avg_forget_acc"]}
    assert labels == {"salun", 'salun, keep ["church"]'}


def test_the_gate_of_figure_4_is_table_1_class_by_class():
    """Over all places of the axis: what is forgotten at one is still forgotten at the next."""
    id = catalogue.load("fia_fig4").paper.metrics["avg_forget_acc"].id
    first, second = entry(id, "garbage truck", 0.891, 0.01, 50), entry(id, "cassette player", 0.676, 0.01, 50)
    group = [
        record([], unedited=classes, config=catalogue.load("fia_fig4", f"task.x={x}", "method=none").config,
               method="none", task="imagenette_xvy")
        for x, classes in ((1, [first]), (2, [first, second]))
    ]  # fmt: skip
    notes = figures.figure_of("fia_fig4", group).notes
    assert notes[1] == (
        "Gate passed: SD v1.5, unedited, agrees with the published row in all 2 numbers that can be compared."
    )
    group[1]["unedited"] = [first, entry(id, "cassette player", 0.5, 0.01, 50)]
    notes = figures.figure_of("fia_fig4", group).notes
    assert notes[1].startswith("GATE FAILED: SD v1.5") and "cassette player %: 67.6 / 50.0 [49.0, 51.0] out" in notes[1]


@pytest.mark.parametrize("name", figures.names())
def test_a_figure_without_records_shows_the_published_points(name: str, tmp_path: Path):
    figure = figures.figure_of(name, [])
    published_points = ": only the published points are drawn" if figure.paper.file else ""
    assert f"Nothing was measured yet{published_points}." in figure.notes
    assert figures.draw(figure, tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_is_no_figure(capsys: pytest.CaptureFixture):
    assert figures.main(["fia_table1"]) == 2
    assert "fia_table1 is no figure; figures: fia_fig4, fia_fig5a" in capsys.readouterr().err


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "runs", "unedited", "edited"),
    [
        # Ten classes of 500 and 30,000 captions; one of the twelve methods is `none`.
        ("fia_table1", 12, 35_000, 11 * 35_000),
        # Nine splits of the same ten classes: the unedited pictures are shared.
        ("fia_fig4", 108, 500, 11 * 9 * 500),
        # 10 to 49 forgotten and 50 kept classes of 20.
        ("fia_fig6", 35, 99 * 20 + 30_000, 6 * ((10 + 20 + 30 + 40 + 49 + 5 * 50) * 20 + 5 * 30_000)),
        ("fia_table9", 6, 0, 0),
        ("fia_table12", 4, 35_000, 4 * 35_000),
    ],
)
def test_sizes_follow_from_the_configuration(name: str, runs: int, unedited: int, edited: int):
    found = sizes.size(name)
    assert (found.runs, found.unedited, found.edited) == (runs, unedited, edited)


def test_pictures_of_explicit_content_take_no_disk():
    found = sizes.size("fia_table3")
    assert found.unedited == 4703 + 30_000
    assert found.disk == int((1 + 10) * 30_000 * 512**2 * sizes.PNG_BYTES_PER_PIXEL)


def test_the_page_on_reproduction_holds_the_current_table():
    """After a change of an experiment: python -m experiments.sizes"""
    page = sizes.PAGE.read_text(encoding="utf-8")
    shown = page.partition(sizes.BEGIN)[2].partition(sizes.END)[0]
    assert shown == sizes.table(sizes.kept_records())


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (["NVIDIA A"], "1.5 h for 1 of 12 runs on NVIDIA A"),
        (["NVIDIA A", "NVIDIA A"], "3.0 h for 2 of 12 runs on NVIDIA A"),
        (["NVIDIA A", "NVIDIA B"], "-"),
        (["cpu"], "1.5 h for 1 of 12 runs on a processor, 2 threads"),
        (["NVIDIA A", ""], "-"),
        ([], "-"),
    ],
)
def test_hours_are_those_of_one_named_machine(devices: list[str], words: str):
    hardware = {"hardware": {"cpu": "a processor", "threads": 2}}
    group = [sd_record(cost={"device": device, "seconds": 5400.0}, environment=hardware) for device in devices]
    assert sizes.time("fia_table1", group).words(12) == words


def test_the_time_of_a_smaller_look_is_not_that_of_the_experiment():
    made = {"cost": {"device": "NVIDIA A", "seconds": 60.0}}
    smaller = sd_record(config=catalogue.load("fia_table1", "method=fia", "task.n=50").config, **made)
    assert sizes.time("fia_table1", [smaller]).words(12) == "-"
    # Every value of a sweep is the experiment's, and so is a run that its file asks for besides.
    runs = [
        sd_record(config=catalogue.load("fia_table12", override).config, **made)
        for override in ("method.alpha=0.8", "method.fusion=union")
    ]
    assert sizes.time("fia_table12", runs).runs == 2


def test_source_ids_may_be_patterns():
    source = Source("fid/clean/coco-n2999?")
    assert source.measures("fid/clean/coco-n29994") and not source.measures("fid/clean/coco-n5000")


def test_an_fid_of_another_n_stands_apart_and_is_not_compared():
    """In a task on explicit content the strict screen also shortens the captions; the published FID has them all."""
    sources = {name: catalogue.load(name).paper.metrics["fid_coco"] for name in ("fia_table3", "fia_table4")}
    assert sources["fia_table3"].apart and sources["fia_table3"].id.endswith("-n27777")
    assert not sources["fia_table4"].apart and sources["fia_table4"].id.endswith("-n29989")
    id = sources["fia_table3"].id
    section = paper(metrics={"fid_coco": {"id": id, "apart": True}})
    cells = [Cell("SD v1.5", "fid_coco", "coco", "14.04"), Cell("FIA", "fid_coco", "coco", "17.9")]
    numbers = [entry(id, "all", 14.1, 0.2, 27_777)]
    comparison = compare([record(numbers, unedited=numbers)], cells, section)
    assert paper_text.table(comparison).header[4:] == ["FID", f"FID ({id})"]
    assert rows(comparison)[0][3:] == ["27777", "14.04 / -", "14.10 [13.90, 14.30]"]
    assert comparison.gate() == []


def test_fids_have_verdicts():
    """Also of 2,048 features: eval.fid gives their intervals by a jackknife."""
    id = catalogue.load("fia_table4").paper.metrics["fid_coco"].id
    section = paper(metrics={"fid_coco": {"id": id}})
    cells = [Cell("SD v1.5", "fid_coco", "coco", "14.04")]
    numbers = [entry(id, "all", 14.1, 0.2, 29_989)]
    comparison = compare([record(numbers, unedited=numbers)], cells, section)
    assert paper_text.above(comparison)[0].startswith("Gate passed")
