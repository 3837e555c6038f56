"""What an epoch's plan promises to a label store, the images it gives, and the stores that are
refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from cda.config.recipe import Relabel
from cda.config.settings import Dataset, Runtime
from cda.data.label_codec import Codec
from cda.data.label_store import FORMAT, LabelStore, LabelWriter
from cda.engine.batches import DistilledBatches, EpochPlan, epoch_plan
from cda.engine.device import Device
from cda.engine.images import Images
from cda.engine.soft_labels import LabelledBatches
from cda.errors import ArtifactError
from cda.files import file_digest

torch.set_num_threads(1)

COUNT, SIZE = 23, 16
KINDS = [
    {"mixing": mixing, "augment": augment, "batch_size": 7, "padding": 2}
    for mixing in ("none", "cutmix", "mixup")
    for augment in ("random_resized_crop", "pad_crop", "none")
]


def named(kind: dict[str, Any]) -> str:
    return f"{kind['mixing']}-{kind['augment']}"


def leaves(plan: EpochPlan) -> list[np.ndarray]:
    return [plan.order, *plan.views, plan.partners, plan.ratios, plan.boxes]


def assert_same(one: EpochPlan, other: EpochPlan) -> None:
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def blocks(plan: EpochPlan, size: int) -> list[np.ndarray]:
    return [plan.order[start : start + size] for start in range(0, len(plan.order), size)]


# The plan


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_a_plan_depends_on_its_arguments_alone(kind):
    recipe = Relabel(**kind)
    forward = [epoch_plan(recipe, SIZE, COUNT, epoch) for epoch in range(4)]
    np.random.default_rng(0).random(5)
    backward = [epoch_plan(Relabel(**kind), SIZE, COUNT, epoch) for epoch in reversed(range(4))]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert_same(one, other)


def test_epochs_and_seeds_are_seen_differently():
    recipe = Relabel(mixing="cutmix")
    plans = [epoch_plan(recipe, SIZE, COUNT, 0), epoch_plan(recipe, SIZE, COUNT, 1)]
    plans.append(epoch_plan(Relabel(mixing="cutmix", seed=1), SIZE, COUNT, 0))
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert not np.array_equal(plans[a].order, plans[b].order)
        assert not np.array_equal(plans[a].views.boxes, plans[b].views.boxes)
        assert not np.array_equal(plans[a].partners, plans[b].partners)
        assert not np.array_equal(plans[a].boxes, plans[b].boxes)


def test_the_codec_changes_no_plan():
    for labels in ("online", "hard"):
        assert_same(
            epoch_plan(Relabel(labels=labels), SIZE, COUNT, 2),
            epoch_plan(Relabel(), SIZE, COUNT, 2),
        )


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_the_order_is_every_image_once(kind):
    for epoch in range(3):
        order = epoch_plan(Relabel(**kind), SIZE, COUNT, epoch).order
        assert sorted(order.tolist()) == list(range(COUNT))
        assert order.tolist() != list(range(COUNT))


@pytest.mark.parametrize("mixing", ["cutmix", "mixup"])
@pytest.mark.parametrize("size", [1, 7, 23, 128])
def test_partners_permute_each_label_batch(mixing, size):
    plan = epoch_plan(Relabel(mixing=mixing, batch_size=size), SIZE, COUNT, 5)
    for block in blocks(plan, size):
        assert sorted(plan.partners[block].tolist()) == sorted(block.tolist())
        assert (
            len(set(plan.ratios[block].tolist())) == 1
        )  # one ratio and one box a label batch, as the authors
        assert len({tuple(box) for box in plan.boxes[block].tolist()}) == 1
    if size == 7:
        assert len(set(plan.ratios.tolist())) == 4
        assert plan.partners.tolist() != list(range(COUNT))


def test_without_mixing_everyone_is_alone():
    plan = epoch_plan(Relabel(mixing="none"), SIZE, COUNT, 0)
    assert plan.partners.tolist() == list(range(COUNT))
    assert (plan.ratios == 1).all()
    assert not plan.boxes.any()


def test_views_do_not_depend_on_mixing_or_on_the_number_of_images():
    one = epoch_plan(Relabel(mixing="cutmix", batch_size=5), SIZE, COUNT, 1).views
    other = epoch_plan(Relabel(mixing="none"), SIZE, 100, 1).views
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b[:COUNT])


def test_cutmix_ratio_is_the_share_left_unpatched():
    plan = epoch_plan(Relabel(mixing="cutmix", batch_size=1), SIZE, 500, 0)
    clipped = 0
    for ratio, (top, bottom, left, right) in zip(plan.ratios, plan.boxes, strict=True):
        image = np.zeros((SIZE, SIZE))
        image[top:bottom, left:right] = 1
        assert ratio == 1 - image.mean()
        clipped += 0 in (top, left) or SIZE in (bottom, right)
    assert clipped > 100
    assert 0.65 < plan.ratios.mean() < 0.9  # 0.5 before clipping and rounding down


@pytest.mark.parametrize("alpha", [0.8, 1.0, 4.0])
def test_mixup_ratio_is_beta_distributed(alpha):
    from scipy.stats import beta, kstest

    ratios = epoch_plan(
        Relabel(mixing="mixup", mixing_alpha=alpha, batch_size=1), SIZE, 4000, 0
    ).ratios
    assert kstest(ratios, beta(alpha, alpha).cdf).pvalue > 0.001
    assert ratios.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


REUSING = [
    kind | {"epochs": 7, "reuse": 3, "cutout": 0.4} for kind in KINDS
]  # 3 epochs of labels for 7 of training


@pytest.mark.parametrize("kind", REUSING, ids=named)
def test_epochs_that_share_labels_see_the_same_images_in_another_order(kind):
    recipe = Relabel(**kind)
    plans = [epoch_plan(recipe, SIZE, COUNT, epoch) for epoch in range(7)]
    for epoch, plan in enumerate(plans):
        first = plans[epoch % 3]
        for one, other in zip(leaves(plan)[1:], leaves(first)[1:], strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(plan.cutouts, first.cutouts, strict=True):
            np.testing.assert_array_equal(one, other)
        assert sorted(plan.order.tolist()) == list(range(COUNT))
    assert len({tuple(plan.order) for plan in plans}) == 7
    assert not np.array_equal(plans[0].cutouts.boxes, plans[1].cutouts.boxes)
    if kind["augment"] != "none":
        assert not np.array_equal(plans[0].views.boxes, plans[1].views.boxes)


@pytest.mark.parametrize("kind", REUSING, ids=named)
def test_labels_are_made_for_the_plan_that_they_would_have_alone(kind):
    alone = Relabel(**kind | {"reuse": 1})
    for epoch in range(3):
        assert_same(
            epoch_plan(Relabel(**kind), SIZE, COUNT, epoch), epoch_plan(alone, SIZE, COUNT, epoch)
        )


def test_how_many_epochs_of_labels_there_are():
    assert [Relabel(reuse=reuse).label_epochs(7) for reuse in (1, 2, 3, 7, 50)] == [7, 4, 3, 1, 1]
    assert [Relabel(reuse=3, epochs=7).label_epoch(epoch) for epoch in range(7)] == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
    ]


# The images


def distilled(recipe: Relabel, batch_size: int) -> DistilledBatches:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    data = Dataset(
        name="toy", layout="digits", classes=3, resolution=SIZE, get="x",
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3),
    )  # fmt: skip
    device = Device(Runtime(device="cpu"), torch.device("cpu"), None)
    return DistilledBatches(Images(pixels, np.arange(COUNT) % 3, data, device), recipe, batch_size)


def seen(batches: DistilledBatches, epoch: int, first: int = 0) -> dict[int, np.ndarray]:
    return {
        int(index): image
        for inputs, (_, _, chosen) in batches.epoch(epoch, first)
        for index, image in zip(chosen, inputs.numpy(), strict=True)
    }


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_every_validation_batch_size_sees_the_same_images(kind):
    recipe = Relabel(**kind)
    for epoch in (0, 3):
        expected = seen(distilled(recipe, COUNT), epoch)
        assert len(expected) == COUNT
        for batch_size in (1, 4, 7, 16, 64):
            batches = distilled(recipe, batch_size)
            found = seen(batches, epoch)
            assert batches.steps == -(-COUNT // batch_size)
            assert list(found) == list(expected)  # the same order too
            for index, image in expected.items():
                np.testing.assert_allclose(found[index], image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", REUSING, ids=named)
def test_images_of_epochs_that_share_labels_are_equal(kind):
    batches = distilled(Relabel(**kind), 5)
    early, late, other = seen(batches, 1), seen(batches, 4), seen(batches, 2)
    assert list(early) != list(late)
    for index, image in early.items():
        np.testing.assert_allclose(late[index], image, rtol=0, atol=1e-6)
    assert any(np.abs(other[index] - image).max() > 0.1 for index, image in early.items())


def test_an_epoch_goes_on_from_any_step():
    batches = distilled(Relabel(mixing="cutmix", batch_size=7), 4)
    expected = list(seen(batches, 1).items())
    for first in range(batches.steps + 1):
        found = list(seen(batches, 1, first).items())
        assert [index for index, _ in found] == [index for index, _ in expected[4 * first :]]
        assert all(
            np.array_equal(a, b)
            for (_, a), (_, b) in zip(found, expected[4 * first :], strict=True)
        )


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_images_follow_the_plan_by_torchvision(kind):
    batches = distilled(Relabel(**kind), 5)
    plan, pixels = batches.plan(2), batches.set.pixels.permute(0, 3, 1, 2).double() / 255

    def alone(index: int) -> torch.Tensor:
        top, left, height, width = plan.views.boxes[index].tolist()
        padded = tv.pad(pixels[index], [2])
        image = tv.crop(padded, top + 2, left + 2, height, width)
        image = tv.resize(image, [SIZE, SIZE], antialias=False)
        return tv.horizontal_flip(image) if plan.views.flips[index] else image

    for index, found in seen(batches, 2).items():
        image, partner, ratio = alone(index), alone(int(plan.partners[index])), plan.ratios[index]
        if kind["mixing"] == "mixup":
            image = ratio * image + (1 - ratio) * partner
        if kind["mixing"] == "cutmix":
            top, bottom, left, right = plan.boxes[index]
            image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        expected = tv.normalize(image, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


# The store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A label store for 6 images of 3 classes and 4 epochs."""
    header = {
        "format": FORMAT,
        "run": "a-run",
        "labels": "stored",
        "classes": ["a", "b", "c"],
        "images_digest": "abc",
        "epochs": 4,
        "recipe": {},
    }
    (tmp_path / "header.json").write_text(json.dumps(header | {"shape": [4, 6, 3]}))
    np.save(tmp_path / "logits.npy", np.arange(72, dtype=np.float16).reshape(4, 6, 3))
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | values))


def refusal(folder: Path, file: str, epochs: int = 4) -> str:
    """The one line with which it is refused; it names the file."""
    with pytest.raises(ArtifactError) as caught:
        LabelStore(folder).check("a-run", "abc", ["a", "b", "c"], epochs)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{folder / file}: ")
    return line


def test_logits_come_back_by_epoch_and_image(store):
    labels = LabelStore(store)
    labels.check("a-run", "abc", ["a", "b", "c"], 4)
    labels.check("a-run", "abc", ["a", "b", "c"], 2)  # more epochs than are asked for
    assert labels.read(2, np.array([5, 0])).tolist() == [[51, 52, 53], [36, 37, 38]]
    assert labels.read(0, np.array([1])).dtype == np.float32
    assert labels.rows(0, np.array([1])).dtype == np.float16


def test_the_first_stores_stay_readable(store):
    """They say fp16 where today's say stored, and know neither codecs nor a temperature."""
    change(store, labels="fp16", recipe={"labels": "fp16", "mixing": "cutmix", "epochs": None})
    labels = LabelStore(store)
    assert (labels.mode, labels.recipe.mixing, labels.codec.plain) == ("stored", "cutmix", True)
    assert labels.read(2, np.array([5])).tolist() == [[51, 52, 53]]


def test_labels_that_are_not_stored_need_no_logits(store):
    (store / "logits.npy").unlink()
    for mode in ("online", "hard"):
        change(store, labels=mode)
        LabelStore(store).check("a-run", "abc", ["a", "b", "c"], 4)


def test_labels_of_other_images_are_refused(store):
    change(store, images_digest="abd")
    assert "another set of images" in refusal(store, "header.json")


def test_classes_in_another_order_are_refused(store):
    change(store, classes=["b", "a", "c"])
    assert "classes are in another order" in refusal(store, "header.json")


def test_too_few_epochs_are_refused(store):
    assert "labels for 4 epochs, the recipe's validate.epochs is 5" in refusal(
        store, "header.json", epochs=5
    )


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 6, 3), (4, 6, 2), (72,)])
def test_a_store_of_another_shape_is_refused(store, shape):
    np.save(store / "logits.npy", np.zeros(shape, dtype=np.float16))
    assert str(shape) in refusal(store, "logits.npy")


def test_a_store_of_another_precision_is_refused(store):
    np.save(store / "logits.npy", np.zeros((4, 6, 3), dtype=np.float32))
    assert "holds float32 (4, 6, 3), its header has float16 (4, 6, 3)" in refusal(
        store, "logits.npy"
    )


def test_pickled_logits_are_refused(store):
    np.save(store / "logits.npy", np.full((4, 6, 3), None), allow_pickle=True)
    assert "damaged label store" in refusal(store, "logits.npy")


@pytest.mark.parametrize("left", [0, 3, 50, 128, 200, -1])
def test_a_truncated_store_is_refused(store, left):
    path = store / "logits.npy"
    path.write_bytes(path.read_bytes()[:left])
    assert "damaged label store" in refusal(store, "logits.npy")


def test_a_store_without_logits_is_refused(store):
    (store / "logits.npy").unlink()
    assert "damaged label store" in refusal(store, "logits.npy")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"cda-labels/1"', "{}", '{"format": "cda-labels/2"}', "\udcff"]
)
def test_a_foreign_header_is_refused(store, text):
    (store / "header.json").write_bytes(text.encode(errors="surrogateescape"))
    refusal(store, "header.json")


def test_a_store_without_header_is_refused(store):
    (store / "header.json").unlink()
    assert "cannot be read" in refusal(store, "header.json")


@pytest.mark.parametrize("key", ["labels", "shape", "classes", "images_digest", "epochs"])
def test_a_header_that_lacks_a_key_is_refused(store, key):
    header = json.loads((store / "header.json").read_text())
    del header[key]
    (store / "header.json").write_text(json.dumps(header))
    refusal(store, "header.json")


def test_an_unknown_kind_of_labels_is_refused(store):
    change(store, labels="fp8")
    refusal(store, "header.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": []}, "lacks recipe"),
        ({"recipe": {"bits": 5}}, "bits must be one of 16, 8, 4"),
        ({"recipe": {"reuse": 0}}, "reuse must be at least 1"),
        ({"recipe": {"reuse": 2}}, "its shape does not hold its epochs"),
        ({"recipe": {"top_k": 1}}, "its classes or temperature do not fit its top_k 1"),
        (
            {"recipe": {"top_k": 1}, "temperature": 0},
            "its classes or temperature do not fit its top_k 1",
        ),
        (
            {"recipe": {"top_k": 3}, "temperature": 4.0},
            "its classes or temperature do not fit its top_k 3",
        ),
        ({"epochs": None}, "lacks epochs"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_a_damaged_recipe_is_refused(store, values, message):
    change(store, **values)
    assert message in refusal(store, "header.json")


@pytest.mark.parametrize("recipe", [{"bits": 8}, {"bits": 4}, {"bits": 8, "top_k": 2}])
def test_rows_of_another_codec_are_refused(store, recipe):
    change(store, recipe=recipe, temperature=4.0)
    assert "holds float16 (4, 6, 3), its header has uint8 (4, 6, 3)" in refusal(store, "logits.npy")


def test_labels_of_another_run_are_refused(store):
    change(store, run="another-00000000")
    assert "holds the labels of run another-00000000, not of a-run" in refusal(store, "header.json")


def test_logits_that_changed_are_refused(store):
    change(store, sha256=file_digest(store / "logits.npy"))
    LabelStore(store).verify()
    np.save(store / "logits.npy", np.zeros((4, 6, 3), dtype=np.float16))
    with pytest.raises(ArtifactError, match="differs from its header's digest"):
        LabelStore(store).verify()


# Writing


TEMPERATURE = 4.0
CODECS = [
    {"bits": bits, "top_k": top_k, "reuse": reuse}
    for bits in (16, 8, 4)
    for top_k in (0, 3, 8)
    for reuse in (1, 3)
]


def codec_name(options: dict[str, Any]) -> str:
    return "-".join(map(str, options.values()))


def codec_of(options: dict[str, Any], classes: int = 20) -> Codec:
    return Codec(classes, options["bits"], options["top_k"], TEMPERATURE)


def logits_of(epoch: int, count: int = COUNT, classes: int = 20) -> torch.Tensor:
    return 4 * torch.randn(count, classes, generator=torch.Generator().manual_seed(epoch))


def written(folder: Path, options: dict[str, Any], epochs: int = 7) -> LabelStore:
    """A store for so many epochs of training, written through batches in an order of their own."""
    recipe = Relabel(**options, epochs=epochs)
    writer = LabelWriter(folder, codec_of(options), recipe.label_epochs(epochs), COUNT)
    for epoch in range(writer.shape[0]):
        order = np.random.default_rng(epoch).permutation(COUNT)
        for chosen in np.array_split(order, 4):
            writer.write(epoch, chosen, logits_of(epoch)[torch.from_numpy(chosen)])
    header = {
        "format": FORMAT,
        "run": "a-run",
        "labels": "stored",
        "classes": [f"{i}" for i in range(20)],
    }
    header |= {"images_digest": "abc", "epochs": epochs, "recipe": recipe.model_dump(mode="json")}
    header |= {"temperature": TEMPERATURE, **writer.close()}
    (folder / "header.json").write_text(json.dumps(header))
    return LabelStore(folder)


@pytest.mark.parametrize("options", CODECS, ids=codec_name)
def test_what_is_written_is_read_by_epoch_and_image(tmp_path, options):
    store, codec = written(tmp_path / "store", options), codec_of(options)
    store.verify()
    assert store.codec == codec
    for epoch in range(7):
        own = epoch % -(-7 // options["reuse"])
        expected = codec.decode(codec.encode(logits_of(own))).numpy()
        for chosen in (np.arange(COUNT), np.array([9, 0, 22, 9]), np.array([4])):
            np.testing.assert_array_equal(store.read(epoch, chosen), expected[chosen])
            rows = torch.from_numpy(store.rows(epoch, chosen))
            np.testing.assert_array_equal(store.codec.decode(rows).numpy(), expected[chosen])


@pytest.mark.parametrize("options", CODECS, ids=codec_name)
def test_a_store_takes_the_estimated_bytes(tmp_path, options):
    store = written(tmp_path / "store", options)
    epochs = {1: 7, 3: 3}[options["reuse"]]
    assert store.header["shape"] == [epochs, COUNT, store.codec.width]
    size = (tmp_path / "store" / "logits.npy").stat().st_size
    assert size - epochs * COUNT * store.codec.parts.bytes == 128  # numpy's header


@pytest.mark.parametrize("options", CODECS, ids=codec_name)
def test_a_writer_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, options):
    writer, codec, everyone = None, codec_of(options), np.arange(COUNT)
    for name, stops in (("whole", ()), ("stopped", (2, 4))):
        for stop in (*stops, 5):
            writer = LabelWriter(tmp_path / name / "out", codec, 5, COUNT, "key")
            assert writer.done == ({2: 0, 4: 2, 5: 4} if stops else {5: 0})[stop]
            for epoch in range(writer.done, stop):
                writer.write(epoch, everyone, logits_of(epoch))
            if stop < 5:
                writer.mark(stop)
                writer.write(
                    stop, everyone[:5], torch.full((5, 20), 7.0)
                )  # half an epoch, which is written again
    undisturbed, stopped = (tmp_path / name / "out" / "logits.npy" for name in ("whole", "stopped"))
    assert undisturbed.read_bytes() == stopped.read_bytes()


def test_labels_made_from_something_else_are_not_gone_on_with(tmp_path):
    writer = LabelWriter(tmp_path / "out", Codec(20), 5, COUNT, "key")
    writer.mark(3)
    assert LabelWriter(tmp_path / "out", Codec(20), 5, COUNT, "key").done == 3
    assert LabelWriter(tmp_path / "out", Codec(20), 5, COUNT, "other key").done == 0
    writer.mark(3)
    assert LabelWriter(tmp_path / "out", Codec(20, 8), 5, COUNT, "key").done == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -7e4])
def test_logits_that_are_no_numbers_are_refused(tmp_path, wrong):
    writer, logits = LabelWriter(tmp_path / "out", Codec(20, 8), 5, COUNT), logits_of(0)
    logits[3, 4] = wrong
    with pytest.raises(
        ArtifactError, match=r"logits of epoch 1 .*; squeeze the relabel model again"
    ):
        writer.write(1, np.arange(COUNT), logits)


def test_a_store_without_room_is_refused_at_once(tmp_path):
    with pytest.raises(ArtifactError, match=r"no room for 2e\+08 GB .*lower labels.max_gb"):
        LabelWriter(tmp_path / "out", Codec(1000), 10**7, 10**7)


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


@pytest.mark.parametrize("codec", [Codec(1000), Codec(1000, 8)], ids=["fp16", "8 bits"])
def test_memory_does_not_grow_with_the_epochs(tmp_path, codec):
    """200 MB of fp16, or 100 MB of bytes, go through a twentieth of it."""
    logits, everyone = torch.randn(2000, 1000), np.arange(2000)
    codec.encode(logits)  # what torch keeps for the next time
    before, most = anonymous(), 0
    writer = LabelWriter(tmp_path / "out", codec, 50, 2000)
    for epoch in range(50):
        for chosen in np.split(everyone, 8):
            writer.write(epoch, chosen, logits[torch.from_numpy(chosen)] + epoch)
        most = max(most, anonymous())
    assert most - before < codec.parts.bytes * 50 * 2000 / 10
    assert writer.path.stat().st_size > codec.parts.bytes * 50 * 2000


# The bytes, as docs/label_store.md describes them


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The functions of docs/label_store.md, which import nothing but NumPy and json."""
    page = (Path(__file__).parents[3] / "docs/label_store.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    assert set(re.findall(r"import (\w+)", code)) == {"hashlib", "json", "numpy"}
    functions: dict[str, Any] = {}
    exec(compile(code, "docs/label_store.md", "exec"), functions)
    return functions


@pytest.mark.parametrize("classes", [20, 300])
@pytest.mark.parametrize("options", CODECS, ids=codec_name)
def test_a_store_is_read_by_its_description_alone(tmp_path, described, options, classes):
    codec, recipe = codec_of(options, classes), Relabel(epochs=5, **options)
    writer = LabelWriter(tmp_path, codec, recipe.label_epochs(5), COUNT)
    for epoch in range(writer.shape[0]):
        writer.write(epoch, np.arange(COUNT), logits_of(epoch, classes=classes))
    header = {"format": FORMAT, "labels": "stored", "images_digest": "abc", "epochs": 5}
    header |= {"recipe": recipe.model_dump(mode="json"), "temperature": TEMPERATURE}
    header |= {"classes": [f"{i}" for i in range(classes)], **writer.close()}
    (tmp_path / "header.json").write_text(json.dumps(header), encoding="utf-8")
    store = LabelStore(tmp_path)
    for epoch in range(5):
        expected = store.read(epoch, np.arange(COUNT))
        np.testing.assert_array_equal(described["read_logits"](tmp_path, epoch), expected)


@pytest.mark.parametrize("kind", KINDS, ids=named)
@pytest.mark.parametrize("reuse", [1, 3])
def test_augmentations_are_drawn_by_the_description_alone(tmp_path, described, kind, reuse):
    recipe = Relabel(**kind, epochs=5, reuse=reuse, seed=3, crop_scale=(0.3, 0.9))
    header = {"epochs": 5, "recipe": recipe.model_dump(mode="json")}
    (tmp_path / "header.json").write_text(json.dumps(header), encoding="utf-8")
    for epoch in range(5):
        plan = epoch_plan(recipe, SIZE, COUNT, epoch)
        expected = [plan.order, plan.views.boxes, plan.views.flips, plan.partners, plan.ratios]
        expected += [plan.boxes] if kind["mixing"] != "none" else []
        found = described["read_augmentation"](tmp_path, epoch, COUNT, SIZE)
        for one, other in zip(found, expected, strict=False):
            np.testing.assert_array_equal(one, other)


# Stored and online


@pytest.mark.parametrize("options", CODECS, ids=codec_name)
def test_labels_made_while_validating_are_those_that_a_store_gives(
    tmp_path, compiled_steps, options
):
    """In every epoch and at any batch size, up to the rounding of the images that the relabel model
    is shown.
    """
    recipe = Relabel(mixing="cutmix", batch_size=7, epochs=5, **options)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 20)).double()
    codec, doubled = codec_of(options), torch.nn.Sequential(Doubled(), teacher)
    making = distilled(recipe, COUNT)
    writer = LabelWriter(tmp_path / "stored", codec, recipe.label_epochs(5), COUNT)
    for epoch in range(writer.shape[0]):
        plan = making.plan(epoch)
        with torch.inference_mode():
            writer.write(epoch, plan.order, doubled(making.inputs(plan, plan.order)))
    header = {
        "format": FORMAT,
        "classes": [f"{i}" for i in range(20)],
        "images_digest": "abc",
        "epochs": 5,
    }
    header |= {
        "recipe": recipe.model_dump(mode="json"),
        "temperature": TEMPERATURE,
        "shape": list(writer.shape),
    }
    device, stores = Device(Runtime(device="cpu"), torch.device("cpu"), None), []
    for mode in ("stored", "online"):
        (tmp_path / mode).mkdir(exist_ok=True)
        (tmp_path / mode / "header.json").write_text(json.dumps(header | {"labels": mode}))
        store = LabelStore(tmp_path / mode)
        stores.append(LabelledBatches(distilled(store.recipe, 5), store, doubled, device, 7))
    assert compiled_steps == 2 * [
        7 * stores[0].steps
    ]  # all epochs decide whether the teacher is compiled
    same = total = 0
    for epoch in range(5):
        for (images, rows), (again, online) in zip(
            *(one.epoch(epoch) for one in stores), strict=True
        ):
            assert torch.equal(images, again)
            stored = codec.decode(rows)
            same += int(torch.isclose(stored, online, rtol=2**-10, atol=1e-3).sum())
            total += stored.numel()
            assert not online.is_inference()
    assert same >= 0.99 * total  # a logit on the edge between two steps may fall on either side


class Doubled(torch.nn.Module):
    """Images in float64, so that a linear layer's result does not depend on the batch's size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double()
