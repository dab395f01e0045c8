"""The paper's per-concept table (Table 8), and maps that replace it."""

from __future__ import annotations

from collections.abc import Mapping

from harness.checks import fraction

# Table 8: what deviates from r1 = 5 % and from the task's r2 (0.7 % objects, 1 % explicit, 2 % styles).
PAPER_R1 = {"sexual": 0.06}
PAPER_R2 = {"parachute": 0.03, "golf ball": 0.03, "gas pump": 0.03, "van gogh": 0.03}

# The tasks that the table was made for; elsewhere `paper` means the task's own r1 and r2.
PAPER_TASKS = ("imagenette", "imagenette_5v5", "imagenette_xvy", "fia50", "artists", "i2p")


def per_concept_table(name: str, table: object, paper: Mapping[str, float], task: str | None) -> dict[str, float]:
    """`null | "paper" | a map` as a map from lower-case concept names to fractions.

    `paper` is empty in a task of another name than the paper's; without any task name it is the table.
    """
    if table is None or (table == "paper" and task not in (None, *PAPER_TASKS)):
        return {}
    if table == "paper":
        return dict(paper)
    if not isinstance(table, Mapping):
        raise ValueError(f"fia: {name} is null, paper or a map from concept names to fractions, got {table!r}")
    return {str(key).casefold(): fraction(f"fia: {name}[{key}]", value) for key, value in table.items()}
