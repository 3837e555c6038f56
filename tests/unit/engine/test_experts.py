"""Experts' weights on disk: every epoch its own, and nothing damaged is followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cda.config.recipe import Architecture
from cda.engine.experts import Experts, expert_name, flat_weights, write_expert
from cda.errors import ArtifactError
from cda.files import file_digest, write_json
from cda.method.networks import build


def written(folder: Path, index: int = 0, part: int = 0, run: str = "r") -> Path:
    path = folder / f"part-{part}" / expert_name(index)
    write_expert(path, [torch.full((5,), float(10 * index + epoch)) for epoch in range(4)], run)
    write_json(path.with_suffix(".json"), {"run": run, "sha256": file_digest(path)})
    return path


def test_weights_of_a_moment_stay_when_training_goes_on():
    model = build("convnet1", 3, 8, Architecture(stem="small", width=0.0625))
    before = flat_weights(model)
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert torch.equal(before, expected)
    assert not torch.equal(flat_weights(model), before)


def test_a_weight_has_one_place_in_any_memory_layout():
    model = build("convnet2", 3, 8, Architecture(stem="small", width=0.0625))
    plain = flat_weights(model)
    model.to(memory_format=torch.channels_last)
    assert torch.equal(flat_weights(model), plain)


def test_weights_come_back_by_expert_and_epoch_from_any_part(tmp_path):
    for index, part in ((0, 0), (1, 0), (2, 1)):
        written(tmp_path, index, part)
    experts = Experts(tmp_path, "r", 3)
    experts.verify(3, 5)
    assert experts.weights(2, 3).tolist() == [23.0] * 5
    assert experts.weights(0, 1).tolist() == [1.0] * 5


def test_the_digest_of_all_changes_with_any(tmp_path):
    written(tmp_path, 0)
    written(tmp_path, 1)
    digests = [Experts(tmp_path, "r", count).verify(3, 5) for count in (1, 2)]
    path = tmp_path / "part-0" / expert_name(1)
    write_expert(path, [torch.zeros(5)] * 4, "r")
    write_json(path.with_suffix(".json"), {"run": "r", "sha256": file_digest(path)})
    assert len({*digests, Experts(tmp_path, "r", 2).verify(3, 5)}) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"1 of 1 experts are missing \(expert-000"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "differs from the digest"),
        (lambda path: path.with_suffix(".json").write_text("{"), "is damaged"),
        (lambda path: written(path.parents[1], run="other"), "is an expert of run other, not of r"),
    ],
)
def test_what_is_missing_damaged_or_foreign_is_one_line(damage, message, tmp_path):
    damage(written(tmp_path))
    with pytest.raises(ArtifactError, match=message):
        Experts(tmp_path, "r", 1).verify(3, 5)


def test_weights_of_another_network_or_of_fewer_epochs_are_refused(tmp_path):
    written(tmp_path)
    for epochs, size in ((4, 5), (3, 6)):
        with pytest.raises(ArtifactError, match=r"has weights \[4, 5\], not"):
            Experts(tmp_path, "r", 1).verify(epochs, size)


def test_a_file_that_is_no_expert_is_one_line(tmp_path):
    path = written(tmp_path)
    path.write_bytes(b"nothing")
    write_json(path.with_suffix(".json"), {"run": "r", "sha256": file_digest(path)})
    with pytest.raises(ArtifactError, match="damaged expert"):
        Experts(tmp_path, "r", 1).verify(3, 5)
