"""Optimisers without torch's wrappers make torch's own steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cda.engine.optimizers import make_optimizer, restore_optimizer, set_lr, unwrapped

KINDS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.Adam, {"betas": (0.5, 0.9)}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
]


def trained(kind: Any, options: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """Parameters after five steps, saved and restored after the third, and the final state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = kind(model.parameters(), lr=0.1, fused=True, **options)
    for step in range(5):
        if step == 3:
            saved = optimizer.state_dict()
            optimizer = kind(model.parameters(), lr=0.1, fused=True, **options)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], optimizer.state_dict()


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=["Adam", "AdamW", "SGD"])
def test_steps_and_states_are_bit_for_bit_those_of_torch(kind, options):
    own, own_state = trained(unwrapped(kind), options)
    plain, plain_state = trained(kind, options)
    assert all(torch.equal(a, b) for a, b in zip(own, plain, strict=True))
    assert own_state["param_groups"] == plain_state["param_groups"]
    for index, values in plain_state["state"].items():
        assert own_state["state"][index].keys() == values.keys()
        assert all(torch.equal(own_state["state"][index][name], values[name]) for name in values)


def test_an_optimiser_stays_one_of_its_kind():
    assert issubclass(unwrapped(torch.optim.AdamW), torch.optim.AdamW)
    assert unwrapped(torch.optim.SGD) is unwrapped(torch.optim.SGD)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_restored_optimiser_goes_on_with_its_own_options(kind):
    """A checkpoint from a GPU has its learning rate as a tensor there."""
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    networks = [nn.Linear(3, 2) for _ in range(2)]
    one, other = (
        make_optimizer(kind, list(net.parameters()), 0.1, torch.device("cpu"), **options)
        for net in networks
    )
    inputs = torch.linspace(-1, 1, 12).view(4, 3)

    def step(net: nn.Module, optimizer: Any, lr: float) -> None:
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        net(inputs).square().sum().backward()
        optimizer.step()

    step(networks[0], one, 0.2)
    state = copy.deepcopy(one.state_dict())
    for group in state["param_groups"]:
        group |= {"lr": torch.tensor(7.0), "weight_decay": 3.0}
    networks[1].load_state_dict(networks[0].state_dict())
    restore_optimizer(other, state)
    assert [group["lr"] for group in other.param_groups] == [0.1]
    for net, optimizer in zip(networks, (one, other), strict=True):
        step(net, optimizer, 0.3)
    for mine, restored in zip(*(net.parameters() for net in networks), strict=True):
        assert torch.equal(mine, restored)
