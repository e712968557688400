"""The attack's area is the chance that a member has the smaller loss, and its interval covers."""

import pytest
import torch

from dfkd_lite.errors import InputError
from dfkd_lite.measure.privacy import losses, membership_auc


def test_area_is_the_share_of_pairs_in_the_right_order():
    torch.manual_seed(0)
    members, others = torch.rand(40) ** 2, torch.rand(30)
    pairs = members[:, None] < others
    found = membership_auc(members, others)
    assert found.auc == pytest.approx(pairs.double().mean().item())
    assert found.low < found.auc < found.high


def test_ends_of_the_scale():
    assert membership_auc(torch.zeros(5), torch.ones(5)).auc == 1.0
    assert membership_auc(torch.ones(5), torch.zeros(5)).auc == 0.0
    assert membership_auc(torch.ones(5), torch.ones(5)).auc == 0.5


def test_interval_is_as_wide_as_theory_says():
    # no difference between the groups: var(AUC) = (n + m + 1) / (12 n m)
    torch.manual_seed(1)
    n = m = 200
    found = membership_auc(torch.randn(n), torch.randn(m), resamples=1000)
    sigma = ((n + m + 1) / (12 * n * m)) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * sigma, rel=0.15)


def test_losses_are_cross_entropies():
    logits, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    expected = torch.tensor([2.0, 1 + torch.e**-2], dtype=torch.float64).log()
    torch.testing.assert_close(losses(logits, labels), expected, atol=1e-6, rtol=1e-6)


def test_empty_or_broken_groups_are_refused():
    with pytest.raises(InputError, match="finite losses"):
        membership_auc(torch.empty(0), torch.ones(2))
    with pytest.raises(InputError, match="finite losses"):
        membership_auc(torch.tensor([float("nan")]), torch.ones(2))
