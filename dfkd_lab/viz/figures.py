"""Draws image grids, curves, maps over images, and sliders, from tensors and plain data.

matplotlib draws still figures, plotly those that a reader may move; neither needs a network.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from torch import Tensor

from dfkd_lite.cam import upsample
from dfkd_lite.errors import InputError, choose

from ..records.statistics import spread
from .pictures import change_note, data_uri, lambda_view, to_pixels

if TYPE_CHECKING:
    from dfkd_lite.generator import AttentionGenerator

#: One colour for each role in the whole book: from Okabe & Ito's colour-safe palette, and greys.
COLOURS = {
    "teacher": "#0072B2",
    "student": "#D55E00",
    "generator": "#009E73",
    "real": "#56B4E9",
    "synthetic": "#CC79A7",
    "noise": "#999999",
    "untrained": "#666666",
}


def image_grid(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Draw images (B, C, H, W; see `to_pixels`) in rows of ``columns``, each with its title."""
    pixels = to_pixels(images)
    rows = -(-len(pixels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns, 1.15 * rows), squeeze=False)
    for number, axis in enumerate(axes.flat):
        axis.axis("off")
        if number < len(pixels):
            axis.imshow(pixels[number], interpolation="nearest")
            if titles is not None:
                axis.set_title(titles[number], fontsize=8)
    figure.tight_layout(pad=0.3)
    return figure


def cam_overlay(
    images: Tensor, rows: Mapping[str, Tensor], titles: Sequence[str] | None = None
) -> Figure:
    """Draw images (B, C, H, W), and below them, for each of ``rows``, maps (B, h, w) over them.

    A map is divided by its own largest absolute value: red speaks for the class, blue against.
    """
    pixels = to_pixels(images)
    count, height, width = pixels.shape[:3]
    figure, axes = plt.subplots(
        1 + len(rows), count, figsize=(1.1 * count, 1.15 * (1 + len(rows))), squeeze=False
    )
    for number, axis in enumerate(axes[0]):
        axis.imshow(pixels[number], interpolation="nearest")
        if titles is not None:
            axis.set_title(titles[number], fontsize=8)
    for line, (name, maps) in zip(axes[1:], rows.items(), strict=True):
        large = upsample(maps.detach().cpu().float(), (height, width)).numpy()
        for number, axis in enumerate(line):
            scale = max(float(np.abs(large[number]).max()), 1e-12)
            axis.imshow(pixels[number], interpolation="nearest")
            axis.imshow(large[number] / scale, cmap="coolwarm", vmin=-1, vmax=1, alpha=0.6)
        line[0].set_ylabel(name, fontsize=8, color=COLOURS.get(name, "black"))
    axes[0][0].set_ylabel("image", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.3)
    return figure


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], value: str, label: str, unit: str = ""
) -> go.Figure:
    """Draw ``value`` of each history (rows with ``episode``) against the episode; rows without it
    are left out. ``label`` names the y axis, with ``unit`` in brackets."""
    figure = go.Figure()
    for name, history in histories.items():
        rows = [row for row in history if value in row]
        figure.add_scatter(
            x=[row["episode"] for row in rows],
            y=[row[value] for row in rows],
            name=name,
            mode="lines+markers" if len(rows) < 40 else "lines",
            line={"color": COLOURS.get(name)},
        )
    figure.update_layout(
        xaxis_title="episode", yaxis_title=f"{label} [{unit}]" if unit else label, **_LAYOUT
    )
    return figure


def seed_dots(groups: Mapping[str, Sequence[float]], label: str, scale: float = 100) -> Figure:
    """Draw a row for each group: a dot for each run, a bar at the mean, mean ± std as text.

    Values are multiplied by ``scale`` (100: shares in %); ``label`` names the axis with its unit.
    If all groups list the same seeds in the same order, a seed has one height in every row.
    """
    figure, axis = plt.subplots(figsize=(6.2, 0.9 + 0.42 * len(groups)))
    for row, values in enumerate(groups.values()):
        points = scale * np.asarray(values, dtype=float)
        offsets = np.linspace(-0.18, 0.18, len(points)) if len(points) > 1 else [0.0]
        axis.scatter(points, row + np.asarray(offsets), s=18, color=COLOURS["student"], zorder=3)
        axis.vlines(points.mean(), row - 0.32, row + 0.32, color=COLOURS["teacher"], linewidth=2)
        words = f"{spread(points.tolist())} (n = {len(points)})"
        axis.annotate(
            words, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axis.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axis.set(xlabel=label, ylim=(len(groups) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    return figure


def image_slider(
    sheets: Mapping[str, np.ndarray],
    name: str,
    notes: Mapping[str, str] | None = None,
    start: str | None = None,
) -> go.Figure:
    """Draw a slider with a picture (H, W, 3) uint8 for each position; it needs no kernel.

    ``sheets`` maps the label of a position to its picture, all of one size; ``name`` says what the
    slider changes; ``notes`` gives a title for each position; ``start`` is the label to begin at
    (None: the first). No picture, or an unknown ``start``, raises InputError.
    """
    labels = list(sheets)
    if not labels:
        raise InputError("A slider needs at least one picture.")
    height, width = sheets[labels[0]].shape[:2]
    notes = notes or {}
    frames = {
        label: ([_picture(sheet)], {"title": {"text": notes.get(label, "")}})
        for label, sheet in sheets.items()
    }
    figure = _with_slider(frames, name, start)
    figure.update_layout(
        xaxis={"visible": False, "range": [-0.5, width - 0.5]},
        yaxis={"visible": False, "range": [height - 0.5, -0.5], "scaleanchor": "x"},
        height=int(np.clip(640 * height / width, 160, 520)) + 170,
    )
    return figure


def figure_slider(
    figures: Mapping[str, go.Figure], name: str, start: str | None = None
) -> go.Figure:
    """Draw a slider with a figure for each position; it needs no kernel.

    ``figures`` maps the label of a position to its figure; all must have the same traces in the
    same order (InputError if their numbers differ). Axes keep the ranges and titles of the first
    figure, the title changes. The slider begins at the label ``start`` (None: the first).
    """
    if not figures:
        raise InputError("A slider needs at least one figure.")
    if len({len(figure.data) for figure in figures.values()}) > 1:
        raise InputError("The figures of a slider must have the same traces.")
    frames = {
        label: (list(figure.data), {"title": {"text": figure.layout.title.text or ""}})
        for label, figure in figures.items()
    }
    result = _with_slider(frames, name, start)
    first = next(iter(figures.values()))
    title = result.layout.title.text
    result.update_layout(first.layout).update_layout(title_text=title)
    result.update_layout(height=(first.layout.height or 380) + 90)  # room for the slider
    return result


def _with_slider(
    frames: Mapping[str, tuple[list, dict]], name: str, start: str | None
) -> go.Figure:
    """Make a figure of ``frames`` (label -> traces, layout) and a slider ``name`` over them."""
    start = next(iter(frames)) if start is None else choose("position of the slider", start, frames)
    how = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    steps = [{"label": label, "method": "animate", "args": [[label], how]} for label in frames]
    data, layout = frames[start]
    figure = go.Figure(
        data=data,
        frames=[go.Frame(name=label, data=d, layout=la) for label, (d, la) in frames.items()],
    )
    figure.update_layout(**_LAYOUT)
    figure.update_layout(
        layout,
        sliders=[
            {
                "steps": steps,
                "active": list(frames).index(start),
                "currentvalue": {"prefix": f"{name} = "},
                "pad": {"t": 10 if data[0].type == "image" else 40},
            }
        ],
    )
    return figure


def _picture(sheet: np.ndarray, zoom: int = 4) -> go.Image:
    """Make a plotly image, enlarged by ``zoom``, whose first pixel is centred at (0, 0)."""
    step = 1 / zoom
    return go.Image(
        source=data_uri(sheet, zoom), x0=step / 2 - 0.5, y0=step / 2 - 0.5, dx=step, dy=step
    )


def figure_png(figure: Figure) -> bytes:
    """Return a matplotlib figure as PNG bytes, and close it: for a widget that draws it again."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def lambda_slider(
    generator: AttentionGenerator, z: Tensor, lams: Sequence[float], start: float = 0.03
) -> go.Figure:
    """Draw a plotly slider over :func:`lambda_view` of each λ of ``lams``; it needs no kernel.

    It begins at ``start``, one of ``lams``; 0.03 is the λ of Table 1.
    """
    sheets, notes = {}, {}
    for lam in lams:
        label = f"{lam:g}"
        sheets[label], largest = lambda_view(generator, z, lam)
        notes[label] = change_note(largest)
    return image_slider(sheets, "λ", notes, f"{start:g}")


_LAYOUT = {
    "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
    "height": 380,
    "template": "plotly_white",
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
}
