"""Checks assignment 2: spatial attention from the formula (Eqs. 4 to 6)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lite.generator import AttentionConfig, SpatialAttention

from .checking import Question, Wrong, drawn, expect, require


@Question
def q1(spatial_softmax: Callable[[Tensor], Tensor]) -> None:
    """Check a softmax over all places of a map."""
    compare_softmax(spatial_softmax, drawn(2, 1, 3, 5))


def compare_softmax(answer: Callable[[Tensor], Tensor], scores: Tensor) -> None:
    """Compare the weights of scores (B, 1, H, W), and name a softmax over another axis."""
    expect(
        answer(scores.clone()),
        scores.flatten(1).softmax(1).view_as(scores),
        f"the weights of scores of the shape {tuple(scores.shape)}",
        {
            "a softmax over each row": scores.softmax(3),
            "a softmax over each column": scores.softmax(2),
            "a softmax over the channels, of which there is one": scores.softmax(1),
            "a softmax over the batch": scores.softmax(0),
            "a softmax over the batch and all places": scores.flatten().softmax(0).view_as(scores),
            "the softmax of a map that was flattened, and not given its shape back": scores.flatten(
                1
            ).softmax(1),
        },
    )


@Question
def q2(pool_and_unpool: Callable[[Tensor], Tensor]) -> None:
    """Check max-pooling and unpooling, which puts every maximum back in its place."""
    compare_unpooling(pool_and_unpool, drawn(1, 2, 4, 6))
    compare_unpooling(pool_and_unpool, drawn(1, 2, 5, 7))


def compare_unpooling(answer: Callable[[Tensor], Tensor], features: Tensor) -> None:
    """Compare unpooled features (B, C, H, W): the maxima of 2 x 2 blocks, all else zero."""
    height, width = features.shape[-2:]
    pooled, places = F.max_pool2d(features, 2, return_indices=True)
    try:
        got = answer(features.clone())
    except (RuntimeError, ValueError) as error:
        raise Wrong(
            f"features of the shape {tuple(features.shape)}: {type(error).__name__}: {error}. "
            "Has the unpooling been told the size to come back to (`output_size`)?"
        ) from None
    expect(
        got,
        F.max_unpool2d(pooled, places, [2, 2], output_size=[height, width]),
        f"features of the shape {tuple(features.shape)}, pooled and unpooled",
        {
            "each maximum in all four places": F.interpolate(pooled, (height, width)),
            "the pooled map itself": pooled,
        },
    )


def spatial_softmax(scores: Tensor) -> Tensor:
    """Answer question 1 for later questions: the softmax of scores (B, 1, H, W) over all places."""
    return scores.flatten(2).softmax(2).view_as(scores)


@torch.no_grad()
def relative_change(module: nn.Module, features: Tensor) -> float:
    """Answer question 4 for the next one: ‖module(F) − F‖ / ‖F‖ of features F."""
    return ((module(features) - features).norm() / features.norm()).item()


class Uneven(nn.Module):
    """Computes Eq. 6 with weights that are far from even, and other ones in each image.

    A new ``SpatialAttention`` weighs all places nearly alike, and nearly every wrong formula then
    gives the right number.
    """

    def __init__(self, features: Tensor, lam: float) -> None:
        super().__init__()
        self.lam = lam
        peaked = torch.arange(1.0, len(features) + 1).view(-1, 1, 1, 1)
        scores = peaked * drawn(len(features), 1, *features.shape[-2:], seed=9)
        self.weights = spatial_softmax(scores)

    def attend(self, features: Tensor) -> Tensor:
        return self.weights

    def forward(self, features: Tensor) -> Tensor:
        return self.lam * (self.attend(features) * features) + features


def _spread(features: Tensor) -> Tensor:
    """Scale images differently, so that a mean of ratios is no ratio of norms."""
    return features * torch.linspace(0.2, 3.0, len(features)).view(-1, 1, 1, 1)


def twin(module: Any, channels: int) -> SpatialAttention:
    """Make the package's module with a student's weights; put both into evaluation mode.

    Raises:
        Wrong: the student's module has lost or renamed a layer.
    """
    own = SpatialAttention(channels, AttentionConfig(lam=module.lam))
    try:
        own.load_state_dict(module.state_dict())
    except RuntimeError:
        raise Wrong("`Attention`: leave the layers in `__init__` as they are.") from None
    module.eval()
    return own.eval()


@Question
def q3(attention_class: Callable[..., Any]) -> None:
    """Check Eqs. 4 to 6 as a module."""
    compare_attention(attention_class, channels=8, lam=1.0, features=drawn(2, 8, 6, 6))


def compare_attention(
    attention_class: Callable[..., Any], channels: int, lam: float, features: Tensor
) -> None:
    """Compare a student's module with the package's of the same weights, on (B, C, H, W)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = attention_class(channels, lam)
    own = twin(module, channels)
    with torch.no_grad():
        weights = own.attend(features)
        weighted = weights * features
        expect(
            module.attend(features),
            weights,
            "`attend`",
            {
                "the scores, before the softmax": _scores(own, features),
                "a softmax over each row": _scores(own, features).softmax(3),
                "no ReLU": without_relu(own).attend(features),
                "a softmax over the channels, of which there is one": torch.ones_like(weights),
            },
        )
        expect(
            module(features),
            lam * weighted + features,
            "`forward`",
            {
                "λ on both terms": lam * (weighted + features),
                "no features added": lam * weighted,
                "the weights added, not multiplied": lam * weights + features,
                "no λ": weighted + features,
            },
        )


def without_relu(module: SpatialAttention) -> SpatialAttention:
    """Copy a module, with ReLUs that let everything through."""
    plain = copy.deepcopy(module)
    for step in (plain.encode1, plain.encode2, plain.decode1, plain.decode2):
        step[2] = nn.Identity()
    return plain


def _scores(module: SpatialAttention, features: Tensor) -> Tensor:
    """Return A_s of Eq. 5, before the softmax."""
    softmax, module.softmax = module.softmax, nn.Identity()  # type: ignore[assignment]
    scores = module.attend(features)
    module.softmax = softmax
    return scores


def check_gradient(attention_class: Callable[..., Any], features: Tensor) -> None:
    """Check that all weights get a gradient, and that the features' agrees with differences."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = attention_class(features.shape[1], 30.0).train().double()  # λ: the term counts
    r, along = (drawn(*features.shape, seed=seed).double() for seed in (1, 2))

    def value(x: Tensor) -> Tensor:
        return (module(x) * r).sum()

    x, h = features.double().requires_grad_(), 1e-6
    value(x).backward()
    require(x.grad is not None, "no gradient reaches the features.")
    assert x.grad is not None
    with torch.no_grad():
        slope = (value(x + h * along) - value(x - h * along)) / (2 * h)
    # sizes are not compared: before a batch-norm or a softmax a bias's gradient is rounding alone
    for name, parameter in module.named_parameters():
        reached = parameter.grad is not None
        require(reached, f"no gradient reaches `{name}`: is something detached?")
    what = "the gradient for the features, against differences (is something detached?)"
    expect((x.grad * along).sum(), slope, what, rtol=1e-3)


@Question
def q4(relative_change: Callable[[nn.Module, Tensor], float]) -> None:
    """Check the size of the term that Eq. 6 adds, relative to the features."""
    compare_change(relative_change, drawn(4, 8, 8, 8), lam=0.3)


def compare_change(
    answer: Callable[[nn.Module, Tensor], float], features: Tensor, lam: float
) -> None:
    """Compare the relative change of features (B, C, H, W), by weights that are far from even."""
    features = _spread(features)
    module = Uneven(features, lam)
    height, width = features.shape[-2:]
    with torch.no_grad():
        change = module(features) - features
        ratio = relative_change(module, features)
        elementwise = (change / features).abs().mean()
        got = answer(module, features)
    expect(
        got,
        ratio,
        "the relative change",
        {
            "the squares of the norms": ratio**2,
            "λ over the number of places, as if all weights were alike": lam / (height * width),
            "a mean of the ratios of single numbers": elementwise,
            "the norm of the changed features instead of the change": module(features).norm()
            / features.norm(),
            "the change itself, not divided by the features": change.norm(),
        },
        rtol=1e-3,
    )


@Question
def q5(needed_lam: Callable[[nn.Module, Tensor, float], float]) -> None:
    """Check which λ a wanted change needs."""
    compare_needed(needed_lam, drawn(4, 8, 8, 8), share=0.05)


def compare_needed(
    answer: Callable[[nn.Module, Tensor, float], float], features: Tensor, share: float
) -> None:
    """Compare with the λ that changes the features by the share that was asked for."""
    features = _spread(features)
    module = Uneven(features, lam=0.5)
    with torch.no_grad():
        per_lam = relative_change(module, features) / module.lam
        got = answer(module, features, share)
    expect(
        got,
        share / per_lam,
        f"the λ for a change of {share:.0%}",
        {
            "a rule of three upside down": per_lam / share,
            "the factor by which λ has to grow, not λ": share / per_lam / module.lam,
        },
        rtol=1e-3,
    )
