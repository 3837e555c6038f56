"""How long a job may take: its estimate with a margin, more with each attempt. Imports no torch,
for every job asks.

A limit that is too short costs a resubmission, since a job that is stopped has saved its work; one
that is too long waits longer in the queue. So a network's pass is known roughly, for each pixel;
`cda plan` counts it.
"""

from __future__ import annotations

import math
from functools import cached_property

from cda.config.recipe import Architecture
from cda.config.settings import Dataset
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import process_count
from cda.experiments.runs import Run
from cda.pipeline.costs import decoded_images
from cda.pipeline.estimate import hours_of
from cda.pipeline.rates import Rates, measure, rates_of

START = 10  # minutes: a queue's node may be slow to import torch, to list a data set, to compile
MARGIN = 2

# Multiply-adds a pixel in thousands, of a stem that begins with stride 4 (`imagenet`), at full
# width.
PER_PIXEL = {"resnet18": 36, "resnet34": 73, "resnet50": 82, "resnet101": 156, "resnet152": 230, "densenet121": 57,
             "regnet_y_8gf": 169, "convnext_tiny": 89, "deit_tiny": 25, "deit_base": 350, "mobilenet_v2": 6,
             "mobilenet": 6, "efficientnet": 8, "mnasnet": 11, "shufflenet": 12, "resmlp": 119, "squeezenet": 16,
             "alexnet": 14, "vgg11": 152, "vgg13": 225, "vgg16": 308, "vgg19": 391, "convnet2": 60, "convnet3": 60,
             "convnet4": 70}  # fmt: skip
USUAL = 100  # of a network that is not listed
SMALL_STEM = 15  # times as many: every layer sees 16 times as many pixels, less at the edges


def rough_multiply_adds(name: str, data: Dataset, architecture: Architecture) -> float:
    """Multiply-adds of network `name` for one image of `data`, forward, from what is known of it at
    full width.
    """
    stem = SMALL_STEM if architecture.stem == "small" else 1
    return PER_PIXEL.get(name, USUAL) * 1e3 * data.resolution**2 * stem * architecture.width**2


class TimeLimits:
    """Minutes for jobs on the settings' `runtime.gpu`, or on a CPU where they say so."""

    def __init__(self, experiments: ExperimentSet) -> None:
        """Raises ConfigError for a GPU that `config/devices.yaml` does not know."""
        runtime = experiments.settings.runtime
        self._experiments = experiments
        self._hours: dict[str, float] = {}
        self._assumed = rates_of(
            experiments.config, "cpu" if runtime.device == "cpu" else runtime.gpu, "runtime.gpu"
        )

    @cached_property
    def _rates(self) -> Rates:
        """With what jobs of the same kind of device took, where some are done."""
        experiments = self._experiments
        measure(
            self._assumed,
            experiments.runs().values(),
            experiments.settings,
            experiments.layout,
            rough_multiply_adds,
        )
        return self._assumed

    def hours(self, run: Run) -> float:
        """Estimated hours of one job of `run`, all its processes at once."""
        if run.id not in self._hours:
            self._hours[run.id] = self._reckon(run)
        return self._hours[run.id]

    def _reckon(self, run: Run) -> float:
        settings = self._experiments.settings
        if run.stage == "decode":
            return decoded_images(run) / self._rates.decode / 3600
        if run.stage == "recover" and not run.recipe.recover.synthetic:
            return run.data.shards_per_job * run.data.classes / self._rates.decode / 3600
        together = process_count(run, settings) if run.stage == "squeeze" else 1
        return max(hours_of(run, self._rates, settings, rough_multiply_adds)) / together

    def minutes(self, run: Run, attempt: int = 1) -> int:
        """Time limit of one job of `run`, at most `runtime.max_hours`."""
        wanted = START + MARGIN * 60 * self.hours(run)
        return math.ceil(min(attempt * wanted, 60 * self._experiments.settings.runtime.max_hours))
