"""`cda check`: what this machine has of what tables need, and how to get what is missing.

It prints a line for each data set, each file of published weights, the GPU, SLURM, DVC, the C++
compiler and the disk. It fetches nothing. With `--deep` it decodes every image first.
"""

from __future__ import annotations

import configparser
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import numpy as np

from cda.config.names import find
from cda.config.settings import Dataset
from cda.data import sources
from cda.errors import ConfigError, DataError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import data_root
from cda.experiments.runs import Run, images_run_of

COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Finding:
    """One thing: whether it is here, where it is or how to get it, and whether tables need it."""

    what: str
    is_here: bool
    text: str
    is_needed: bool = False

    def line(self) -> str:
        """The line that is printed."""
        state = "ok" if self.is_here else "missing" if self.is_needed else "–"
        return f"{state:8s} {self.what}: {self.text}"


def check(
    experiments: ExperimentSet, names: Sequence[str] = (), deep: bool = False
) -> tuple[str, bool]:
    """A line for each thing that the tables `names` (default: all) use, and whether they can run.

    Tables need their data sets and published weights. They can do without a GPU, SLURM, DVC and a
    compiler. A `deep` check decodes every image and adds a line for each that is damaged.
    """
    runs = list(experiments.runs(tuple(names) or tuple(experiments.tables)).values())
    found = [
        *_data_sets(experiments, runs, deep),
        *_weights(experiments, runs),
        _gpu(),
        _slurm(),
        _dvc(Path(".dvc")),
        _compiler(),
        _disk(Path(experiments.layout.artifacts)),
    ]
    missing = sum(item.is_needed and not item.is_here for item in found)
    tables = ", ".join(names) or f"the tables of scale {experiments.settings.scale}"
    result = f"{missing} missing." if missing else "everything needed is here."
    lines = [*(item.line() for item in found), "", f"For {tables}: {result}"]
    return "\n".join(lines), not missing


def _data_sets(experiments: ExperimentSet, runs: Sequence[Run], deep: bool) -> Iterator[Finding]:
    for name, data in {run.dataset: run.data for run in runs}.items():
        root = data_root(experiments.settings, name)
        if deep and data.layout != "no_images":
            yield _decoded(data, root)
            continue
        problem = sources.check(data, root) or _too_few(data, root, runs)
        text = problem or (str(root) if root.exists() else data.get)
        yield Finding(f"data set {name}", problem is None, text, is_needed=True)


def _too_few(data: Dataset, root: Path, runs: Sequence[Run]) -> str | None:
    """The problem if real images are drawn at an IPC that the smallest class does not reach."""
    ipcs = [run.ipc for run in runs if run.dataset == data.name and _takes_real(run)]
    if not ipcs or data.layout == "no_images":
        return None
    counts = np.bincount(sources.labels_of(data, "train", root), minlength=data.classes)
    label = int(counts.argmin())
    if counts[label] >= max(ipcs):
        return None
    name = sources.class_names(data, root)[label]
    return (
        f"class {name} has {counts[label]} training images, too few for real images at IPC "
        f"{max(ipcs)}; lower the IPC in the table or in compare_ipc"
    )


def _takes_real(run: Run) -> bool:
    images = images_run_of(run)
    if images is None or images.recipe.distill:
        return False
    return images.recipe.recover.mode == "random"


def _decoded(data: Dataset, root: Path) -> Finding:
    """Whether every image of a data set decodes; the text has a line for each that does not."""
    what = f"data set {data.name}"
    try:
        counts, damaged = sources.inspect(data, root)
    except DataError as problem:
        return Finding(what, False, str(problem), is_needed=True)
    found = ", ".join(f"{count:,} {split} images" for split, count in counts.items())
    if not damaged:
        return Finding(what, True, f"{root}, {found} decode", is_needed=True)
    file = f"{data.name}.exclude.txt"
    fix = (
        f"{len(damaged)} of {found} do not decode; get them again, or put these lines into "
        f"config/datasets/{file} and exclude: {file} into config/datasets/{data.name}.yaml"
    )
    lines = [f"{path}\t{' '.join(problem.split())}" for path, problem in damaged]
    return Finding(what, False, "\n".join([fix, *lines]), is_needed=True)


def _weights(experiments: ExperimentSet, runs: Sequence[Run]) -> Iterator[Finding]:
    """Published weights of runs that are not squeezed yet; each name comes once."""
    named: list[tuple[str, str]] = []
    for run in runs:
        if run.stage == "squeeze" and not Path(experiments.layout.model(run)).is_file():
            published = run.recipe.squeeze.weights or run.recipe.squeeze.init
            if published:
                named.append((published, run.model))
    for published, model in dict.fromkeys(named):
        library, _, name = published.partition(":")
        find_file = {"torchvision": _torchvision, "timm": _timm, "package": _package}
        try:
            file = find_file[library](model, name)
            command = f"cda fetch {published} {model}"
            fix = f"fetched when they are needed; for nodes without internet: {command}"
        except ConfigError as problem:  # a ValueError too
            file, fix = None, str(problem)
        except (KeyError, ValueError):
            file, fix = None, f"{library} has no weights of this name; fix it in config/recipes/"
        yield Finding(f"weights {published}", file is not None, str(file or fix), is_needed=True)


def _torchvision(_model: str, name: str) -> Path | None:
    """The file in torch.hub's folder; raises ValueError or KeyError for an unknown name."""
    import torch
    from torchvision.models import get_weight

    file_name = Path(urlparse(get_weight(name).url).path).name
    file = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    return file if file.is_file() else None


def _timm(model: str, tag: str) -> Path | None:
    """The file in Hugging Face's cache."""
    from huggingface_hub import try_to_load_from_cache

    network = find(model)
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(f"timm/{network.name if network else model}.{tag}", file)
        if isinstance(found, str):
            return Path(found)
    return None


def _package(_model: str, name: str) -> Path:
    """The file in the package; raises ConfigError."""
    from cda.engine.pretrained import shipped

    return shipped(name)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        fix = "jobs run on the CPU; fix the driver if this machine has a GPU"
        return Finding("GPU", False, f"torch finds none: {fix}")
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    lines = [f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards]
    lines.append("bf16" if has_bf16 else "no bf16: jobs run in fp32")
    return Finding("GPU", True, "; ".join(lines))


def _slurm() -> Finding:
    printed, fix = [], "ask your cluster's administrators"
    for program, options in (("sinfo", ["-h", "-o", "%P"]), ("squeue", ["-h", "--me"])):
        if shutil.which(program) is None:
            return Finding("SLURM", False, f"no {program} on the PATH: jobs run on this machine")
        try:
            done = subprocess.run(
                [program, *options], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return Finding("SLURM", False, f"{program} does not answer; {fix}")
        if done.returncode:
            reason = [*done.stderr.strip().splitlines(), f"exit status {done.returncode}"][0]
            return Finding("SLURM", False, f"{program} failed ({reason}); {fix}")
        printed.append(done.stdout)
    partitions = dict.fromkeys(line.strip() for line in printed[0].splitlines())
    return Finding("SLURM", True, f"answers; partitions {', '.join(partitions)}")


def _dvc(folder: Path) -> Finding:
    """Whether DVC is installed and its configuration files name a default remote."""
    if importlib.util.find_spec("dvc") is None and shutil.which("dvc") is None:
        return Finding("DVC", False, "not installed: artifacts are made here, none are pulled")
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read([folder / "config", folder / "config.local"], encoding="utf-8")
    except (configparser.Error, ValueError):
        fix = f"git checkout {folder}/config, or fix {folder}/config.local"
        return Finding("DVC", False, f"{folder}/config is damaged; {fix}")
    remote = config.get("core", "remote", fallback="")
    url = config.get(f"'remote \"{remote}\"'", "url", fallback="")
    if not remote or not url:
        fix = "`dvc remote add --local --default NAME URL`"
        return Finding("DVC", False, f"{folder}/config names no default remote with a url; {fix}")
    return Finding("DVC", True, f"remote {remote}: {url}")


def _compiler() -> Finding:
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    text = found or "none on the PATH; runtime.compile does nothing on a CPU"
    return Finding("C++ compiler", found is not None, text)


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return Finding("disk", True, f"{free:,.0f} GB free at {folder}/; `cda plan` prints the need")
