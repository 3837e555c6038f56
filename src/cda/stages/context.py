"""What every stage gets: its run, the settings, and the places of its inputs and its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cda.config.names import scale_label
from cda.config.settings import Settings
from cda.data import sources
from cda.data.base import Split
from cda.data.decoded import read_decoded
from cda.data.sources import ImageSet
from cda.engine.device import Device, open_device, world_size
from cda.engine.gpus import take_gpus
from cda.engine.images import Images, place_images
from cda.errors import ConfigError
from cda.experiments.jobs import gpu_count
from cda.experiments.paths import Layout, data_root
from cda.experiments.runs import Run, decode_run


@dataclass(frozen=True)
class Context:
    """One job of `run`."""

    run: Run
    settings: Settings
    layout: Layout

    def open_device(self) -> Device:
        """The device of this job, on a machine with several GPUs one that no other job holds.

        It is the CPU if the job computes no network: its context on a GPU would take memory there.
        Raises ConfigError if torchrun started several processes for another stage than squeeze.
        """
        if world_size() > 1 and self.run.stage != "squeeze":
            raise ConfigError(
                f"torchrun: {self.run.stage} is a job of one process; only squeeze may have more"
            )
        runtime, gpus = self.settings.runtime, gpu_count(self.run, self.settings)
        if not gpus:
            runtime = runtime.model_copy(update={"device": "cpu"})
        elif runtime.device != "cpu":
            take_gpus(gpus)
        return open_device(runtime, self.run.stage)

    def work(self, name: str) -> Path:
        """Folder of this job's unfinished work."""
        return Path(self.layout.work(self.run, name))

    def real(self, split: Split) -> ImageSet:
        """The real data set of the run; raises DataError."""
        return sources.load(self.run.data, split, data_root(self.settings, self.run.dataset))

    def real_labels(self, split: Split) -> NDArray[np.int64]:
        """Labels [N] of a real split, sorted; raises DataError."""
        return sources.labels_of(self.run.data, split, data_root(self.settings, self.run.dataset))

    def real_images(self, split: Split, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield images `chosen` [n] of a real split, uint8 [R, R, 3] each; raises DataError."""
        return sources.select(
            self.run.data, split, data_root(self.settings, self.run.dataset), chosen
        )

    def validation(self, device: Device, decoded: Path | None = None) -> Images:
        """The real validation images, ready for `Images.evaluate`.

        A streamed data set's are the memory map that its decode run wrote (`decoded`, by default
        its standard place), others are on the device. Raises DataError or ArtifactError.
        """
        data = self.run.data
        if not data.stream:
            return place_images(self.real("val"), data, device)
        run = decode_run(data, self.run.recipe)
        images = read_decoded(decoded or Path(self.layout.decoded(run)), run.id, data.resolution)
        return place_images(images, data, device)

    def class_names(self) -> list[str]:
        """The real data set's classes, in order; raises DataError."""
        return list(sources.class_names(self.run.data, data_root(self.settings, self.run.dataset)))

    def released_folder(self) -> Path:
        """Folder of the released images that an imported run takes."""
        return data_root(self.settings, "released") / self.run.recipe.recover.release

    def description(self) -> dict[str, Any]:
        """The run's id and values, for the files that it writes."""
        return {
            "run": self.run.id,
            "stage": self.run.stage,
            "dataset": self.run.dataset,
            "scale": scale_label(self.settings.scale, self.run.dataset),
            "spec": dict(self.run.spec),
        }
