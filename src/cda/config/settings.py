"""What a user may set beside the recipes (`recipe.py`): data sets, and how and where this call
runs.

Every value's type, range, default and meaning in one place; the field descriptions are the
reference page.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cda.config.types import Count, Name, Natural, Positive, Ratio, Spread, Strict, Weight


def _names(value: Any) -> Any:
    if isinstance(value, str) and value != "all":
        raise ValueError("must be all or a list of data sets such as [tiny_imagenet]")
    return value


class Dataset(Strict):
    """A real data set: what it is and how to find it."""

    name: str = Field(
        pattern=r"^\w[\w-]*$", description="also the folder under data/: letters, digits, _ and -"
    )
    layout: Literal[
        "digits",
        "cifar100",
        "tiny_imagenet",
        "imagenet1k",
        "imagenet21k",
        "image_folder",
        "no_images",
    ] = Field(description="how its files are laid out; no_images: there are none, only class_names")
    classes: int = Field(ge=2, description="number of classes")
    class_names: tuple[str, ...] = Field(
        (),
        description="of no_images: those of the published weights' classes that are "
        "recovered, in sorted order",
    )
    resolution: int = Field(ge=8, description="height and width of an image, in pixels")
    resize: int | None = Field(
        None, ge=8, description="shorter side before the centre crop; default: the resolution"
    )
    mean: tuple[Ratio, Ratio, Ratio] = Field(description="per channel, of values in [0, 1]")
    std: tuple[Spread, Spread, Spread] = Field(description="per channel, of values in [0, 1]")
    train_images: Count | None = Field(
        None, description="how many there are; not checked when absent"
    )
    val_images: Count | None = Field(
        None, description="how many there are; not checked when absent"
    )
    shards_per_job: Count = Field(10, description="consecutive shards one recover job makes")
    stream: bool = Field(
        False,
        description="too large for memory: training images are decoded when their turn comes, "
        "validation images "
        "once into a memory-mapped artifact (stage decode)",
    )
    gpus: Count = Field(
        1, description="GPUs, and processes, of one squeeze job; runtime.gpus caps it"
    )
    recipe: Name | None = Field(
        None, description="the data set whose recipe it uses; default: its own in config/recipes/"
    )
    compare_ipc: tuple[Count, ...] = Field(
        (),
        description="a table of its own, results/<name>.csv: CDA, SRe²L and random real "
        "images at these IPCs",
    )
    get: str = Field(description="one sentence: how to get it")

    @model_validator(mode="after")
    def _cropped(self) -> Dataset:
        if self.resize is not None and self.resize < self.resolution:
            raise ValueError(
                f"resize ({self.resize}) must be at least the resolution ({self.resolution})"
            )
        return self

    @model_validator(mode="after")
    def _named(self) -> Dataset:
        names = self.class_names
        if bool(names) != (self.layout == "no_images"):
            raise ValueError("class_names go with layout no_images, which needs them")
        if names and (len(names) != self.classes or list(names) != sorted(set(names))):
            raise ValueError(f"class_names must be {self.classes} names, sorted and each once")
        return self

    def identity(self) -> dict[str, Any]:
        """What of the data set changes a result, as opposed to where it lies."""
        keep = ["name", "classes", "resolution", "resize", "mean", "std"] + ["class_names"] * bool(
            self.class_names
        )
        return {key: value for key, value in self.model_dump(mode="json").items() if key in keep}


class Runtime(Strict):
    """Where and how fast a job runs; none of it changes which run it is."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU if there is one"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, fp32 elsewhere"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="a stage's step to one of fewer, larger kernels; auto: jobs long enough "
        "to pay for it",
    )
    cpu_threads: Count = Field(2, description="threads of a job; bytes on CPU depend on it")
    blocks: Literal["auto"] | Count = Field(
        "auto",
        description="class blocks that go through the network together in recover; auto: as "
        "many as a GPU's free "
        "memory holds, on a CPU one",
    )
    gpu: str = Field(
        "a100",
        description="the kind that time limits are reckoned for, as config/devices.yaml names it",
    )
    max_hours: Positive = Field(
        24.0, description="longest time limit of a job; a longer one continues when resubmitted"
    )
    gpus: Count = Field(8, description="most GPUs, and processes, one squeeze job may use")
    workers: Natural = Field(
        4,
        description="processes that decode a streamed data set's training images; 0: none of "
        "their own",
    )
    checkpoint_seconds: Weight = Field(60.0, description="time between checkpoints of a long stage")


class Labels(Strict):
    """Where soft labels stop being stored."""

    max_gb: Positive = Field(
        50.0,
        description="a larger label store is not written: the relabel model runs while validating",
    )


class Settings(Strict):
    """`config/config.yaml`, with the scale's and the command line's changes."""

    scale: str = Field("paper", description="paper, or a file in config/scales/")
    seeds: Count = Field(1, description="validation seeds of every cell: 0, 1, …")
    datasets: Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_names)] = Field(
        "all", description="narrows what is run; the other cells of a table stay not_run"
    )
    cells: Literal["all", "present"] = Field(
        "all", description="present: make tables from the run JSONs that exist"
    )
    controls: Literal["default", "all", "none"] = Field(
        "default",
        description="cells of ours beside the paper's: those a table declares; all: more, as "
        "random images, everywhere",
    )
    data: str = Field("data", description="folder of the real data sets; $CDA_DATA wins")
    data_paths: dict[str, str] = Field({}, description="a data set's own folder, by name")
    labels: Labels = Field(Labels(), description="the label store")
    runtime: Runtime = Field(Runtime(), description="the machine")
