"""How long a job may take: its estimate with a margin, more with each attempt.

A stopped job has saved its work, so a limit that is too short costs a resubmission. A limit that
is too long makes the job wait longer in the queue. Every Snakemake call needs these limits and must
not import torch, so a forward pass is estimated per pixel here; `cda plan` counts it exactly.
"""

from __future__ import annotations

import math
from functools import cached_property

from cda.config.recipe import Architecture
from cda.config.settings import Dataset, Settings
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import process_count
from cda.experiments.runs import Run
from cda.pipeline.costs import Counting, decoded_images
from cda.pipeline.estimate import hours_of
from cda.pipeline.rates import Rates, measure, rates_of

START = 10  # minutes: a node may be slow to import torch, to list a data set, to compile
MARGIN = 2  # limit over estimate

# Thousands of multiply-adds a pixel, at width 1 and with ImageNet's stem (stride 4).
PER_PIXEL = {
    **{"resnet18": 36, "resnet34": 73, "resnet50": 82, "resnet101": 156, "resnet152": 230},
    **{"densenet121": 57, "regnet_y_8gf": 169, "convnext_tiny": 89, "resmlp": 119},
    **{"deit_tiny": 25, "deit_base": 350, "mobilenet_v2": 6, "mobilenet": 6, "efficientnet": 8},
    **{"mnasnet": 11, "shufflenet": 12, "squeezenet": 16, "alexnet": 14},
    **{"vgg11": 152, "vgg13": 225, "vgg16": 308, "vgg19": 391},
    **{"convnet2": 60, "convnet3": 60, "convnet4": 70},
}
USUAL = 100  # of a network that is not listed
SMALL_STEM = 15  # times as many: layers see 16 times as many pixels, fewer at the edges


def rough_multiply_adds(name: str, data: Dataset, architecture: Architecture) -> float:
    """Estimated multiply-adds of network `name` for one image of `data`, forward."""
    small = architecture.stem == "small" and not name.startswith("convnet")  # which have one stem
    stem = SMALL_STEM if small else 1
    return PER_PIXEL.get(name, USUAL) * 1e3 * data.resolution**2 * stem * architecture.width**2


def job_hours(
    run: Run, rates: Rates, settings: Settings, count: Counting = rough_multiply_adds
) -> float:
    """Estimated hours of one job of `run`, all its processes at once."""
    if run.stage == "decode":
        return decoded_images(run) / rates.decode / 3600
    together = process_count(run, settings) if run.stage == "squeeze" else 1
    return max(hours_of(run, rates, settings, count)) / together


class TimeLimits:
    """Time limits of jobs on the settings' `runtime.gpu`, or on a CPU (`runtime.device: cpu`)."""

    def __init__(self, experiments: ExperimentSet) -> None:
        """Raises ConfigError for a GPU that `config/devices.yaml` does not know."""
        runtime = experiments.settings.runtime
        self._experiments = experiments
        self._hours: dict[str, float] = {}
        kind = "cpu" if runtime.device == "cpu" else runtime.gpu
        self._assumed = rates_of(experiments.config, kind, "runtime.gpu")

    @cached_property
    def _rates(self) -> Rates:
        """The assumed rates, and what finished jobs took on the same kind of device."""
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
            self._hours[run.id] = job_hours(run, self._rates, self._experiments.settings)
        return self._hours[run.id]

    def minutes(self, run: Run, attempt: int = 1, share: float = 1.0) -> int:
        """Time limit of a job of `run` with a `share` of a full job's work.

        It is at most `runtime.max_hours`.
        """
        wanted = START + MARGIN * 60 * share * self.hours(run)
        longest = 60 * self._experiments.settings.runtime.max_hours
        return math.ceil(min(attempt * wanted, longest))
