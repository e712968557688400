"""Draws the chapters' figures: still ones, and ones with a slider for a page or a notebook."""

from typing import TYPE_CHECKING, Any

from .pictures import change_note, data_uri, lambda_view, png, tile, to_pixels

if TYPE_CHECKING:
    from .figures import (
        COLOURS,
        cam_overlay,
        figure_png,
        figure_slider,
        image_grid,
        image_slider,
        lambda_slider,
        seed_dots,
        training_curves,
    )

__all__ = [
    "COLOURS",
    "cam_overlay",
    "change_note",
    "data_uri",
    "figure_png",
    "figure_slider",
    "image_grid",
    "image_slider",
    "lambda_slider",
    "lambda_view",
    "png",
    "seed_dots",
    "tile",
    "to_pixels",
    "training_curves",
]


def __getattr__(name: str) -> Any:
    """Import ``figures`` when a name of it is first used: matplotlib and plotly take a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import figures

    return getattr(figures, name)
