"""Writes a run as TensorBoard event files: its history, its newest images, activation maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd_lite.cam import explain
from dfkd_lite.distill import Distillation
from dfkd_lite.door import find_layers
from dfkd_lite.errors import InputError

from .viz.figures import cam_overlay
from .viz.pictures import tile

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

IMAGES = 8  # how many of the newest are shown


class TensorBoard:
    """Writes event files: call it after each episode with the run and its row of the history.

    Close it at the end. Everything in the row goes to a curve of its name. Whenever the row has an
    ``accuracy``, the newest images and the activation maps of teacher and student at their last
    stage are added.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "--log tensorboard needs the package tensorboard: pip install tensorboard."
            ) from None
        self._open = partial(SummaryWriter, str(folder))
        self._writer: SummaryWriter | None = None

    def __call__(self, run: Distillation, row: dict[str, float]) -> None:
        episode = int(row["episode"])
        if self._writer is None:
            # drops what a run that was cut off had written from this episode on
            self._writer = self._open(purge_step=episode)
        for name, value in row.items():
            if name != "episode":
                self._writer.add_scalar(name, value, episode)
        if "accuracy" in row:
            _add_pictures(self._writer, run, episode)

    def close(self) -> None:
        """Write out what is held back, and close the files."""
        if self._writer is not None:
            self._writer.close()


def _add_pictures(writer: SummaryWriter, run: Distillation, episode: int) -> None:
    images = run.pool.newest(IMAGES)
    writer.add_image("images", tile(images.cpu(), IMAGES), episode, dataformats="HWC")
    maps = {}
    for name, network in (("teacher", run.teacher), ("student", run.evaluated_student)):
        layers = find_layers(network, run.spec.image_shape)
        maps[name] = explain(network, run.normalise(images), layers)[1][-1]
    writer.add_figure("maps", cam_overlay(images, maps), episode)
