"""Looks at an answer and says what is wrong with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Numbers by name that a test adds to the grader's tables, beside the points.
measured: dict[str, float] = {}


class Wrong(AssertionError):
    """Raised where an answer is not what it should be; the message tells the student why."""


class Question:
    """Checks one question in a student's notebook: it prints the result and raises no error.

    The grader calls :meth:`test`, which raises :class:`Wrong`.
    """

    def __init__(self, test: Callable[..., None]) -> None:
        self.test = test
        functools.update_wrapper(self, test)

    def __call__(self, *answers: Any) -> None:
        name = self.test.__name__
        if any(map(_untouched, answers)):
            print(f"○ {name}: nothing to check yet.")
            return
        try:
            self.test(*answers)
        except Wrong as wrong:
            print(f"✗ {name}: {wrong}")
        except Exception as error:  # an error of the student's own code
            print(f"✗ {name}: your code stopped with {type(error).__name__}: {error}")
        else:
            print(f"✓ {name}: right.")


def _untouched(answer: Any) -> bool:
    """Return whether an answer is still what the hand-out has in its place."""
    return answer is None or answer is ... or (isinstance(answer, dict) and not answer)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal numbers (float32) of a shape, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expect(
    got: Any,
    wanted: Tensor | float,
    what: str,
    mistakes: Mapping[str, Tensor | float] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> None:
    """Compare an answer with the value that is wanted, by ``torch.allclose``.

    Args:
        got: the answer; a number will do where a scalar is wanted.
        wanted: the value that the answer should have.
        what: the name of the answer in the message.
        mistakes: the values that common mistakes give, by a description of each mistake.

    Raises:
        Wrong: no number, another shape, not finite, or another value; names a known mistake.
    """
    if got is None:
        raise Wrong(f"{what}: nothing came back. Is there a `return`?")
    if not isinstance(got, Tensor | float | int):
        raise Wrong(f"{what}: a tensor was expected, not {type(got).__name__}.")
    value = torch.as_tensor(got).detach().double().cpu()
    target = torch.as_tensor(wanted).detach().double().cpu()
    known = {
        name: torch.as_tensor(m).detach().double().cpu() for name, m in (mistakes or {}).items()
    }
    for mistake, given in known.items():
        if _close(value, given, rtol, atol) and not _close(given, target, rtol, atol):
            raise Wrong(f"{what}: this is what you get with {mistake}.")
    if value.shape != target.shape:
        shapes = f"{tuple(target.shape)}, not {tuple(value.shape)}"
        raise Wrong(f"{what}: the shape should be {shapes}.")
    if not value.isfinite().all():
        raise Wrong(f"{what}: some values are not finite.")
    if not _close(value, target, rtol, atol):
        worst = (value - target).abs().max().item()
        if value.numel() == 1:
            raise Wrong(f"{what}: {target.item():.5g} was expected, not {value.item():.5g}.")
        raise Wrong(f"{what}: the values differ from what was expected, by up to {worst:.3g}.")


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def require(true: bool, message: str) -> None:
    """Refuse an answer with a message unless ``true``.

    Raises:
        Wrong: ``true`` is false.
    """
    if not true:
        raise Wrong(message)
