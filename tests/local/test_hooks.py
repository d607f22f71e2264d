"""Hooks go with what they belong to, and never while torch goes through them."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.local.hooks import OwnedHook  # noqa: E402


class Doubling:
    def __init__(self, module: Any) -> None:
        OwnedHook(self, Doubling.double, module.register_forward_hook)

    def double(self, _module: Any, _inputs: Any, output: Any) -> Any:
        return 2 * output


def test_an_owner_may_go_while_torch_goes_through_the_hooks() -> None:
    module, ones = torch.nn.Identity(), torch.ones(1)
    module.register_forward_hook(lambda _module, _inputs, output: output + 1)
    owners = [Doubling(module), Doubling(module)]
    assert module(ones) == 8
    assert copy.deepcopy(module)(ones) == 2  # a copy is the module as it is
    going = iter(module._forward_hooks.items())
    next(going)
    owners.pop()
    assert len(list(going)) == 2
    assert module(ones) == 4
    assert len(module._forward_hooks) == 2
    owners.clear()
    assert module(ones) == 2
    assert len(module._forward_hooks) == 1
