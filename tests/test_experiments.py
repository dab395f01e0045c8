"""Every experiment file runs in the tiny world and yields its table, by the commands of docs/reproduce.md.

The commands are cut down further: the first and the last job of each sweep, one picture a class, one step, and FIA
calibrated on one pair of prompts for two concepts. What experiments share (unedited pictures, UCE's edits) is computed
once, in one store.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from experiments import catalogue, cli, front, tables, values
from experiments.records import read_records

ROOT = Path(__file__).resolve().parents[1]
TINY_WORLD = ROOT / "tinyworld" / "tiny-v1"
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
ALWAYS = ["model=tiny", "quality=off", "task.n=1", "sampler.steps=1", "model.batch_size=5", "device=cpu"]
# An edit that small may change nothing.
CALIBRATION = ["method.num_pairs=1", "method.steps=1", "method.sampler.steps=1", "allow_noop=true"]
FEW = {"object": ["task.concepts=[tench,chain saw]"], "style": ["task.concepts=[Van Gogh,Monet]"], "explicit": []}

pytestmark = pytest.mark.skipif(not TINY_WORLD.exists(), reason="the tiny world's weights are not in this checkout")


def documented() -> dict[str, list[str]]:
    """Experiment -> the overrides that docs/reproduce.md gives it in the tiny world."""
    table = re.search(r"<!-- tiny: begin -->\n(.*)<!-- tiny: end -->", PAGE, re.DOTALL)
    assert table is not None
    found: dict[str, list[str]] = {}
    for line in table.group(1).splitlines()[2:]:
        names, overrides = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3])
        for name in names:
            assert name not in found, f"{name} stands in two rows"
            found[name] = overrides[0].split()
    return found


def jobs(name: str) -> list[list[str]]:
    """The first and the last job of an experiment's multirun, as overrides."""
    said = dict(item.split("=", 1) for item in documented()[name])
    sweep = catalogue.load(name).sweep | {key: value.split(",") for key, value in said.items()}
    if "+fia_switch" in sweep:  # glob(*)
        sweep["+fia_switch"] = sorted(path.stem for path in (cli.CONF / "fia_switch").glob("*.yaml"))
    every = list(itertools.product(*([f"{key}={value}" for value in values] for key, values in sweep.items())))
    return [list(job) for job in dict.fromkeys([every[0], every[-1]])]


def config(name: str, job: list[str], *places: str) -> Any:
    own = catalogue.load(name).config
    fia = own["method"]["name"] == "fia" and not any(item.startswith("method=") for item in job)
    few = FEW[own["task"]["kind"]] if "concepts" in own["task"] else []
    calibration = [*CALIBRATION, *few] if fia else []
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return compose("config", overrides=[f"+experiment={name}", *ALWAYS, *job, *calibration, *places])


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the store and the records. The model is read from its files once, not in every run."""
    from harness.model import DiffusionModel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionModel, "load", cache(DiffusionModel.load))
        yield tmp_path_factory.mktemp("experiments")


@pytest.fixture(autouse=True)
def fresh_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No prompt list is at hand, and nothing can be fetched."""
    from harness import sources

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.delenv("FIA_MIRROR", raising=False)
    monkeypatch.setenv("FIA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(sources.urllib.request, "urlopen", refuse)


def test_every_experiment_has_a_command_for_the_tiny_world():
    assert sorted(documented()) == catalogue.names()


@pytest.mark.parametrize("name", catalogue.names())
def test_an_experiment_yields_its_table(name: str, places: Path, capsys: pytest.CaptureFixture):
    from experiments.run import benchmark

    own = [f"store={places / 'store'}", f"records={places / name}"]
    done = {tuple(job): benchmark(config(name, job, *own)) for job in jobs(name)}
    assert len({path for _, path in done.values()}) == len(done)
    capsys.readouterr()
    assert tables.main([name, "--records", str(places / name)]) == 0
    text = capsys.readouterr().out
    paper = catalogue.load(name).paper
    assert (paper is None or bool(paper.x)) != ("Published: " in text)
    if catalogue.load(name).config["edit_only"]:
        assert "Left out" not in text
        # With two concepts the smallest alpha keeps everything, so that edit counts nothing.
        said = [said_of_the_edit(name, record) for record, _ in done.values() if "counts" in record.edit]
        assert said and all(any(one <= set(row) for row in rows(text)) for one in said), (said, text)
        return
    found = rows(text)
    for job, (record, _) in done.items():
        # A switch file shows by the settings in it, not by its name; a task has a table of its own.
        unnamed = ("+", "task=")
        differing = [item for item in job if not all(item in other for other in done) and not item.startswith(unnamed)]
        assert f"### {record.task}, model tiny" in text or not any(item.startswith("task=") for item in job)
        asked = {item.split("=", 1)[1] for item in differing}
        wanted = {record.method, *(shown(value) for value in asked)}
        assert any(wanted <= set(row) for row in found), (job, wanted, text)


def said_of_the_edit(name: str, record: Any) -> set[str]:
    """What has to stand in a row of a table that needs no pictures."""
    if name == "fia_table17":
        made = record.cost["edit_made"]
        return {f"{made['seconds']:.2f}", f"{made['peak_memory_bytes'] / 2**20:.0f}"}
    counts = record.edit["counts"]["all"]
    alpha = f"{record.config['method']['alpha']:g}"
    return {alpha, str(counts["agnostic"]), str(counts["agnostic"] + counts["pruned"])}


def shown(value: str) -> str:
    """A setting as tables write it."""
    return f"{float(value):g}" if re.fullmatch(r"[0-9.]+", value) else value


def test_classes_that_the_world_does_not_have_are_refused_in_one_line(places: Path):
    from experiments.setup import setup

    with pytest.raises(ValueError) as caught:
        setup(config("fia_fig6", ["task.size=20", "method=none"], f"store={places / 'store'}"))
    line = cli.one_line(caught.value)
    assert "no label 'German shepherd'" in line and "choose another task" in line and "\n" not in line


def test_a_published_list_that_is_asked_for_is_taken(places: Path):
    assert config("fia_table1", ["method=none"]).task.prompts == "neutral"
    assert config("fia_table1", ["method=none", "task.prompts=A"]).task.prompts == "A"
    assert catalogue.load("fia_table1").config["task"]["prompts"] == "A"
    assert catalogue.load("fia_table3").config["task"]["mode"] == "mace"


def test_records_of_a_stand_in_are_shown_as_such(places: Path):
    folder = places / "fia_table21"
    if not folder.is_dir():
        pytest.skip("runs after the experiment itself")
    text = tables.of_experiment("fia_table21", read_records(folder.glob("*.json")), "md")
    assert "Not compared: 1 record made for another task than fia50" in text


def test_the_page_on_fia_holds_what_the_kept_records_say_of_each_switch():
    page = (ROOT / "docs" / "methods" / "fia.md").read_text(encoding="utf-8")
    kept = read_records(sorted((ROOT / "results" / "records" / "tiny_switches").glob("*.json")))
    assert len(kept) == len(list((cli.CONF / "fia_switch").glob("*.yaml")))
    for record in kept:
        shown = [values.show(values.pick_family(record["metrics"], family)) for family in front.FAMILIES]
        assert " | ".join(shown) in page, record["config"]["method"]
