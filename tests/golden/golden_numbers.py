"""The first ten steps of the plain loops as numbers that no refactoring may move unseen.

`python -m tests.golden.golden_numbers` writes `golden_numbers.json`. A difference in it is another
result for every run: say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden.plain_recovery import BLOCK, RECOVERIES, recover
from tests.golden.plain_training import (
    CONTINUAL,
    PLAIN_LOSSES,
    TRAININGS,
    Batches,
    distillation,
    dsa_draws,
    plain_dsa,
    some_of,
    train,
)

NUMBERS = Path(__file__).with_name("golden_numbers.json")


def numbers() -> dict[str, dict[str, list[float]]]:
    """Every loop's first ten steps."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, values in RECOVERIES.items():
        images, losses = recover(BLOCK, values)
        entropies, distances = (list(column) for column in zip(*losses, strict=True))
        found[f"recover: {name}"] = {"ce": entropies, "bn": distances, "images": some_of([images])}
    for name, values in TRAININGS.items():
        target, loss = PLAIN_LOSSES[name]
        found[f"train: {name}"] = train(values, Batches(target), loss)
    batches = Batches("teacher", lambda images, e, s: plain_dsa(images, dsa_draws(e, s)))
    found["continual"] = train(CONTINUAL, batches, lambda x, t: distillation(x, t, 20.0, 400.0))
    return found


if __name__ == "__main__":
    NUMBERS.write_text(json.dumps(numbers(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
