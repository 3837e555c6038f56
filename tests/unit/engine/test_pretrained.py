"""Published weights: as a squeeze run of their own kind, and as a start.

Downloads are drawn here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from cda.config.names import NETWORKS
from cda.config.recipe import Architecture
from cda.engine.checkpoint import load_state
from cda.engine.device import open_device
from cda.engine.pretrained import classifier, output_names, start_from, state_of
from cda.errors import ConfigError
from cda.method.networks import build
from cda.stages import squeeze
from cda.stages.context import Context
from cda.stages.models import load_squeezed

torch.set_num_threads(1)

NAME = "ResNet18_Weights.IMAGENET1K_V1"
WEIGHTS = f"torchvision:{NAME}"
NAMES = output_names(1000)
CLASSES = dict.fromkeys(NAMES, "")
LITE = "tf_efficientnet_lite0"


def drawn(model: nn.Module) -> dict[str, Tensor]:
    """Its tensors, moved, as a plain dictionary: a file keeps no versions."""
    torch.manual_seed(0)
    state = model.state_dict()
    return {
        name: t + torch.randn_like(t) * 0.05 if t.is_floating_point() else t
        for name, t in state.items()
    }


@pytest.fixture(scope="module")
def resnet18():
    return drawn(torchvision.models.resnet18())


@pytest.fixture
def download(monkeypatch):
    """What every download gives from now on: a state, or an error."""

    def gives(found: dict[str, Tensor] | Exception) -> None:
        def load(*_args, **_kwargs):
            if isinstance(found, Exception):
                raise found
            return dict(found)

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
        monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", load)

    return gives


def refusal(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# As a squeeze run


def take_published(tree: Any) -> None:
    """Name torchvision's ResNet-18 as the recipe's model."""
    tree.edit(
        "recipes/digits.yaml",
        "squeeze:\n",
        f"squeeze:\n  weights: {WEIGHTS}  # paper Section 3.4\n",
    )
    tree.edit("recipes/digits.yaml", "  stem: small            # our choice: small images\n", "")
    tree.edit(
        "recipes/digits.yaml",
        "  width: 0.125           # our choice: speed\n",
        "  stem: imagenet # published\n",
    )


@pytest.fixture
def published(tree, monkeypatch, download, resnet18):
    """A table on a thousand classes whose recovery model is torchvision's ResNet-18."""
    take_published(tree)
    tree.edit("datasets/digits.yaml", "classes: 10\n", "classes: 1000\n")
    monkeypatch.setattr(Context, "class_names", lambda _: NAMES)
    download(resnet18)
    return tree


def test_published_weights_become_a_squeeze_run(published, resnet18):
    run = published.runs()["squeeze"]
    out = Path("model/model.safetensors")
    squeeze.run(published.context(run), out)
    described = json.loads(out.with_name("squeeze.json").read_text())
    assert (described["weights"], described["run"]) == (WEIGHTS, run.id)
    assert described["published_top1"] == 69.758
    assert described["classes"] == NAMES
    loaded = load_squeezed(out, run, open_device(published.experiments().settings.runtime))
    reference = torchvision.models.resnet18()
    reference.load_state_dict(resnet18)
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    torch.testing.assert_close(loaded.double()(images), reference.eval().double()(images))


def test_weights_trained_here_are_stored_and_tested_in_half_precision(tree):
    run, out = tree.runs()["squeeze"], Path("model/model.safetensors")
    context = tree.context(run)
    squeeze.run(context, out)
    stored, described = load_file(out), json.loads(out.with_name("squeeze.json").read_text())
    halved = {name for name, tensor in stored.items() if tensor.dtype == torch.half}
    assert halved == {name for name, tensor in stored.items() if tensor.ndim > 1} != set()
    device = context.open_device()
    loaded = load_squeezed(out, run, device)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float}
    assert context.validation(device).evaluate(loaded) == {
        key: described[key] for key in ("top1", "top5")
    }


def test_training_values_do_not_name_published_weights(published):
    before = published.runs()["squeeze"].id
    published.edit("recipes/digits.yaml", "lr: 0.1 ", "lr: 0.3 ")
    assert published.runs()["squeeze"].id == before


def test_weights_of_another_shape_leave_no_squeeze_run(published):
    published.edit("recipes/digits.yaml", "stem: imagenet # published", "stem: small # our choice")
    context = published.context(published.runs()["squeeze"])
    assert "does not fit resnet18 with 1000 classes" in refusal(
        squeeze.run, context, Path("model/model.safetensors")
    )
    assert not Path("model/model.safetensors").exists()


# By name


@pytest.mark.parametrize(
    ("weights", "model", "line"),
    [
        (
            "torchvision:ResNet18_Weights.NOPE",
            "resnet18",
            "torchvision has no weights 'ResNet18_Weights.NOPE'",
        ),
        ("torchvision:nope", "resnet18", "torchvision has no weights 'nope'"),
        (
            "torchvision:ResNet50_Weights.IMAGENET1K_V1",
            "resnet18",
            "is not of the network 'resnet18'",
        ),
        (WEIGHTS, "deit_tiny", "is not of the network 'deit_tiny_patch16_224'"),
        ("timm:nope", "deit_tiny", "timm:nope cannot be had (Invalid pretrained tag (nope)"),
        ("timm:nope", "no_such_model", "timm:nope cannot be had (Unknown model"),
        (
            "hub:something",
            "resnet18",
            "is neither torchvision:<Weights.NAME>, timm:<tag> nor package:<name>",
        ),
        (
            "torchvision:",
            "resnet18",
            "is neither torchvision:<Weights.NAME>, timm:<tag> nor package:<name>",
        ),
    ],
)
def test_unknown_weights_end_in_one_line(weights, model, line):
    message = refusal(state_of, weights, model, CLASSES)
    assert message.startswith("squeeze.weights: ")
    assert line in message
    message = refusal(start_from, nn.Linear(2, 2), weights, model)
    assert message.startswith("squeeze.init: ")
    assert line in message


@pytest.mark.parametrize(
    ("weights", "model"), [(WEIGHTS, "resnet18"), ("timm:fb_in1k", "deit_tiny")]
)
def test_without_internet_the_refusal_is_one_line(download, weights, model):
    download(URLError("Name or service not known"))
    message = refusal(state_of, weights, model, CLASSES)
    assert f"{weights} cannot be had" in message
    assert "internet" in message


def test_weights_of_another_number_of_classes_are_refused(download, resnet18):
    download(resnet18)
    assert "does not fit resnet18 with 10 classes (it has 1000)" in refusal(
        state_of, WEIGHTS, "resnet18", dict.fromkeys(map(str, range(10)), "")
    )


def test_densenets_old_names_are_turned_into_todays(download):
    """On disk `denselayer1.norm.1.weight` is what is `denselayer1.norm1.weight` today."""
    now = drawn(torchvision.models.densenet121())
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", n): t for n, t in now.items()
    }
    download(
        {name: tensor for name, tensor in old.items() if not name.endswith("num_batches_tracked")}
    )
    state, top1, _ = state_of(
        "torchvision:DenseNet121_Weights.IMAGENET1K_V1", "densenet121", CLASSES
    )
    assert top1 == 74.434
    assert set(old) - set(now)
    assert {name for name in now if not torch.equal(now[name], state[name])} == set()
    model = build("densenet121", 1000, 64, Architecture())
    model.load_state_dict(state)


@pytest.mark.parametrize(
    ("model", "weights", "stated"),
    [
        ("squeezenet", "torchvision:SqueezeNet1_0_Weights.IMAGENET1K_V1", 58.092),
        ("mobilenet_v2", "torchvision:MobileNet_V2_Weights.IMAGENET1K_V2", 72.154),
        ("deit_tiny", "timm:fb_in1k", None),
        (
            "resnet18",
            "timm:a1_in1k",
            None,
        ),  # timm's ResNets have the names of torchvision's, and of this package's
    ],
)
def test_weights_have_the_names_of_the_network_that_is_built(download, model, weights, stated):
    own = build(model, 1000, 224, Architecture())
    wanted = drawn(own)
    download(wanted)
    state, top1, _ = state_of(weights, model, CLASSES)
    assert top1 == stated
    load_state(own, dict(state))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in own.state_dict().items())


# From a Python package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package that ships weights under names of its own."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")

    def installed(name: str, *files: dict[str, Tensor]) -> str:
        folder = tmp_path / "site" / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        paths = [f"{name}/model-{index}.pth" for index in range(len(files))]
        (folder / "RECORD").write_text(
            "".join(f"{path},,\n" for path in [f"{name}/__init__.py", *paths])
        )
        for path, state in zip(paths, files, strict=True):
            (tmp_path / "site" / path).parent.mkdir(exist_ok=True)
            torch.save(state, tmp_path / "site" / path)
        return f"package:{name}"

    return installed


@pytest.fixture(scope="module")
def lite():
    return drawn(timm.create_model(LITE))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As another library names the tensors, and without the counts of batches."""
    stored = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    return {f"_blocks.{index}": tensor for index, tensor in enumerate(stored)}


def test_a_packages_tensors_are_taken_in_their_order(package, lite):
    state, stated, classes = state_of(
        package("weights-of-mine", renamed(lite)), "efficientnet_lite0", CLASSES
    )
    assert (stated, classes) == (None, NAMES)
    counts = {name for name in lite if name.endswith("num_batches_tracked")}
    assert {name for name in state if not torch.equal(state[name], lite[name])} <= counts


def test_a_package_that_is_of_no_use_ends_in_one_line(package, lite):
    message = refusal(state_of, "package:not-here", "efficientnet_lite0", CLASSES)
    assert message == "squeeze.weights: package not-here is not installed; uv pip install not-here"
    two = package("two-of-them", {"a": torch.zeros(1)}, {"a": torch.zeros(1)})
    assert "ships 2 files of weights" in refusal(state_of, two, "efficientnet_lite0", CLASSES)
    other = package("another-network", renamed(lite))
    assert "holds other tensors than tf_efficientnet_lite1 has" in refusal(
        state_of, other, "efficientnet_lite1", CLASSES
    )


@pytest.fixture
def three_classes(tree, package, lite):
    """A table of scores on three of ImageNet's classes, of which there are no images.

    The network sees the second.
    """
    bias = torch.where(torch.arange(1000) == 291, 1000.0, 0.0)
    weights = package("weights-of-mine", renamed(lite | {"classifier.bias": bias}))
    named = (
        "layout: no_images\nclasses: 3\nclass_names: [n01443537, n02129165, "
        "n07753592]\nresolution: 32\n"
    )
    tree.edit("datasets/digits.yaml", "layout: digits\nclasses: 10\nresolution: 8\n", named)
    tree.edit(
        "recipes/digits.yaml", "squeeze:\n", f"squeeze:\n  weights: {weights}  # our choice\n"
    )
    tree.edit("recipes/digits.yaml", "iterations: 6 ", "iterations: 2 ")
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 1")
    networks = {
        "recovery_models": ["efficientnet_lite0"],
        "validation_models": ["efficientnet_lite0"],
    }
    tree.experiment(
        "tiny",
        {"stage": "score", "methods": ["cda"], "ipc": [1], "metrics": ["top1_global"], **networks},
    )
    return tree


def test_some_of_imagenets_classes_are_distilled_and_scored_without_its_images(three_classes):
    """The model keeps its thousand outputs.

    An image is made for, and scored by, the one of its own class.
    """
    runs = three_classes.runs()
    for stage in ("squeeze", "recover", "score"):
        assert three_classes.cda(stage, "--run", runs[stage].id) == 0
    described = json.loads(
        Path(f"artifacts/squeeze/digits/{runs['squeeze'].id}/squeeze.json").read_text()
    )
    assert described["classes"] == NAMES
    assert [NAMES.index(name) for name in runs["recover"].data.class_names] == [
        1,
        291,
        954,
    ]
    part = Path(f"artifacts/recover/digits/{runs['recover'].id}/part-0")
    (block,) = json.loads((part / "ipc-000.json").read_text())["blocks"]
    assert block["trace"][0]["ce"] == pytest.approx(1000 * 2 / 3, rel=0.1)
    scored = json.loads(Path(f"results/runs/digits/{runs['score'].id}/seed-0.json").read_text())
    assert scored["top1_global"] == pytest.approx(100 / 3)


def test_a_class_that_imagenet_has_not_is_refused(three_classes):
    three_classes.edit("datasets/digits.yaml", "n07753592", "n99999999")
    context = three_classes.context(three_classes.runs()["squeeze"])
    assert "with 3 classes (it has 1000)" in refusal(
        squeeze.run, context, Path("model/model.safetensors")
    )


def test_without_images_nothing_is_trained(three_classes):
    three_classes.experiment("tiny")
    message = refusal(three_classes.runs)
    assert message.startswith(
        "config/experiments/tiny.yaml: data set digits has no images to test on"
    )


# The classes of the outputs


@pytest.mark.parametrize(
    "names",
    [
        sorted(map(str, range(1000))),
        [str(number) for number in range(1000)],
        [f"class {number}" for number in range(1000)],
        [*NAMES[:-1], "tench"],
        [name.upper() for name in NAMES],
        [f"{name} " for name in NAMES],
    ],
)
def test_as_many_classes_are_not_the_same_classes(download, resnet18, names):
    download(resnet18)
    message = refusal(state_of, WEIGHTS, "resnet18", dict.fromkeys(names, ""), True)
    assert (
        "are none of its classes; give each class folder its WordNet id, or the number of"
        in message
    )
    assert "class_map" in message


def test_a_map_moves_the_outputs_to_the_order_of_the_data_set(download, resnet18):
    download(resnet18)
    wanted = {"dog": NAMES[207], "cat": "281", NAMES[1]: ""}
    state, _, classes = state_of(WEIGHTS, "resnet18", wanted, cut=True)
    assert classes == ["dog", "cat", NAMES[1]]
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(state[name], resnet18[name][[207, 281, 1]])
    assert torch.equal(state["conv1.weight"], resnet18["conv1.weight"])
    reversed_names = dict.fromkeys(reversed(NAMES), "")
    state, _, classes = state_of(WEIGHTS, "resnet18", reversed_names, cut=True)
    assert classes == list(reversed(NAMES))
    assert torch.equal(state["fc.bias"], resnet18["fc.bias"].flip(0))


def test_two_classes_of_one_output_are_refused(download, resnet18):
    download(resnet18)
    message = refusal(state_of, WEIGHTS, "resnet18", {"a": "0", "b": NAMES[0]})
    assert "two share an output" in message


def test_the_number_of_outputs_tells_their_names():
    assert [len(set(output_names(count))) for count in (1000, 21_841, 7)] == [1000, 21_841, 1]


@pytest.fixture
def mapped(tree, download, resnet18):
    """Digits in folders, as ten of ImageNet's classes; the network sees the digit 3 everywhere."""
    tree.few_images()
    wnids = [NAMES[100 - digit] for digit in range(10)]
    lines = "".join(f"{digit}\t{wnid}\n" for digit, wnid in enumerate(wnids))
    tree.write("datasets/digits.classes.txt", f"# folder and WordNet id\n{lines}")
    tree.edit(
        "datasets/digits.yaml", "classes: 10\n", "classes: 10\nclass_map: digits.classes.txt\n"
    )
    take_published(tree)
    bias = torch.where(torch.arange(1000) == 97, 1000.0, 0.0)
    download(resnet18 | {"fc.bias": bias})
    return tree


def test_published_weights_are_tested_on_the_images_at_hand(mapped, capfd):
    run, out = mapped.runs()["squeeze"], Path("model/model.safetensors")
    squeeze.run(mapped.context(run), out)
    described = json.loads(out.with_name("squeeze.json").read_text())
    assert described["classes"] == [str(digit) for digit in range(10)]
    assert described["top1"] == pytest.approx(10)
    assert (described["tested_images"], described["published_top1"]) == (40, 69.758)
    assert load_file(out)["fc.bias"].argmax() == 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert "top-1 is 10.0 %, its publisher states 69.8 %; compare the order of the classes" in line
    assert "config/datasets/digits.yaml" in line


def test_without_validation_images_the_accuracy_is_the_publishers_alone(mapped, capfd):
    shutil.rmtree("data/digits/val")
    out = Path("model/model.safetensors")
    squeeze.run(mapped.context(mapped.runs()["squeeze"]), out)
    described = json.loads(out.with_name("squeeze.json").read_text())
    assert (described["top1"], described["published_top1"]) == (None, 69.758)
    assert "WARNING: the published weights are not tested: data/digits" in capfd.readouterr().err


def test_class_folders_without_a_map_are_refused_before_any_work(mapped):
    mapped.edit("datasets/digits.yaml", "class_map: digits.classes.txt\n", "")
    context = mapped.context(mapped.runs()["squeeze"])
    message = refusal(squeeze.run, context, Path("model/model.safetensors"))
    assert "with 10 classes (it has 1000): 0, 1, 2, ... are none of its classes" in message
    assert not Path("model").exists()


# To start from


@pytest.mark.parametrize("classes", [7, 1000])
def test_a_start_takes_all_but_the_classifier(download, resnet18, classes):
    download(resnet18)
    model = build("resnet18", classes, 224, Architecture())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(model, WEIGHTS, "resnet18")
    for name, tensor in model.state_dict().items():
        assert torch.equal(
            tensor, before[name] if name in ("fc.weight", "fc.bias") else resnet18[name]
        ), name


def test_a_start_that_does_not_fit_is_refused_and_changes_nothing(download, resnet18):
    download(resnet18)
    model = build("resnet18", 7, 32, Architecture(stem="small"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = refusal(start_from, model, WEIGHTS, "resnet18")
    assert "squeeze.init" in message
    assert "conv1.weight: 64×3×7×7 there, 64×3×3×3 here" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_start_for_another_resolution_is_refused(download):
    download(drawn(timm.create_model("deit_tiny_patch16_224")))
    model = build("deit_tiny", 7, 32, Architecture())
    message = refusal(start_from, model, "timm:fb_in1k", "deit_tiny")
    assert "pos_embed: 1×197×192 there, 1×5×192 here" in message


def test_a_start_without_a_tensor_is_refused(download, resnet18):
    download(resnet18)
    model = build("resnet18", 7, 32, Architecture())
    model.register_buffer("more", torch.zeros(2))
    assert "more: missing there, 2 here" in refusal(start_from, model, WEIGHTS, "resnet18")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_classifier_is_all_that_depends_on_the_classes(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        few, many = (build(name, classes, 224, Architecture()) for classes in (7, 9))
    shapes = [{n: t.shape for n, t in model.state_dict().items()} for model in (few, many)]
    differing = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert classifier(few) == differing
