"""What every stage is given: its run, the settings, where its inputs lie and where its work may."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cda.config import Settings
from cda.data import sources
from cda.data.layout import Split
from cda.data.sources import ImageSet
from cda.paths import Layout, data_root
from cda.runs import Run
from cda.runtime import Machine, start


@dataclass(frozen=True)
class Context:
    """One job of `run`."""

    run: Run
    settings: Settings
    layout: Layout

    def machine(self) -> Machine:
        """The device this job runs on."""
        return start(self.settings.runtime)

    def work(self, name: str) -> Path:
        """The folder of this job's unfinished work."""
        return Path(self.layout.work(self.run, name))

    def real(self, split: Split) -> ImageSet:
        """The real data set of the run; raises DataError."""
        return sources.load(self.run.data, split, data_root(self.settings, self.run.dataset))

    def class_names(self) -> list[str]:
        """The real data set's classes, in order; raises DataError."""
        return list(sources.class_names(self.run.data, data_root(self.settings, self.run.dataset)))

    def released_folder(self) -> Path:
        """Where an imported run's images lie."""
        return data_root(self.settings, "released") / self.run.recipe.recover.release

    def described(self) -> dict[str, Any]:
        """What the run is, for the files it leaves."""
        return {
            "run": self.run.id,
            "stage": self.run.stage,
            "dataset": self.run.dataset,
            "scale": self.settings.scale,
            "spec": dict(self.run.spec),
        }
