"""Images from elsewhere: a released set numbers its classes, and must mean those at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cda.data.shards import load_distilled
from cda.errors import ArtifactError, DataError
from cda.files import read_json, write_json
from cda.stages import recover, squeeze
from cda.stages.models import require_classes

CLASSES = 12


def draw(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)


@pytest.fixture
def imported(tree):
    """Twelve classes, each a grey of its own, and a release of them by number."""
    tree.edit("datasets/digits.yaml", "layout: digits\nclasses: 10", "layout: folder\nclasses: 12")
    tree.edit("datasets/digits.yaml", "layout: folder", "layout: image_folder")
    tree.edit("datasets/digits.yaml", "train_images: 1438\nval_images: 359\n", "")
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 1")
    tree.experiment("tiny", {"methods": ["released"], "ipc": [1]})
    for label in range(CLASSES):
        name = f"data/released/theirs/new{label:03d}/class{label:03d}_id000.jpg"
        draw(Path(name), label * 20)
    return tree


@pytest.mark.parametrize("method", ["cda", "random"])
def test_a_part_gets_the_shards_that_it_lacks_and_those_it_has_stay(method, tree):
    tree.few_images()
    runs = tree.runs(method)
    model = Path("model/model.safetensors")
    squeeze.run(tree.context(tree.runs()["squeeze"]), model)

    def make(out: str, *shards: int) -> dict[str, bytes]:
        recover.run(tree.context(runs["recover"]), 0, model, Path(out), shards)
        return {path.name: path.read_bytes() for path in Path(out).rglob("*.tar")}

    at_once, snapshots = make("once/part-0", 0, 1), {"step-00003.tar", "step-00006.tar"}
    assert set(at_once) == {"ipc-000.tar", "ipc-001.tar"} | (
        snapshots if method == "cda" else set()
    )
    later = make("later/part-0", 1)
    assert later == {"ipc-001.tar": at_once["ipc-001.tar"]}
    described = Path("later/part-0/ipc-001.json").read_bytes()
    assert make("later/part-0", 0, 1) == at_once
    assert Path("later/part-0/ipc-001.json").read_bytes() == described
    assert read_json(Path("later/part-0/ipc-000.json"), "it")["shards"] == 1
    assert read_json(Path("once/part-0/ipc-000.json"), "it")["shards"] == 2
    Path("later/part-0/ipc-001.tar").write_bytes(b"")  # made again if all are there
    assert make("later/part-0", 1)["ipc-001.tar"] == at_once["ipc-001.tar"]
    assert make("later/part-0", 0) == at_once


def make_shard(tree) -> tuple[np.ndarray, list[str]]:
    run = tree.runs("released")["recover"]
    out = Path("recovered/part-0")
    recover.run(tree.context(run), 0, None, out)
    images, _, classes, _ = load_distilled(out.parent, 1)
    return images, classes


def folders(*names: str) -> None:
    for label, name in enumerate(names):
        for split in ("train", "val"):
            draw(Path("data/digits", split, name, "0.png"), label * 20)


def test_a_released_class_is_the_folder_of_its_number(imported):
    folders(*map(str, range(CLASSES)))
    images, classes = make_shard(imported)
    assert classes == [str(label) for label in range(CLASSES)]
    assert (images[:, 0, 0, 0] // 20).tolist() == list(range(CLASSES))


def test_an_order_that_is_not_known_is_refused_until_the_user_states_it(imported):
    names = [f"class{label}" for label in range(CLASSES)]
    folders(*names)
    with pytest.raises(DataError, match="class 2 is 'class10' here, and 'class2' if sorted by"):
        make_shard(imported)
    imported.edit("datasets/digits.yaml", "resolution", f"class_map: {names}\nresolution")
    images, classes = make_shard(imported)
    assert classes == names
    assert (images[:, 0, 0, 0] // 20).tolist() == list(range(CLASSES))


def test_a_model_with_another_order_of_classes_labels_no_images(tree):
    tree.few_images()
    run, out = tree.runs()["squeeze"], Path("model/model.safetensors")
    squeeze.run(tree.context(run), out)
    names = [str(digit) for digit in range(10)]
    require_classes(out, run, names)
    write_json(out.with_name("squeeze.json"), {"run": run.id, "classes": names[::-1]})
    with pytest.raises(ArtifactError, match="its classes, or their order, are not those of the"):
        require_classes(out, run, names)
