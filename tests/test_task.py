"""Tasks, concepts and prompt sets, and the task and quality configs."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from harness.prompts import OBJECTS
from harness.screen import MINOR_WORDS, SEXUAL_WORDS, ScreenedPromptError
from harness.task import (
    Concept,
    PromptSet,
    Row,
    caption_list,
    class_seed,
    class_task,
    nested_task,
    quality_set,
    x_vs_y_task,
)
from tinyworld import vocabulary

CONF = Path(__file__).resolve().parents[1] / "conf"
FIVE = ("garbage truck", "cassette player", "tench", "English springer", "chain saw")
KEPT = ("parachute", "golf ball", "church", "French horn", "gas pump")
A_MINOR, A_SEXUAL = MINOR_WORDS[0].strip("*"), SEXUAL_WORDS[0].strip("*")


def _captions(n: int, split: str) -> list[tuple[str, int]]:
    return [(f"a {OBJECTS[i]} ({split})", 1000 * (split == "test") + i) for i in range(min(n, 30))]


def _task(**changes):
    settings = {"name": "t", "kind": "object", "concepts": ["golf ball", "church"], "keep": ["parachute"], "n": 3}
    return class_task(**{**settings, **changes})


def test_rows_of_a_class_task():
    task = _task(quality=quality_set(_captions, 4, "test"))
    rows = task.prompts("classes").rows
    assert [row.id for row in rows[:4]] == [
        "test/golf-ball/0000",
        "test/golf-ball/0001",
        "test/golf-ball/0002",
        "test/church/0000",
    ]
    assert {row.prompt for row in rows} == {f"an image of a {c}" for c in ("golf ball", "church", "parachute")}
    assert task.prompts("classes").labels == ("golf ball", "church", "parachute")
    assert task.forget == ("golf ball", "church") and task.keep == ("parachute",)
    assert [row.seed for row in task.prompts("quality")] == [1000, 1001, 1002, 1003]
    assert task.screened == 0
    with pytest.raises(ValueError, match=r"has no 'captions' prompts .it has: classes, quality"):
        task.prompts("captions")


def test_splits_share_neither_prompt_nor_seed():
    test, tuning = (_task(split=split, n=50).prompts("classes") for split in ("test", "tuning"))
    seeds = [row.seed for row in (*test, *tuning)]
    assert len(set(seeds)) == len(seeds) == 300 and max(seeds) < 2**63
    assert not {row.prompt for row in test} & {row.prompt for row in tuning}
    # Fixed: a change would make every stored test picture another one.
    assert class_seed("test", "Golf Ball", 0) == class_seed("test", "golf ball", 0) == 3126857473312407136


def test_more_rows_begin_with_the_fewer_ones():
    few, many = _task(n=2).prompts("classes"), _task(n=5).prompts("classes")
    assert set(few.rows) < set(many.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": []}, "task.concepts is empty"),
        ({"concepts": "church"}, r"write a list, as in 'task.concepts=\["),
        ({"concepts": ["church", " "]}, "task.concepts: a name is empty"),
        ({"concepts": ["church", "CHURCH "]}, "names 'CHURCH' twice"),
        ({"concepts": ["x" * 201]}, "201 characters"),
        ({"concepts": ["a\nb"]}, "line break"),
        ({"concepts": ["a\x00b"]}, "control character"),
        ({"concepts": ["a\u202eb"]}, "control character"),
        ({"concepts": ["../etc/x"]}, "looks like a path"),
        ({"concepts": ["a\\b"]}, "looks like a path"),
        ({"concepts": ["~root"]}, "looks like a path"),
        ({"concepts": [5]}, "5 is a int"),
        ({"concepts": [None]}, "NoneType"),
        ({"keep": ["Church"]}, "'church' is in task.concepts and in task.keep"),
        ({"keep": None}, "task.keep=None"),
        ({"n": 0}, "task.n=0"),
        ({"n": 10_001}, "task.n=10001: .* from 1 to 10000"),
        ({"n": True}, "task.n=True"),
        ({"n": 2.5}, "task.n=2.5"),
        ({"n": "5"}, "task.n='5'"),
        ({"kind": "objects"}, "did you mean object"),
        ({"split": "train"}, "unknown task.split 'train'"),
        ({"prompts": "C"}, "unknown task.prompts"),
        ({"keep_prompts": "a"}, "unknown task.keep_prompts 'a'"),
        ({"prompts": "A", "split": "tuning"}, "published test list"),
        ({"accepted": {"church": "bell cote"}}, r"task.accepted: 'church' has 'bell cote'; write a list of labels"),
        ({"accepted": {"church": []}}, r"task.accepted: 'church' has \[\]"),
        ({"accepted": {"church": [497]}}, r"task.accepted: 'church' has \[497\]"),
        ({"concepts": ["golf bal"], "classes": [*FIVE, *KEPT]}, "did you mean golf ball"),
    ],
)
def test_bad_settings_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        _task(**changes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_names_are_written_as_the_task_knows_them():
    task = _task(concepts=["GOLF ball", " english Springer"], keep=[], classes=[*FIVE, *KEPT])
    assert task.forget == ("golf ball", "English springer")
    assert task.prompts("classes").only(["English springer"]).rows[0].prompt == "an image of an English springer"


def test_accepted_labels_belong_to_names_of_the_task():
    task = _task(
        concepts=["Church"], keep=["golf ball"], accepted={"church": ["church", "bell cote"], "ship": ["liner"]}
    )
    assert task.accepted == {"Church": ("church", "bell cote")}
    assert _task().accepted == {}


def test_nested_tasks_lie_in_each_other():
    order = [*FIVE, "church"]
    tasks = [nested_task("t", order, size, ["parachute"], kind="object", n=2) for size in (1, 3, 6)]
    assert [task.forget for task in tasks] == [tuple(order[:1]), tuple(order[:3]), tuple(order)]
    assert all(task.keep == ("parachute",) for task in tasks)
    rows = [set(task.prompts("classes").rows) for task in tasks]
    assert rows[0] < rows[1] < rows[2]
    for size in (0, 7, True, 2.0, "3"):
        with pytest.raises(ValueError, match=r"task.size=.*: how many of the 6 classes to forget, from 1 to 6"):
            nested_task("t", order, size, ["parachute"], kind="object")


def test_x_vs_y_tasks_forget_some_and_keep_others():
    for keep, kept in ((None, FIVE[2:]), (FIVE[3:], FIVE[3:]), ([], ())):
        task = x_vs_y_task("t", FIVE, 2, keep, kind="object", n=1)
        assert (task.forget, task.keep) == (FIVE[:2], kept)
    for x in (0, 5, "two"):
        with pytest.raises(ValueError, match=r"task.x=.*: how many of the 5 classes to forget, from 1 to 4"):
            x_vs_y_task("t", FIVE, x, kind="object")


def test_long_and_foreign_names_are_fine():
    assert _task(concepts=["x" * 200, "café ☕", "AC-DC (band)"]).forget[1] == "café ☕"


def test_styles_and_explicit_content_have_no_class_prompts():
    for kind, name in (("style", "Van Gogh"), ("explicit", "naked")):
        task = _task(kind=kind, concepts=[name], keep=[])
        assert task.sets == {} and task.concepts == (Concept(name, kind),)
        with pytest.raises(ValueError, match="it has: none"):
            task.prompts("classes")


def test_concepts_are_screened():
    with pytest.raises(ScreenedPromptError):
        Concept(A_MINOR, "explicit")
    with pytest.raises(ScreenedPromptError):
        Concept(f"{A_SEXUAL} {A_MINOR}", "object")
    assert Concept(A_MINOR, "object").name == A_MINOR
    # A sexual concept makes the whole task's pictures sexual, whatever its kind is called.
    task = _task(concepts=[A_SEXUAL, "church"], keep=[A_MINOR])
    assert A_MINOR not in task.prompts("classes").labels and task.screened == 3


def test_pictures_of_classes_are_not_kept_where_one_has_a_sexual_name():
    assert _task().unkept == ()
    for changes in ({"concepts": [A_SEXUAL, "church"]}, {"keep": [A_SEXUAL]}):
        task = _task(**changes, quality=quality_set(_captions, 4, "test"))
        assert task.unkept == ("classes",) and all(prompts.sexual_context for prompts in task.sets.values())
    assert _task(kind="explicit", concepts=[A_SEXUAL], keep=[]).unkept == ()  # it has no pictures of classes


def test_captions_are_screened_and_strictly_so_in_explicit_tasks():
    def provider(n, split):
        return [("a road", 1), (f"a {A_MINOR}", 2), (f"{A_MINOR}, {A_SEXUAL}", 3)][:n]

    captions = quality_set(provider, 3, "test")
    assert len(captions) == 2 and captions.screened == 1
    explicit = _task(kind="explicit", concepts=["naked"], keep=[], quality=captions)
    assert [row.prompt for row in explicit.prompts("quality")] == ["a road"] and explicit.screened == 2
    assert _task(quality=captions).screened == 1


def test_quality_sets():
    assert quality_set(_captions, 0, "test") is None
    assert quality_set(_captions, 5, "tuning").rows[4] == Row("tuning/00004", "a car (tuning)", 4)
    with pytest.raises(ValueError, match=r"quality.n=40: .* only 30 rows in the test split"):
        quality_set(_captions, 40, "test")
    with pytest.raises(ValueError, match=r"quality.n=-1"):
        quality_set(_captions, -1, "test")
    with pytest.raises(ValueError, match=r"quality.n=100001: .* from 0 to 100000"):
        quality_set(_captions, 100_001, "test")


def test_published_lists_are_named_by_their_sets():
    assert quality_set(_captions, 5, "test").source == "" and _task().prompts("classes").source == ""
    captions = quality_set(_captions, 5, "test", "fia480")
    assert captions.source == captions.first(2).source == "fia480"
    assert captions.key == quality_set(_captions, 5, "test").key
    assert _task(quality=captions).prompts("quality").source == "fia480"


def test_a_suite_has_its_own_captions_and_named_lists():
    suite = {"name": "s", "captions": "own", "lists": {"fia480": "other"}}
    assert caption_list(suite, None) == "own" and caption_list(suite, "fia480") == "other"
    with pytest.raises(ValueError, match=r"quality.list=fia48: the suite s has no such list; its lists are fia480"):
        caption_list(suite, "fia48")
    with pytest.raises(ValueError, match="the suite s has no such list; it has only its own captions"):
        caption_list({"name": "s", "captions": "own"}, "fia480")


def test_prompt_set_ids_and_key():
    rows = [Row("a", "a cat", 1, label="cat"), Row("b", "a dog", 2, label="dog")]
    prompts = PromptSet("x", rows)
    assert len(prompts) == 2 and list(prompts) == rows and len(prompts.key) == 64
    assert PromptSet("y", rows, screened=3).key == prompts.key
    others = [
        rows[::-1],
        rows[:1],
        [rows[0], Row("b", "a dog", 3, label="dog")],
        [rows[0], Row("b", "a dog", 2, 7.5, label="dog")],
    ]
    assert len({PromptSet("x", other).key for other in others} | {prompts.key}) == 5
    assert prompts.only(["dog"]).rows == (rows[1],) and prompts.first(1).rows == (rows[0],)
    with pytest.raises(ValueError, match="two rows have the id 'a'"):
        PromptSet("x", [rows[0], rows[0]])
    with pytest.raises(ValueError, match="unknown label"):
        prompts.only(["dogs"])
    with pytest.raises(ScreenedPromptError):
        PromptSet("x", [Row("a", f"{A_MINOR} {A_SEXUAL}", 1)])
    with pytest.raises(ValueError, match=r"is empty .1 rows were refused"):
        PromptSet.build("x", [Row("a", f"{A_MINOR} {A_SEXUAL}", 1)])


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None])
def test_seeds_are_63_bits(seed):
    with pytest.raises(ValueError, match="seed"):
        Row("a", "x", seed)
    assert Row("a", "x", 2**63 - 1).seed == 2**63 - 1


def _composed(name: str, *overrides: str):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF / "task"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def test_task_configs():
    ten = instantiate(_composed("imagenette"))
    assert len(ten.forget) == 10 and ten.keep == () and len(ten.prompts("classes")) == 200 and ten.split == "test"
    five = instantiate(_composed("imagenette_5v5", "n=2"))
    assert (five.name, five.forget, five.keep) == ("imagenette_5v5", FIVE, KEPT)
    assert len(five.prompts("classes")) == 20 and set(five.forget + five.keep) == set(ten.forget)
    with pytest.raises(Exception, match="did you mean church"):
        instantiate(_composed("imagenette", "concepts=[churhc]"))
    custom = instantiate(_composed("custom", "kind=style", "concepts=[Van Gogh,Monet]"))
    assert custom.concepts == (Concept("Van Gogh", "style"), Concept("Monet", "style"))
    with pytest.raises(Exception, match=r"task.concepts is empty"):
        instantiate(_composed("custom"))


def test_imagenette_is_split_in_dataset_order():
    ten = instantiate(_composed("imagenette")).forget
    assert ten == vocabulary.OBJECTS
    for x in (1, 9):
        task = instantiate(_composed("imagenette_xvy", f"x={x}", "n=1"))
        assert (task.forget, task.keep) == (ten[:x], ten[x:])


def test_tiny_tasks_keep_the_look_alikes():
    for name, size in (("tiny_scaling", 5), ("tiny_look_alikes", 10)):
        task = instantiate(_composed(name, "n=1"))
        assert (task.name, task.forget, task.keep) == (name, vocabulary.OBJECTS[:size], vocabulary.LOOK_ALIKES)


@pytest.mark.parametrize(("name", "most"), [("diversi50", 50), ("fia50", 49)])
def test_scaling_tasks_are_nested_and_keep_fifty_others(name, most):
    whole = instantiate(_composed(name, "n=1"))
    assert whole.name == name and len(whole.forget) == most and len(whole.keep) == 50
    # No label counts for two classes, and none of a kept class for a forgotten one.
    labels = [label.casefold() for item in (*whole.forget, *whole.keep) for label in whole.accepted.get(item, (item,))]
    assert len(set(labels)) == len(labels)
    for size in (10, 20, 30, 40):
        task = instantiate(_composed(name, "n=1", f"size={size}"))
        assert (task.forget, task.keep) == (whole.forget[:size], whole.keep)
    with pytest.raises(Exception, match=f"task.size={most + 1}: how many of the {most} classes"):
        instantiate(_composed(name, f"size={most + 1}"))


def test_the_scaling_tasks_keep_the_same_classes():
    diversi, fia = (instantiate(_composed(name, "n=1")) for name in ("diversi50", "fia50"))
    assert diversi.keep == fia.keep
    taken = {label.casefold() for task in (diversi, fia) for labels in task.accepted.values() for label in labels}
    taken |= {name.casefold() for name in (*diversi.forget, *fia.forget)}
    assert taken.isdisjoint(name.casefold() for name in diversi.keep)


def test_fia50_begins_with_imagenette_and_leaves_out_what_has_no_label():
    task = instantiate(_composed("fia50", "n=1"))
    assert task.forget[:10] == vocabulary.OBJECTS and "suitcase" not in task.forget
    published = Path(__file__).resolve().parents[1] / "results" / "paper" / "fia_table21_imagenet40.csv"
    table = list(csv.DictReader(published.open(encoding="utf-8")))
    assert {row["class"].casefold() for row in table} - {"suitcase"} == {name.casefold() for name in task.forget[10:]}
    # Names that are labels count by themselves, the others by a set; "sunglasses" is a label, and has a twin.
    exact = {row["class"].casefold() for row in table if row["exact_torchvision_label"] == "yes"}
    assert {name.casefold() for name in task.forget[10:]} - set(task.accepted) == exact - {"sunglasses"}


def test_prompt_sets_and_metrics_reach_a_configured_task_unchanged():
    captions, metric = quality_set(_captions, 3, "test"), Concept("church", "object")
    task = instantiate(_composed("imagenette_5v5", "n=1"), _partial_=True)(quality=captions, metrics=[metric])
    assert task.prompts("quality") == captions and task.metrics[0] is metric


def test_quality_configs():
    sizes = {}
    for path in CONF.joinpath("quality").glob("*.yaml"):
        config = OmegaConf.to_container(OmegaConf.load(path))
        assert set(config) - {"list"} == {"name", "n"} and config["name"] == path.stem
        sizes[path.stem] = config["n"]
    assert sizes["off"] == 0 and 0 < sizes["tiny"] < sizes["small"]
    assert [sizes[name] for name in ("1k", "5k", "10k", "30k")] == [1000, 5000, 10_000, 30_000]
    # The list that a quality set names is one of the suite's for real models.
    fia = OmegaConf.load(CONF / "quality" / "fia480.yaml")
    assert fia.n == 480 and fia.list in OmegaConf.load(CONF / "suite" / "sd.yaml").lists


@pytest.mark.skipif(not os.environ.get("FIA_MIRROR"), reason="FIA_MIRROR names no folder with the published files")
def test_published_lists():
    for version, ball in (("A", "an image of a golf ball in a room"), ("B", "an image of a golf ball")):
        rows = _task(prompts=version, concepts=["Golf ball"], keep=["tench"], n=500).prompts("classes").rows
        assert len(rows) == 1000 and {row.prompt for row in rows if row.label == "Golf ball"} == {ball}
        assert rows[500].id == f"{version}/tench/0000" and rows[500].seed == 1174
        assert _task(prompts=version, n=1).prompts("classes").source == version
    with pytest.raises(ValueError, match="has 500 rows of 'tench'"):
        _task(prompts="A", concepts=["tench"], keep=[], n=501)
    with pytest.raises(ValueError, match="did you mean tench"):
        _task(prompts="B", concepts=["tensh"], keep=[])


@pytest.mark.skipif(not os.environ.get("FIA_MIRROR"), reason="FIA_MIRROR names no folder with the published files")
def test_diversi50_from_its_published_list():
    task = instantiate(_composed("diversi50", "n=100", "prompts=diversi50"))
    rows = task.prompts("classes").rows
    assert len(rows) == 100 * 100 and task.prompts("classes").source == "diversi50+neutral"
    first = rows[0]
    assert first.label == task.forget[0] and first.prompt == f"an image of a {first.label}"
    assert first.id.startswith(f"diversi50/{first.label}/")
    # The kept classes are in no list: neutral prompts.
    assert rows[-100].id == f"test/{task.keep[-1]}/0000"
    with pytest.raises(Exception, match="class in the published list diversi50 'tench'"):
        instantiate(_composed("fia50", "prompts=diversi50"))


@pytest.mark.skipif(not os.environ.get("FIA_MIRROR"), reason="FIA_MIRROR names no folder with the published files")
def test_published_captions():
    from harness.sources import coco_captions

    captions = quality_set(coco_captions, 30_000, "test")
    # Experiment files name these numbers in the ids of FIDs.
    assert (len(captions), captions.screened) == (29_989, 11)
    explicit = _task(kind="explicit", concepts=["naked"], keep=[], quality=captions)
    assert len(explicit.prompts("quality")) == 27_777
    tuning = quality_set(coco_captions, 100, "tuning")
    assert tuning.first(10).rows == quality_set(coco_captions, 10, "tuning").rows
    texts = {(row.prompt, row.seed) for row in captions if int(row.id.rpartition("/")[2]) < 25_000}
    assert texts.isdisjoint((row.prompt, row.seed) for row in tuning)
