"""Names the layers of a network that methods look at, and reads its features there.

A feature map is the output of one *call* of a module. A place names it: ``stage1``, or ``relu#3``
for the third call in a pass where the module runs more than once. It is read as the next layer
reads it, so after an in-place operation on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import choose

Network = TypeVar("Network", bound=Callable[..., Any])  # a module, or a function of a batch
#: Where wrappers keep the network: torch.compile; DataParallel, its kin, and averaged models.
_WRAPPED = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "AveragedModel": "module",
            "DistributedDataParallel": "module", "FullyShardedDataParallel": "module"}  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """Places of a network's stages, and its classifier, as ``model.named_modules()`` spells them.

    ``stages`` go from early to late; ``name#2`` is the second call of a module that runs more than
    once. ``classifier`` is the final ``nn.Linear`` or 1x1 ``nn.Conv2d``; empty if there is none.
    ``averaged`` is true if the logits are the classifier's output for the plain means over
    positions of the last stage: then Eq. 10 holds.
    """

    stages: tuple[str, ...]
    classifier: str = ""
    averaged: bool = False


def unwrapped(model: nn.Module) -> nn.Module:
    """Take a network out of torch.compile, DataParallel and their kin, which only add prefixes."""
    while (inner := _WRAPPED.get(type(model).__name__)) is not None:
        model = getattr(model, inner)
    return model


@contextmanager
def evaluating(model: Network) -> Iterator[Network]:
    """Put ``model`` into evaluation mode for the block, then restore the mode of each module.

    A plain function has no mode and stays as it is.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def at(model: nn.Module, place: str, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``act`` with each output of a place (see :class:`Layers`); its result replaces it.

    Raises:
        InputError: the model has no module of that name; the message offers the nearest name.
    """
    model = unwrapped(model)
    modules = dict(model.named_modules())
    name, _, call = place.partition("#")
    module = modules[choose("module", name, modules)]
    calls: Counter[str] = Counter()

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
        calls[name] += 1
        return act(output) if not call or calls[name] == int(call) else None

    with ExitStack() as hooks:
        if call:  # counted within a pass
            hooks.enter_context(model.register_forward_pre_hook(lambda *_: calls.clear()))
        hooks.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def capture(
    model: nn.Module, names: Sequence[str], graded: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named places: ``with capture(model, names) as features``.

    ``features[name]`` is the newest output there (B, C, H, W), still part of the graph. With
    ``graded``, gradients start at an output that has none, as in a frozen network. The hooks are
    removed when the block ends, also after an error.

    Raises:
        InputError: the model has no module of that name; the message offers the nearest name.
    """
    features: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor | None:
        started = graded and torch.is_grad_enabled() and not output.requires_grad
        if started:  # a copy, because in-place operations may not change a leaf
            output = output.detach().requires_grad_().clone()
        features[name] = output
        return output if started else None

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(at(model, name, partial(keep, name)))
        yield features


def batch_norms(model: nn.Module) -> dict[str, Any]:
    """Return by name the batch-norm layers of maps with running statistics, in order of definition.

    They are known by their statistics: nn.BatchNorm2d, nn.SyncBatchNorm, frozen ones of any maker.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d))
    }


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in all parameters of ``model``, without batch-norm's running statistics."""
    return sum(parameter.numel() for parameter in model.parameters())
