"""Makes sliders for a live kernel: thin widgets around pure functions (ipywidgets 7.7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ipywidgets
from torch import Tensor

from .pictures import change_note, lambda_view, png

if TYPE_CHECKING:
    from dfkd_lite.generator import AttentionGenerator

#: 0, the λ of Table 6, and larger ones: with a spatial softmax the table's change almost nothing.
LAMBDAS = (0.0, 0.01, 0.03, 0.05, 0.07, 0.09, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def picture_slider(
    view: Callable[[float], tuple[bytes, str]],
    values: Sequence[float],
    name: str,
    start: float,
) -> ipywidgets.VBox:
    """Make a slider over ``values`` with the picture (PNG bytes) and sentence of ``view`` below."""
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
    """Make a slider over λ of Eq. 6 that shows ``viz.lambda_view`` of the generator.

    ``z`` is (B, z_dim), with B small, as B columns are drawn; ``start`` must be one of ``lams``.
    """

    def view(lam: float) -> tuple[bytes, str]:
        sheet, largest = lambda_view(generator, z, lam)
        return png(sheet), change_note(largest)

    return picture_slider(view, lams, "λ", start)


def exercise(box: ipywidgets.VBox) -> list[bytes]:
    """Move the slider of a :func:`picture_slider` over its whole range, and back to its start.

    For runs without a reader. Returns the picture of each position; errors of ``view`` are raised.
    """
    slider, _, picture = box.children
    start, pictures = slider.value, []
    for _, value in slider.options:
        slider.value = value
        pictures.append(picture.value)
    slider.value = start
    return pictures
