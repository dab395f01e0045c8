"""`repeats=N` from a configuration to a record, on a small random model (toy_suite)."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import toy_explicit
import toy_suite
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments import cli, run, scores, show
from experiments.run import benchmark, plan
from experiments.setup import repeated, setup
from harness.edit import NoEffectError
from harness.method import Cost
from harness.record import Record, read
from harness.task import PromptSet, Row

# `seed: null` follows the run's seed, so that every repeat has an edit of its own.
FIA = [
    *("method=fia", "method.num_pairs=1", "method.words=[road]", "method.sampler.name=ddim", "method.sampler.steps=2"),
    *("method.steps=1", "method.r2=0.3", "method.alpha=1.0", "method.seed=null"),
]


def config(search: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return compose("config", overrides=[f"hydra.searchpath=[file://{search}]", *overrides])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, random_sd_folder: Path) -> Any:
    """Composes a small run; all tests of this file share one store."""
    root = tmp_path_factory.mktemp("toy")
    search = toy_suite.write(root / "conf")
    places = (f"store={root / 'store'}", f"records={root / 'records'}", "device=cpu")
    return lambda *more: config(search, *toy_suite.run_on(random_sd_folder), "task.n=2", "quality.n=3", *places, *more)


@pytest.fixture(scope="module")
def single(toy: Any) -> Record:
    return benchmark(toy(*FIA))[0]


@pytest.fixture(scope="module")
def planned(toy: Any, single: Record) -> dict[str, Any]:
    """The plan of a repeated run after the single one."""
    return plan(toy(*FIA, "repeats=3"))


@pytest.fixture(scope="module")
def thrice(toy: Any, planned: dict[str, Any]) -> tuple[Record, Path]:
    return benchmark(toy(*FIA, "repeats=3"))


def by_key(record: Record, side: str = "metrics") -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["id"], m["subject"]): m for m in record.as_dict()[side]}


def test_the_seeds_of_a_repeat():
    rows = PromptSet("quality", (Row("a", "a road", 7), Row("b", "a house", 7), Row("c", "a road", 8)))
    again = rows.repeat(1)
    assert rows.repeat(0) is rows and [row.id for row in again] == ["a", "b", "c"]
    # Rows that share a seed share it in every repeat; no repeat has a seed of another.
    assert again.rows[0].seed == again.rows[1].seed != again.rows[2].seed
    assert len({row.seed for number in range(4) for row in rows.repeat(number)}) == 8
    assert rows.repeat(1) == again


def test_the_first_repeat_is_the_single_run(single: Record, thrice: tuple[Record, Path]):
    record, path = thrice
    assert read(path).config["repeats"] == 3 and record.identity != single.identity
    # Six class pictures and three captions, before and after: those of the single run were there.
    assert (record.counts["images_made"], record.counts["images_reused"]) == (36, 18)
    assert record.counts["edit_reused"] == 1 and record.counts["screened"] == single.counts["screened"]
    edits = [record.fingerprints[name] for name in ("edit", "edit.1", "edit.2")]
    assert edits[0] == single.fingerprints["edit"] and len(set(edits)) == 3
    assert record.edit["shares"] == single.edit["shares"]
    assert record.cost["edit_made"] == single.cost["edit_made"]


def test_a_value_is_the_mean_of_the_repeats_own(toy: Any, thrice: tuple[Record, Path]):
    parts = setup(toy(*FIA, "repeats=3"))
    runs = [run._run(one, Cost(parts.model, parts.device)) for one in repeated(parts)]
    assert all(counts["images_made"] == 0 for counts in (one.counts for one in runs))
    alone = [scores.summed_up(parts.task, [one.scored]) for one in runs]
    for side, name in enumerate(("unedited", "metrics")):
        own = [{(value.id, value.subject): value for value in found[side]} for found in alone]
        together = by_key(thrice[0], name)
        assert list(together) == list(own[0])
        for key, metric in together.items():
            values = [found[key].value for found in own]
            assert metric["value"] == pytest.approx(statistics.fmean(values)), key
            assert metric["sd"] == pytest.approx(statistics.stdev(values)), key
            assert (metric["repeats"], metric["n"]) == (3, sum(found[key].n for found in own))
            assert metric["low"] <= metric["value"] <= metric["high"]


def test_shares_have_their_difference_to_the_unedited_model(single: Record, thrice: tuple[Record, Path]):
    for record in (single, thrice[0]):
        before = by_key(record, "unedited")
        shares = {key: m for key, m in by_key(record).items() if "accuracy" in key[0] or "overall" in key[0]}
        assert len(shares) == 6
        for key, metric in shares.items():
            change = metric["difference"]
            assert change["value"] == pytest.approx(metric["value"] - before[key]["value"])
            assert change["low"] <= change["value"] <= change["high"]
        assert not any("difference" in metric for metric in before.values())


def test_unedited_pictures_are_shared_by_all_methods(toy: Any, thrice: tuple[Record, Path]):
    record, _ = benchmark(toy("method=none", "repeats=3"))
    assert record.counts["images_made"] == 0
    assert by_key(record) == by_key(record, "unedited") == by_key(thrice[0], "unedited")


def test_the_plan_counts_all_repeats(toy: Any, planned: dict[str, Any], thrice: tuple[Record, Path]):
    made = {(item["name"], item["edited"]): (item["rows"], item["make"]) for item in planned["sets"]}
    assert made == {
        ("classes", False): (18, 12), ("classes", True): (18, 12),
        ("quality", False): (9, 6), ("quality", True): (9, 6),
    }  # fmt: skip
    assert (planned["edits_stored"], planned["repeats"], planned["unet_samples"]) == (1, 3, 36 * 4)
    after = plan(toy(*FIA, "repeats=3"))
    assert after["edits_stored"] == 3 and after["unet_samples"] == 0


def test_the_screen_shows_the_deviation(thrice: tuple[Record, Path], capsys: pytest.CaptureFixture):
    show.show_record(read(thrice[1]))
    out = capsys.readouterr().out
    assert "Repeats: 3." in out and " ± " in out and "standard deviation over repeats" in out


def test_repeats_of_which_only_some_change_nothing_are_no_run(toy: Any, monkeypatch: pytest.MonkeyPatch):
    kinds = lambda parts, cost: run._Run({"kind": "none" if parts.config["seed"] == 4 else "mask"})  # noqa: E731
    monkeypatch.setattr(run, "_run", kinds)
    with pytest.raises(NoEffectError, match="others do, as with seed=4"):
        benchmark(toy(*FIA, "repeats=3", "seed=3"))


@pytest.mark.parametrize(
    ("settings", "hints"),
    [
        ([*FIA, "method.seed=8"], ["; method.seed=null gives each an edit of its own"]),
        (["method=uce"], [""]),
        (FIA, []),
        (["method=none"], []),
    ],
    ids=["a seed of its own", "no seed at all", "the run's seed", "no edit"],
)
def test_repeats_of_one_edit_say_so(toy: Any, caplog: pytest.LogCaptureFixture, settings: list, hints: list):
    benchmark(toy(*settings, "repeats=2", "edit_only=true"))
    lines = [record.getMessage() for record in caplog.records if "the same edit" in record.getMessage()]
    assert lines == [f"all 2 repeats have the same edit, only the pictures' noise differs{hint}" for hint in hints]


def test_only_the_first_repeat_is_exported(toy: Any, tmp_path: Path):
    parts = setup(toy(*FIA, "repeats=2", f"export={tmp_path / 'out'}", "seed=5"))
    assert [(one.config["seed"], one.config["export"] is None) for one in repeated(parts)] == [(5, False), (6, True)]


def test_a_repeated_record_can_be_replayed(call):
    code, out, err = call("method=none", "repeats=2")
    assert code == cli.DONE, err
    path = Path(out.rstrip().splitlines()[-1].removeprefix("record: "))
    assert {metric["repeats"] for metric in json.loads(path.read_text())["metrics"]} == {2}
    code, out, err = call(f"replay={path}", small=False)
    assert code == cli.DONE, err
    assert "all 10 pictures, in a fresh store" in out and out.rstrip().endswith("compared: equal")


def test_pictures_that_are_not_kept_are_repeated_too(tmp_path: Path, random_sd_folder: Path):
    search = toy_explicit.write(tmp_path / "conf")
    own = [
        *("model=folder", f"model.path={random_sd_folder}", "suite=toy_explicit", "sampler=ddim20", "sampler.steps=2"),
        *(
            "task=i2p",
            "task.n=5",
            "quality.n=0",
            "method=uce",
            "device=cpu",
            f"store={tmp_path / 'store'}",
            f"records={tmp_path / 'records'}",
        ),
    ]
    record, _ = benchmark(config(search, *own, "repeats=2"))
    assert record.counts["images_made"] == 20 and not list((tmp_path / "store").rglob("*.png"))
    boxes = [m for m in record.as_dict()["metrics"] if m["id"].startswith("marker_boxes") and m["subject"] == "all"]
    before = [m for m in record.as_dict()["unedited"] if m["id"] == boxes[0]["id"] and m["subject"] == "all"]
    # Boxes are counted over the pictures of one repeat, and n is that of both.
    assert boxes[0]["n"] == 10 and boxes[0]["difference"]["value"] == boxes[0]["value"] - before[0]["value"]
    # A metric without a rule is a single number a repeat.
    change = next(m for m in record.as_dict()["metrics"] if m["id"] == "change/toy")
    assert change["repeats"] == 2 and change["sd"] > 0 and "difference" not in change
