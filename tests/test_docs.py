"""The documentation names what there is: every task, and a rule for every footgun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOOTGUNS = re.findall(r"^\*\*.+?(?=\n\n|\Z)", (ROOT / "docs" / "footguns.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("entry", FOOTGUNS, ids=[entry.split("**")[1][:40] for entry in FOOTGUNS])
def test_every_footgun_has_its_rule(entry: str):
    assert len(re.findall(r"\*Rule: [^*]+[.)]\*", entry.replace("\n", " "))) == 1


def test_the_table_of_tasks_is_whole():
    section = (ROOT / "docs" / "metrics.md").read_text().partition("\n## Tasks\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml"))
