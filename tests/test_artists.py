"""The task of forgetting artists: its prompts in both suites, its settings, its config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.config import checked
from harness import sources
from harness.artists import LISTS, artist_task, published
from harness.prompts import contrast_pairs
from harness.task import Concept, Row, Task
from tinyworld.prompts import SUBJECTS_BY_SPLIT, artists
from tinyworld.vocabulary import ARTISTS

ROOT = Path(__file__).resolve().parents[1]
CONF, WORLD = ROOT / "conf", ROOT / "tinyworld" / "tiny-v1"
FIVE = ("Van Gogh", "Monet", "Pablo Picasso", "Leonardo Da Vinci", "Salvador Dali")


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["task=artists", *overrides])


def made(*overrides: str) -> Task:
    """The task of a composed and checked configuration."""
    return instantiate(OmegaConf.create(checked(config(*overrides))["task"]), _partial_=True)()


def source(names: list[str], n: int, split: str) -> list[Row]:
    return [Row(f"{split}/{name}/{i}", f"scene {i} by {name}", i, label=name) for name in names for i in range(n)]


def released_rows(n: int = 50) -> list[dict[str, str]]:
    """Rows as in the release: prompts repeat, and one guidance ends in a blank."""
    return [
        {
            "case_number": str(i),
            "prompt": f"Title {i // 2} by the artist",
            "evaluation_seed": str(2219 + i),
            "artists": "the artist",
            "evaluation_guidance": "7.5 " if i == 3 else "7.5",
        }
        for i in range(n)
    ]


# The task


def test_the_five_artists_are_forgotten_at_once() -> None:
    task = made()
    assert (task.name, task.kind, task.split) == ("artists", "style", "test")
    assert task.forget == FIVE == ARTISTS and task.keep == ()
    assert task.concepts[0] == Concept("Van Gogh", "style")
    rows = task.prompts("artists")
    assert rows.labels == FIVE and len(rows) == 250 and rows.name == "artists"


def test_some_are_forgotten_and_some_kept() -> None:
    task = made("task.concepts=[monet,Van Gogh]", "task.keep=[SALVADOR DALI]", "task.n=2")
    assert task.forget == ("Monet", "Van Gogh") and task.keep == ("Salvador Dali",)
    assert [row.label for row in task.prompts("artists")] == ["Monet"] * 2 + ["Van Gogh"] * 2 + ["Salvador Dali"] * 2


def test_captions_and_metrics_reach_the_task_unchanged() -> None:
    metric = Concept("Monet", "style")
    task = artist_task("t", ["Monet"], source, n=2, metrics=[metric])
    assert task.metrics == (metric,) and list(task.sets) == ["artists"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.concepts=[Monett]"], "did you mean Monet"),
        (["task.concepts=[]"], "task.concepts is empty"),
        (["task.concepts=[Monet]", "task.keep=[monet]"], "in task.concepts and in task.keep"),
        (["task.n=0"], "task.n=0"),
        (["task.n=2.5"], "task.n=2.5"),
        (["task.split=train"], "unknown task.split 'train'"),
        (["task.kind=object"], "task.kind='object': artists are forgotten as style"),
        (["~suite.prompts"], "this suite has no prompts of artists"),
    ],
)
def test_bad_settings_are_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as caught:
        checked(config(*overrides))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_source_that_repeats_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt set artists: two rows have the id"):
        artist_task("t", ["Monet"], lambda names, n, split: [Row("a", "x by Monet", 1)] * n, n=2)


# Released lists


def test_released_rows_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sources, "rows", lambda name: asked.append(name) or released_rows())
    rows = published(["Monet", "Van Gogh"], 4, "test")
    assert asked == ["artists_monet", "artists_van_gogh"]
    assert [row.id for row in rows[:5:4]] == ["fia_art_50/monet/0000", "fia_art_50/van-gogh/0000"]
    assert rows[3] == Row("fia_art_50/monet/0003", "Title 1 by the artist", 2222, guidance=7.5, label="Monet")
    with pytest.raises(ValueError, match=r"task.n=51: the released list of Monet has 50 rows"):
        published(["Monet"], 51, "test")
    with pytest.raises(ValueError, match="unknown artist of the released lists 'Klimt'"):
        published(["Klimt"], 1, "test")


def test_tuning_prompts_are_neither_titles_nor_what_methods_learn_a_style_from() -> None:
    rows = published(["Monet"], 40, "tuning")
    assert rows[0].prompt == "a painting of a cat by Monet" and rows[30].prompt == rows[0].prompt
    assert rows[0].guidance is None and len({row.seed for row in rows}) == len({row.id for row in rows}) == 40
    assert not {row.prompt for row in rows} & set(contrast_pairs(Concept("Monet", "style"))[0])


def test_a_list_that_is_not_here_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check of a configuration downloads nothing; the run does, or says what is missing."""
    monkeypatch.setenv("FIA_CACHE", str(tmp_path))
    monkeypatch.delenv("FIA_MIRROR", raising=False)
    plain = checked(config("model=sd15"))
    assert plain["task"]["source"]["_target_"] == "harness.artists.published" and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="did you mean Monet"):
        checked(config("model=sd15", "task.concepts=[Monett]"))
    with sources.no_downloads(), pytest.raises(sources.SourceError, match="artists_van_gogh: not on this machine"):
        published(["Van Gogh"], 1, "test")


@pytest.mark.skipif(not os.environ.get("FIA_MIRROR"), reason="FIA_MIRROR names no folder with the published files")
def test_the_released_lists() -> None:
    rows = made("model=sd15").prompts("artists")
    assert len(rows) == 250 and rows.screened == 0
    prompts = [len({row.prompt for row in rows.only([name])}) for name in LISTS]
    assert prompts == [50, 33, 29, 28, 29]
    # One seed list for all five; inside the prompts two names are longer than the concept's.
    seeds = [tuple(row.seed for row in rows.only([name])) for name in LISTS]
    assert len(set(seeds)) == 1 and len(set(seeds[0])) == 50 and seeds[0][:3] == (2219, 4965, 2795)
    assert {row.guidance for row in rows} == {7.5}
    for name, written in zip(LISTS, ("Vincent van Gogh", "Claude Monet", *FIVE[2:]), strict=True):
        assert all(row.prompt.endswith(f"by {written}") for row in rows.only([name]))


# The tiny world's prompts


def test_every_split_has_its_own_prompts_and_seeds() -> None:
    test, tuning = (artists(FIVE, 50, split) for split in ("test", "tuning"))
    assert not {row.prompt for row in test} & {row.prompt for row in tuning}
    seeds = [row.seed for row in (*test, *tuning)]
    assert len(set(seeds)) == 500
    assert not set(SUBJECTS_BY_SPLIT["test"]) & set(SUBJECTS_BY_SPLIT["tuning"])


def test_prompts_have_several_seeds_and_are_the_same_for_all_artists() -> None:
    rows = artists(["Monet", "Van Gogh"], 50, "test")
    of_monet = [row.prompt for row in rows if row.label == "Monet"]
    assert {of_monet.count(prompt) for prompt in of_monet} == {2, 3} and len(set(of_monet)) == 23
    assert [p.replace("Monet", "Van Gogh") for p in of_monet] == [r.prompt for r in rows if r.label == "Van Gogh"]
    assert of_monet[:2] == ["a tench in the style of Monet", "a cassette player by Monet"]
    assert artists(["Monet"], 3, "test") == rows[:3]


@pytest.mark.parametrize("split", SUBJECTS_BY_SPLIT)
def test_no_method_has_learnt_from_a_scored_prompt(split: str) -> None:
    for name in FIVE:
        learnt, _ = contrast_pairs(Concept(name, "style"))
        assert not set(learnt) & {row.prompt for row in artists([name], 50, split)}


# The whole way


@pytest.mark.skipif(not WORLD.exists(), reason="the tiny world's weights are not in this checkout")
def test_a_run_on_the_tiny_world_scores_both_sides_and_shows_the_artists(tmp_path: Path) -> None:
    from rich.console import Console

    from experiments.run import benchmark
    from experiments.show import class_table, show_record

    record, path = benchmark(
        config(
            *("method=uce", "task.concepts=[Van Gogh,Monet]", "task.keep=[Salvador Dali]", "task.n=2", "quality=off"),
            *("sampler.steps=2", "device=cpu", f"store={tmp_path / 'store'}", f"records={tmp_path / 'records'}"),
        )
    )
    edited, unedited = ({m.id.partition("/")[0] for m in metrics} for metrics in (record.metrics, record.unedited))
    both = {"forget_accuracy", "preserve_accuracy", "overall_score", "clip_a", "clip_a_kept"}
    assert unedited == both
    assert edited == both | {"clip_a_difference", "clip_a_kept_difference", "fsr", "fsr_margin"}
    assert {m.id.rpartition("/")[2] for m in record.metrics if m.id.startswith("forget")} == {"artist"}
    assert path.with_suffix(".png").exists()
    console = Console(record=True, width=200)
    show_record(record, console)
    shown = console.export_text()
    assert "FSR (prompt) %" in shown and "changes the noise" in shown
    # So many scores stand below each other, an artist a column.
    assert [column.header for column in class_table(record.as_dict()).columns][1:] == [*FIVE[:2], FIVE[4]]
