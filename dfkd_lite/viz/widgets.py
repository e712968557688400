"""Sliders for a live kernel: a pure function, a thin widget around it (ipywidgets 7.7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ipywidgets
from torch import Tensor

from .pictures import change_note, lambda_view, png

if TYPE_CHECKING:
    from ..generator import AttentionGenerator

#: λ of Table 6, and larger ones: with a spatial softmax those of the table change next to nothing.
LAMBDAS = (0.0, 0.01, 0.03, 0.05, 0.07, 0.09, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def picture_slider(
    view: Callable[[float], tuple[bytes, str]],
    values: Sequence[float],
    name: str,
    start: float,
) -> ipywidgets.VBox:
    """A slider over ``values`` above the picture (PNG bytes) and sentence that ``view`` gives."""
    slider = ipywidgets.SelectionSlider(
        options=[(f"{value:g}", value) for value in values],
        value=start,
        description=name,
        continuous_update=False,
    )
    picture, note = ipywidgets.Image(format="png"), ipywidgets.Label()

    def show(change: dict[str, float]) -> None:
        picture.value, note.value = view(change["new"])

    show({"new": start})
    slider.observe(show, "value")
    return ipywidgets.VBox([slider, note, picture])


def lambda_explorer(
    generator: AttentionGenerator, z: Tensor, lams: Sequence[float] = LAMBDAS, start: float = 0.03
) -> ipywidgets.VBox:
    """Move λ of Eq. 6: image, attention map, and difference from λ = 0 (see ``viz.lambda_view``).

    ``z`` is (B, z_dim), a handful; ``start`` must be one of ``lams``.
    """

    def view(lam: float) -> tuple[bytes, str]:
        sheet, largest = lambda_view(generator, z, lam)
        return png(sheet), change_note(largest)

    return picture_slider(view, lams, "λ", start)


def exercise(box: ipywidgets.VBox) -> list[bytes]:
    """Move the slider of a :func:`picture_slider` over its whole range; errors are raised.

    For runs without a reader: returns the picture at every position, and puts the slider back.
    """
    slider, _, picture = box.children
    start, pictures = slider.value, []
    for _, value in slider.options:
        slider.value = value
        pictures.append(picture.value)
    slider.value = start
    return pictures
