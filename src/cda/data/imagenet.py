"""ImageNet-1K and ImageNet-21K-P as they are handed out. Classes are WordNet ids, sorted.

ImageNet-1K's held-out images come without class folders; Kaggle's `LOC_val_solution.csv` or the
development kit of 2012 names the class of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cda.data.base import Split
from cda.data.folders import Folders

if TYPE_CHECKING:
    from cda.config.settings import Dataset

KAGGLE = "LOC_val_solution.csv"
KITS = ("ILSVRC2012_devkit_t12/data", "data", "")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# in a process of its own, since scipy crashes on damaged MATLAB files
READ_SYNSETS = """\
import json, sys
from scipy.io import loadmat
synsets = loadmat(sys.argv[1], squeeze_me=True, variable_names=["synsets"])["synsets"]
lowest = [synset for synset in synsets if int(synset["num_children"]) == 0]
print(json.dumps({str(int(one["ILSVRC2012_ID"])): str(one["WNID"]) for one in lowest}))
"""


class ImageNet1K(Folders):
    """`train/<wnid>/` and `val/<wnid>/`, or `val/*.JPEG` with the official ground truth.

    Also in Kaggle's tree.
    """

    held_out = ("val",)

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.top, nested = root, root / "ILSVRC" / "Data" / "CLS-LOC"
        super().__init__(dataset, nested if nested.is_dir() else root)

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        if split == "train":
            return super().by_class(split)
        loose = {
            entry.name: entry.path
            for entry in self.entries(self.folder(split))
            if self.scan.kind(entry) == "image"
        }
        if not loose:
            return super().by_class(split)
        table, truth = self.ground_truth()
        unnamed = next((name for name in loose if name not in truth), None)
        if unnamed is not None:
            self.fail(loose[unnamed], f"an image that {table.name} names")
        files, folder, excluded = dict[str, list[str]](), self.folder(split), self.excluded(split)
        for name, wnid in truth.items():
            path = str(folder / name)
            if name not in loose and path not in excluded:
                self.fail(path, f"the image that {table.name} names")
            files.setdefault(wnid, []).append(path)
        return {wnid: sorted(paths) for wnid, paths in files.items()}

    def ground_truth(self) -> tuple[Path, dict[str, str]]:
        """The ground truth's path, and its class of each held-out file; raises DataError."""
        for base in (self.top, self.root):
            if (table := base / KAGGLE).is_file():
                return table, self.distinct(table, self.kaggle(table))
            for kit in KITS:
                if (table := base / kit / TRUTH).is_file():
                    return table, self.distinct(table, self.kit(table))
        self.fail(self.top, f"{KAGGLE} or {KITS[0]}/{TRUTH}, since val has no class folders,")

    def distinct(self, table: Path, named: Iterator[tuple[str, str]]) -> dict[str, str]:
        """The class of each image of a table; raises DataError for an image named twice."""
        truth = dict[str, str]()
        for number, (name, wnid) in enumerate(named, start=1):
            if name in truth:
                self.fail(table, "an image once", f"{name} again as image {number}")
            truth[name] = wnid
        return truth

    def kaggle(self, table: Path) -> Iterator[tuple[str, str]]:
        """File and class of each line `ImageId,WNID x y x y …`, after a line of headings."""
        for number, line in enumerate(self.text(table).splitlines(), start=1):
            name, _, boxes = line.partition(",")
            wnid = boxes.split(" ")[0].strip()
            if number == 1 and name == "ImageId":
                continue
            if not name or not wnid:
                expected = "an image, a comma and its class in each line"
                self.fail(table, expected, f"none in line {number}")
            yield f"{name}.JPEG", wnid

    def kit(self, table: Path) -> Iterator[tuple[str, str]]:
        """File and class of each line of the development kit: line i is of image i."""
        wnids = self.wnids(table.with_name("meta.mat"))
        for number, line in enumerate(self.text(table).splitlines(), start=1):
            wnid = wnids.get(line.strip())
            if wnid is None:
                expected = "a class number of meta.mat in each line"
                self.fail(table, expected, f"{line[:20]!r} in line {number}")
            yield f"ILSVRC2012_val_{number:08d}.JPEG", wnid

    def wnids(self, path: Path) -> dict[str, str]:
        """The WordNet id of each class number: the synsets without children."""
        command = [sys.executable, "-c", READ_SYNSETS, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [f"a file that crashes scipy ({done.returncode})", *done.stderr.splitlines()]
            self.fail(path, "the development kit's table of synsets", lines[-1])
        wnids: dict[str, str] = json.loads(done.stdout)
        return wnids


class ImageNet21K(Folders):
    """ImageNet-21K-P (Ridnik et al. 2021): `imagenet21k_{train,val}/<wnid>/`."""

    training = ("imagenet21k_train", "train")
    held_out = ("imagenet21k_val", "val")

    def __init__(self, dataset: Dataset, root: Path) -> None:
        nested = root / "imagenet21k_resized"
        super().__init__(dataset, nested if nested.is_dir() else root)
