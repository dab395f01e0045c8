"""Interpolations for configurations, and the switch that keeps dry runs from downloading."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness import sources
from harness.sources import SourceError, no_downloads

CONF = Path(__file__).resolve().parents[1] / "conf"
METHOD = """
table: ${while_default:r2,paper}
r2: "${by_kind:{object: 0.007, style: 0.02}}"
"""


@pytest.mark.parametrize(
    ("task", "r2"), [({"kind": "style"}, 0.02), ({"kind": "object"}, 0.007), ({}, 0.007), ({"kind": "explicit"}, None)]
)
def test_a_value_follows_the_kind_of_the_task(task: dict, r2: float | None):
    cfg = OmegaConf.create({"task": task, "method": OmegaConf.create(METHOD)})
    assert cfg.method.r2 == r2 and cfg.method.table == "paper"
    OmegaConf.resolve(cfg)  # in place, as Hydra does before it makes an object
    assert cfg.method.r2 == r2 and cfg.method.table == "paper"


def test_without_a_task_it_is_the_objects_value():
    assert OmegaConf.create(METHOD).r2 == 0.007


@pytest.mark.parametrize("r2", [0.007, 0.5, None])
def test_a_value_that_is_said_takes_the_dependent_one_away(r2: float | None):
    cfg = OmegaConf.merge(OmegaConf.create(METHOD), {"r2": r2})
    assert cfg.r2 == r2 and cfg.table is None
    assert OmegaConf.merge(cfg, {"table": "paper"}).table == "paper"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "task").glob("*.yaml")))
def test_what_a_task_keeps_is_told_to_methods(name: str):
    """Methods read `task.keep`: it has to be what is scored as kept."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    needed = {"custom": ["task.concepts=[tench]", "task.keep=[church]", "task.kind=object"]}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["model=tiny", f"task={name}", *needed.get(name, [])])
    assert list(cfg.task.get("keep", [])) == list(instantiate(cfg.task, _partial_=True)().keep)


def test_x_classes_are_forgotten_and_the_others_kept():
    cfg = OmegaConf.create("{x: 2, classes: [a, b, c], keep: '${all_but_first:${.x},${.classes}}'}")
    assert cfg.keep == ["c"]
    assert OmegaConf.merge(cfg, {"x": "two"}).keep == ["a", "b", "c"]  # the task says what x may be
    assert OmegaConf.merge(cfg, {"keep": ["b"]}).keep == ["b"]


def test_no_download_within(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setenv("FIA_CACHE", str(tmp_path))
    monkeypatch.delenv("FIA_MIRROR", raising=False)
    monkeypatch.setattr(sources.urllib.request, "urlopen", urlopen)
    with no_downloads(), pytest.raises(SourceError, match=r"coco_480: not on this machine, and a dry run.*FIA_MIRROR"):
        sources.locate("coco_480")
    assert asked == [] and list(tmp_path.iterdir()) == []
    with pytest.raises(SourceError, match="no network"):
        sources.locate("coco_480")
    assert len(asked) == 1
