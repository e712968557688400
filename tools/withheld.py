"""Makes the project's data, which no student sees, and the teacher, which all of them get.

The images are scikit-learn's digits on crops of its two photographs, in colour, as in MNIST-M
(Ganin & Lempitsky 2015): each pixel is the absolute difference of the two. Which class is which
digit is drawn at random. With another seed you have a project of your own:

    .venv/bin/python tools/withheld.py --seed 7

draws data and classes anew and trains a new teacher (a minute or two); `make course` does the rest.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from dfkd_lite.data import load
from dfkd_lite.measure.evaluate import accuracy, predict
from dfkd_lite.storage.files import write_json
from dfkd_lite.storage.weights import save_network
from dfkd_lite.teach import TeachConfig, teach

FOLDER = Path(__file__).parents[1] / "book" / "assignments"
CARD, TEACHER = FOLDER / "teacher.json", FOLDER / "teacher.safetensors"
SIZE = 16
TEST = 500  # digits that only the test set holds
DRAWS = 4  # images of each training digit, on different pieces of a photograph
PHOTOGRAPHS = [Image.fromarray(image) for image in load_sample_images().images]


def withheld(seed: int) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file that `dfkd_lite.load` reads: training and test set."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    lot = rng.permutation(10)
    order = rng.permutation(len(digits.images))
    test, train = order[:TEST], np.repeat(order[TEST:], DRAWS)
    arrays = {}
    for split, chosen in (("train", train), ("test", test)):
        images = [on_photograph(digits.images[i], rng) for i in chosen]
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = lot[digits.target[chosen]].astype(np.int64)
    return arrays


def on_photograph(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put a digit (8, 8) of 0 to 16 on a piece of a photograph: (SIZE, SIZE, 3), uint8."""
    photograph = PHOTOGRAPHS[rng.integers(2)]
    side = int(rng.integers(SIZE, 8 * SIZE))
    left = int(rng.integers(photograph.width - side))
    top = int(rng.integers(photograph.height - side))
    box = (left, top, left + side, top + side)
    piece = photograph.resize((SIZE, SIZE), Image.Resampling.BOX, box)
    grey = Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize((SIZE, SIZE))
    ground, ink = np.asarray(piece, int), np.asarray(grey, int)[..., None]
    return np.abs(ground - ink).astype(np.uint8)


def write_archive(path: Path, seed: int) -> None:
    """Write the test set alone, for the grader."""
    found = withheld(seed)
    with path.open("wb") as file:
        np.savez_compressed(file, images=found["test_images"], labels=found["test_labels"])


def withheld_seed() -> int:
    """Read the seed with which the teacher's data were drawn."""
    return json.loads(CARD.read_text(encoding="utf-8"))["seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "withheld.npz")
        np.savez(archive, **withheld(seed))
        data = load(archive)
    config = TeachConfig(epochs=20, batch_size=64, shift=1, flip=False, seed=seed)
    network, spec, _ = teach("wrn-16-1", data, config)
    right = accuracy(*predict(network, data.test, spec))
    save_network(TEACHER, network, spec, {})
    write_json(CARD, {"seed": seed, "test_accuracy": round(right, 4)})
    print(f"{TEACHER.name}: {right:.1%} on {len(data.test)} test images")


if __name__ == "__main__":
    main()
