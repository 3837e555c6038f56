"""Expert: networks trained on the real data, whose way trajectory matching follows (MTT, TESLA).

Reads the real training images; writes a part folder with `expert-007.safetensors` for each of its
experts (`cda.engine.experts`) and a JSON beside it: accuracies, losses, digest, provenance. The
work folder holds finished experts, and the weights after each epoch and the newest state of the
unfinished one, so that a killed job continues there.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cda.config.recipe import Expert
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.experts import ExpertBatches, expert_name, flat_weights, write_expert
from cda.engine.images import Images, place_images
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.engine.trainer import History, Trainer, fit
from cda.errors import ConfigError
from cda.experiments.runs import expert_parts, part_experts
from cda.files import atomic_write, file_digest, publish, write_json
from cda.stages.context import Context
from cda.stages.models import fresh_model, require_convnet
from cda.stages.squeeze import smoothed_ce


def run(context: Context, part: int, out: Path) -> None:
    """Train the experts of part `part` of the run at `out`.

    Raises ConfigError for a part that the run does not have, or a network that is no ConvNet,
    DataError for missing images, Interrupted after a signal, with the state saved.
    """
    own, data = context.run, context.run.data
    if part not in expert_parts(own):
        last = len(expert_parts(own)) - 1
        raise ConfigError(f"--part {part}: the experts of {own.id} are in parts 0 to {last}")
    if data.stream:
        raise ConfigError(
            f"data set {own.dataset} is streamed: experts need all of its training images in "
            "memory; drop stream, or use another method"
        )
    device, work = context.open_device(), context.work(f"part-{part}")
    with work_folder(work) as stop:
        training = ExpertTraining.prepare(context, device, work)
        for index in part_experts(own, part):
            if not (work / "out" / expert_name(index)).with_suffix(".json").is_file():
                training.train(index, stop)
        for left in set((work / "out").iterdir()) - set(training.outputs(part)):
            left.unlink()  # of another layout of parts
        publish(work / "out", out)


@dataclass
class ExpertTraining:
    """What the experts of a job share: images, and what their steps compile."""

    context: Context
    recipe: Expert
    device: Device
    work: Path
    images: Images
    test: Images
    trainer: Trainer | None = None

    @classmethod
    def prepare(cls, context: Context, device: Device, work: Path) -> ExpertTraining:
        """Read the real images; raises DataError."""
        own, recipe = context.run, context.run.recipe.expert
        assert recipe is not None
        images = place_images(context.real("train"), own.data, device)
        return cls(context, recipe, device, work, images, context.validation(device))

    def outputs(self, part: int) -> list[Path]:
        """The finished files of a part, in the work folder."""
        paths = [self.work / "out" / expert_name(i) for i in part_experts(self.context.run, part)]
        return [one for path in paths for one in (path, path.with_suffix(".json"))]

    def train(self, index: int, stop: Stop) -> None:
        """Train expert `index`, from its checkpoint if there is one, and write it."""
        self.device.started = time.monotonic()
        own, purpose = self.context.run, ("expert", self.recipe.seed, index)
        model = fresh_model(own, self.device, purpose)
        require_convnet(model, own.model)
        self._save(index, 0, model)
        if self.trainer is None:
            self.trainer = Trainer(model, self.recipe.optimisation(), self.device, purpose)
        else:
            self.trainer.restart(model, purpose)
        trainer = self.trainer

        def evaluate(network: nn.Module) -> dict[str, float]:
            self._save(index, trainer.at[0] + 1, network)
            return self.test.evaluate(network)

        checkpoint = Checkpoint(
            self.work / "state.safetensors",
            f"{own.id} {index}",
            self.context.settings.runtime.checkpoint_seconds,
        )
        batches = ExpertBatches(self.images, self.recipe, purpose)
        label = f"expert {own.id} {index}"
        self._write(
            index, fit(trainer, batches, smoothed_ce(0.0), evaluate, checkpoint, stop, label)
        )
        checkpoint.clear()

    def _snapshot(self, index: int, epoch: int) -> Path:
        return self.work / "epochs" / f"expert-{index}-epoch-{epoch}.npy"

    def _save(self, index: int, epoch: int, model: nn.Module) -> None:
        with (
            atomic_write(self._snapshot(index, epoch)) as temporary,
            temporary.open("wb") as file,
        ):
            np.save(file, flat_weights(model).numpy(), allow_pickle=False)

    def _write(self, index: int, history: History) -> None:
        """The expert's file, then its description, which marks it as finished."""
        target = self.work / "out" / expert_name(index)
        write_expert(
            target,
            [self._load(index, e) for e in range(self.recipe.epochs + 1)],
            self.context.run.id,
        )
        described = self.context.description() | {"expert": index, "curve": history.curve}
        described |= {"top1": history.last["top1"], "sha256": file_digest(target)}
        write_json(
            target.with_suffix(".json"), described | {"provenance": self.device.provenance()}
        )
        shutil.rmtree(self.work / "epochs", ignore_errors=True)

    def _load(self, index: int, epoch: int) -> Tensor:
        return torch.from_numpy(np.load(self._snapshot(index, epoch), allow_pickle=False))
