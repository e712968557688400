"""Figures hold the numbers they are given, and the λ view shows what Eq. 6 does."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

from dfkd_lab import viz
from dfkd_lab.viz import widgets
from dfkd_lite.errors import InputError
from dfkd_lite.generator import AttentionConfig, AttentionGenerator, GeneratorConfig


@pytest.fixture
def generator():
    torch.manual_seed(3)
    config = GeneratorConfig(z_dim=8, width=8, attention=AttentionConfig(rescale=True))
    generator = AttentionGenerator(16, 1, config)
    for _ in range(3):
        generator(torch.randn(32, 8))  # running statistics for eval mode
    return generator.eval()


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_tile_places_every_image():
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 2, 3).to(torch.uint8) * 10
    sheet = viz.tile(images, columns=3, gap=1)
    assert sheet.shape == (5, 11, 3) and sheet.dtype == np.uint8
    for number in range(5):
        top, left = number // 3 * 3, number % 3 * 4
        assert (sheet[top : top + 2, left : left + 3] == 10 * number).all()
    assert (sheet[2] == 255).all() and (sheet[3:, 8:] == 255).all()  # gap, empty place


def test_floats_become_bytes_and_wrong_shapes_are_refused():
    pixels = viz.to_pixels(torch.tensor([0.0, 0.5, 1.0, 2.0]).view(1, 1, 2, 2))
    assert pixels[0, :, :, 0].tolist() == [[0, 128], [255, 255]]
    with pytest.raises(InputError, match=r"\(B, 1, H, W\)"):
        viz.to_pixels(torch.zeros(2, 2, 4, 4))


def test_data_uri_is_the_picture_enlarged_without_blur():
    sheet = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    address = viz.data_uri(sheet, zoom=3)
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert (decoded == sheet.repeat(3, 0).repeat(3, 1)).all()


def test_image_slider_has_a_frame_for_each_position():
    sheets = {str(i): np.full((4, 6, 3), 40 * i, np.uint8) for i in range(3)}
    figure = viz.image_slider(sheets, "step", {"1": "the middle"})
    assert [frame.name for frame in figure.frames] == ["0", "1", "2"]
    assert [frame.data[0].source for frame in figure.frames] == [
        viz.data_uri(sheet) for sheet in sheets.values()
    ]
    # all of the enlarged picture lies within the axes: 6 x 4 pixels, each 4 wide
    first, axis = figure.data[0], figure.layout.xaxis
    left = first.x0 - first.dx / 2
    assert (left, left + 6 * 4 * first.dx) == tuple(axis.range) == (-0.5, 5.5)
    top = first.y0 - first.dy / 2
    assert (top + 4 * 4 * first.dy, top) == tuple(figure.layout.yaxis.range) == (3.5, -0.5)
    (slider,) = figure.layout.sliders
    assert [list(step.args[0]) for step in slider.steps] == [["0"], ["1"], ["2"]]
    assert figure.frames[1].layout.title.text == "the middle"
    with pytest.raises(InputError, match="at least one"):
        viz.image_slider({}, "step")


def test_training_curves_pass_over_rows_without_the_value():
    history = [{"episode": 1, "kd": 3.0}, {"episode": 2, "kd": 2.0, "accuracy": 0.5}]
    figure = viz.training_curves({"student": history}, "accuracy", "accuracy", "%")
    assert list(figure.data[0].x) == [2] and list(figure.data[0].y) == [0.5]
    assert figure.data[0].line.color == viz.COLOURS["student"]
    assert figure.layout.yaxis.title.text == "accuracy [%]"


def test_figure_slider_shows_each_figure_at_its_position():
    figures = {
        name: go.Figure(go.Bar(x=["a", "b"], y=values)).update_layout(
            title=f"at {name}", yaxis_range=[0, 9], height=300
        )
        for name, values in {"1": [1, 2], "20": [3, 4]}.items()
    }
    figure = viz.figure_slider(figures, "τ")
    assert list(figure.data[0].y) == [1, 2] and figure.layout.title.text == "at 1"
    assert [list(frame.data[0].y) for frame in figure.frames] == [[1, 2], [3, 4]]
    assert [frame.layout.title.text for frame in figure.frames] == ["at 1", "at 20"]
    assert tuple(figure.layout.yaxis.range) == (0, 9) and figure.layout.height > 300
    assert figure.layout.sliders[0].currentvalue.prefix == "τ = "
    later = viz.figure_slider(figures, "τ", start="20")
    assert list(later.data[0].y) == [3, 4] and later.layout.title.text == "at 20"
    assert later.layout.sliders[0].active == 1 and figure.layout.sliders[0].active == 0
    with pytest.raises(InputError, match="position of the slider"):
        viz.figure_slider(figures, "τ", start="2")
    with pytest.raises(InputError, match="same traces"):
        viz.figure_slider(figures | {"3": go.Figure()}, "τ")
    with pytest.raises(InputError, match="at least one"):
        viz.figure_slider({}, "τ")


def test_seed_dots_draws_every_run_and_the_mean_in_words():
    figure = viz.seed_dots({"a": [0.9, 0.94, 0.98], "b": [0.5]}, "accuracy [%]")
    (axis,) = figure.axes
    drawn = [sorted(dots.get_offsets()[:, 0]) for dots in axis.collections[::2]]
    assert drawn == [pytest.approx([90, 94, 98]), pytest.approx([50])]
    means = [bar.get_segments()[0][0][0] for bar in axis.collections[1::2]]
    assert means == pytest.approx([94, 50])
    assert [text.get_text() for text in axis.texts] == ["94.0 ± 4.0 (n = 3)", "50.0 (n = 1)"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_figure_png_is_a_picture_and_closes_the_figure():
    figure, _ = plt.subplots(figsize=(2, 1))
    picture = Image.open(io.BytesIO(viz.figure_png(figure)))
    assert picture.format == "PNG" and picture.width > picture.height
    assert not plt.fignum_exists(figure.number)


def test_cam_overlay_draws_each_map_to_its_own_scale():
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 5.0, -0.1
    figure = viz.cam_overlay(torch.rand(2, 1, 8, 8), {"teacher": maps}, ["a", "b"])
    drawn = [axis.images[1].get_array() for axis in figure.axes[2:]]
    assert drawn[0].max() == pytest.approx(1) and drawn[1].min() == pytest.approx(-1)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["a", "b"]


def test_image_grid_leaves_unused_places_empty():
    figure = viz.image_grid(torch.rand(3, 3, 4, 4), ["x", "y", "z"], columns=2)
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 0]


def test_lambda_view_is_grey_at_zero_and_grows(generator):
    z = torch.randn(4, 8)
    sheet, change = viz.lambda_view(generator, z, 0.0)
    assert change == 0
    assert sheet.shape == (3 * 17 - 1, 4 * 17 - 1, 3)
    assert (sheet[34:, :16] == 128).all()  # no difference: the middle grey everywhere
    with torch.no_grad():
        generator.lam = 0.0
        plain = generator(z)
        generator.lam = 2.0
        expected = (generator(z) - plain).abs().max()
    _, at_two = viz.lambda_view(generator, z, 2.0)
    assert at_two == pytest.approx(float(expected)) and at_two > 0
    assert viz.lambda_view(generator, z, 0.03)[1] < at_two
    assert generator.lam == 2.0  # its own, untouched
    assert not generator.training


def test_lambda_view_needs_attention():
    plain = AttentionGenerator(16, 1, GeneratorConfig(z_dim=8, width=8, attention=None))
    with pytest.raises(InputError, match="no attention modules"):
        viz.lambda_view(plain, torch.randn(1, 8), 0.03)


def test_lambda_slider_says_how_much_changes(generator):
    z = torch.randn(2, 8)
    figure = viz.lambda_slider(generator, z, [0.0, 5.0], start=5.0)
    assert figure.data[0].source == figure.frames[1].data[0].source
    assert figure.layout.sliders[0].active == 1
    assert [frame.name for frame in figure.frames] == ["0", "5"]
    _, change = viz.lambda_view(generator, z, 5.0)
    assert figure.frames[1].layout.title.text == viz.change_note(change)
    assert f"{255 * change:.2g} grey levels" in viz.change_note(change)
    assert figure.frames[0].data[0].source != figure.frames[1].data[0].source


def test_explorer_shows_what_the_view_says_at_every_position(generator):
    z = torch.randn(2, 8)
    lams = (0.0, 0.03, 1.0, 10.0)
    box = widgets.lambda_explorer(generator, z, lams)
    slider, note, picture = box.children
    assert slider.value == 0.03
    pictures = widgets.exercise(box)
    expected = [viz.png(viz.lambda_view(generator, z, lam)[0]) for lam in lams]
    assert pictures == expected and len(set(pictures)) == len(lams)
    slider.value = 10.0
    assert picture.value == expected[-1]
    assert note.value == viz.change_note(viz.lambda_view(generator, z, 10.0)[1])


def test_an_error_behind_a_slider_is_raised_not_swallowed():
    def view(value):
        if value == 2:
            raise ZeroDivisionError
        return b"", ""

    box = widgets.picture_slider(view, [1, 2], "x", start=1)
    with pytest.raises(ZeroDivisionError):
        widgets.exercise(box)
