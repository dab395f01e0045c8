"""Train the tiny world: `python -m tinyworld.train out=DIR [seed=0] [stages=[vae,text,...]] [smoke=true]`.

`without=[concept,...]` leaves drawings and captions of these concepts out. A stage whose result is in `out` is not
trained again, and a killed stage continues from its last checkpoint; `out` is refused where another recipe filled it.
The last stage writes a report on the world's quality.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from omegaconf import OmegaConf

from .build import STAGES, build
from .recipe import Recipe, smoke


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = OmegaConf.from_cli(arguments)
    out = given.pop("out", None)
    if not out:
        raise SystemExit("say where the weights go: python -m tinyworld.train out=DIR")
    reduced, stages = given.pop("smoke", False), given.pop("stages", list(STAGES))
    recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), given))
    try:
        build(smoke(recipe) if reduced else recipe, Path(out), list(stages))
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
