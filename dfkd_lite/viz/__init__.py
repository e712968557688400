"""Figures for the chapters: what stands still, what moves on a page, what moves in a notebook."""

from .figures import (
    COLOURS,
    cam_overlay,
    change_note,
    data_uri,
    figure_png,
    figure_slider,
    image_grid,
    image_slider,
    lambda_slider,
    lambda_view,
    png,
    seed_dots,
    tile,
    to_pixels,
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
