"""Precision, recall, density and coverage: on a line by hand, and against scikit-learn's search."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from dfkd_lite.data import load
from dfkd_lite.door import find_layers
from dfkd_lite.errors import InputError
from dfkd_lite.measure.fidelity import BATCH, fidelity, image_report
from dfkd_lite.networks import build


def line(*values):
    return torch.tensor(values)[:, None]


def test_on_a_line_by_hand():
    # real 0, 1, 3, 7: the balls of one neighbour reach 1, 1, 2, 4: [-1, 1], [0, 2], [1, 5], [3, 11]
    # made 1.5, 4, 12: they reach 2.5, 2.5, 8: [-1, 4], [1.5, 6.5], [4, 20]
    report = fidelity(line(0.0, 1.0, 3.0, 7.0), line(1.5, 4.0, 12.0), neighbours=1)
    assert report == {
        "precision": pytest.approx(2 / 3),  # 12 is in none
        "recall": pytest.approx(1.0),  # 0, 1, 3 in the first, 7 in the last
        "density": pytest.approx((2 + 2 + 0) / 3),
        "coverage": pytest.approx(3 / 4),  # the ball of 0 holds none
    }


def test_two_neighbours_by_hand():
    # real reach 3, 2, 3, 6: [-3, 3], [-1, 3], [0, 6], [1, 13]; made 1.5 and 20, 21
    report = fidelity(line(0.0, 1.0, 3.0, 7.0), line(1.5, 20.0, 21.0), neighbours=2)
    assert report["density"] == pytest.approx(4 / 2 / 3)
    assert report["precision"] == pytest.approx(1 / 3)
    assert report["coverage"] == 1


def test_against_scikit_learn():
    rng = torch.Generator().manual_seed(0)
    real, made = (torch.randn(60, 5, generator=rng) * s for s in (1.0, 0.7))
    reach = {}
    for name, points in (("real", real), ("made", made)):
        search = NearestNeighbors(n_neighbors=4).fit(points)
        reach[name] = search.kneighbors(points)[0][:, 3]
    inside_real = [[float((m - r).norm()) <= reach["real"][i] for m in made]
                   for i, r in enumerate(real)]  # fmt: skip
    inside_made = [[float((m - r).norm()) <= reach["made"][j] for j, m in enumerate(made)]
                   for r in real]  # fmt: skip
    report = fidelity(real, made, neighbours=3)
    by_made = list(zip(*inside_real, strict=True))
    assert report["precision"] == pytest.approx(sum(map(any, by_made)) / 60)
    assert report["density"] == pytest.approx(sum(map(sum, by_made)) / 60 / 3)
    assert report["coverage"] == pytest.approx(sum(map(any, inside_real)) / 60)
    assert report["recall"] == pytest.approx(sum(map(any, inside_made)) / 60)
    assert 0 < report["recall"] < report["precision"] <= 1  # narrower: alike, but with less variety


@pytest.mark.parametrize(
    ("real", "made", "words"),
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), "must be"),
        (torch.zeros(9, 2), torch.zeros(5, 2), "too few for 5 neighbours"),
        (torch.zeros(9), torch.zeros(9), "must be"),
    ],
)
def test_what_does_not_fit_is_refused(real, made, words):
    with pytest.raises(InputError, match=words):
        fidelity(real, made)


def test_images_are_compared_by_what_the_teacher_sees():
    data = load("digits")
    torch.manual_seed(0)
    teacher = build("wrn-10-1", data.classes, data.channels, data.size).eval()
    layers = find_layers(teacher, data.spec("wrn-10-1").image_shape)
    real = torch.cat([images for images, _ in data.test.batches(100)])

    def report(made, seed=0):
        return image_report(teacher, layers, data.train, made, lambda x: (x - 0.3) / 0.3, seed)

    alike = report(real)
    noise = report(torch.rand(200, *real.shape[1:], generator=torch.Generator().manual_seed(1)))
    one = report(real[:1].expand(100, -1, -1, -1))
    assert alike["precision"] > 0.9 and alike["recall"] > 0.9
    assert noise["precision"] < 0.1 and noise["coverage"] < 0.1
    assert one["recall"] < 0.1 and one["coverage"] < 0.3  # one image over and over
    assert report(real) == alike and report(real, seed=1) != alike
    assert report(real[: BATCH - 1]) == {}
