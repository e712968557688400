"""The pool against brute force: every shift and flip written out with NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from dfkd_lite.errors import InputError
from dfkd_lite.image_pool import ImagePool, augment


def flat(values: list[int], shape: tuple[int, int, int] = (1, 2, 2)) -> Tensor:
    """Images of one grey each."""
    return torch.stack([torch.full(shape, v / 255) for v in values])


def greys(pool: ImagePool) -> list[int]:
    return pool.images()[:, 0, 0, 0].tolist()


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(count: int, shape: tuple[int, int, int], seed: int = 0) -> ImagePool:
    pool = ImagePool(count, shape)
    pool.add(torch.rand(count, *shape, generator=rng(seed)))
    return pool


# ---------------------------------------------------------------- a ring


@settings(max_examples=40)
@given(capacity=st.integers(1, 7), batches=st.lists(st.integers(1, 10), max_size=8))
def test_the_newest_images_are_kept_up_to_the_capacity(capacity: int, batches: list[int]) -> None:
    pool, seen = ImagePool(capacity, (1, 2, 2)), []
    for batch in batches:
        new = list(range(len(seen), len(seen) + batch))
        seen += new
        pool.add(flat(new))
        assert len(pool) == min(len(seen), capacity)
        assert sorted(greys(pool)) == seen[-capacity:]


def test_new_images_take_the_slots_of_the_oldest() -> None:
    pool = ImagePool(4, (1, 2, 2))
    pool.add(flat([1, 2, 3]))
    assert greys(pool) == [1, 2, 3]
    pool.add(flat([4, 5]))
    assert greys(pool) == [5, 2, 3, 4]
    pool.add(flat([6]))
    assert greys(pool) == [5, 6, 3, 4]


def test_what_is_added_later_does_not_change_with_its_source() -> None:
    pool, images = ImagePool(3, (1, 2, 2)), flat([1, 2])
    pool.add(images)
    images.zero_()
    assert greys(pool) == [1, 2]


@settings(max_examples=10)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_images_come_back_rounded_to_8_bits(
    channels: int, height: int, width: int, seed: int
) -> None:
    x = torch.rand(3, channels, height, width, generator=rng(seed))
    x.view(-1)[0], x.view(-1)[-1] = 0.0, 1.0
    pool = ImagePool(5, (channels, height, width))
    pool.add(x)
    kept = pool.images()
    assert kept.dtype == torch.uint8 and kept.shape == x.shape
    assert (kept.double() / 255 - x.double()).abs().max() <= 1 / 510 + 1e-7
    assert kept[0, 0, 0, 0] == 0 and kept[-1, -1, -1, -1] == 255


@pytest.mark.parametrize("batches", [(1, 4, 25, 3), (6, 1), (3, 3, 3, 3), (10, 11)])
def test_memory_is_a_byte_a_value_and_bounded(batches: tuple[int, ...]) -> None:
    shape, capacity = (3, 8, 8), 10
    bound = capacity * 3 * 8 * 8
    pool = ImagePool(capacity, shape)

    def held() -> int:
        tensors = (v for v in vars(pool).values() if isinstance(v, Tensor))
        return sum(t.untyped_storage().nbytes() for t in tensors)

    for batch in batches:
        pool.add(torch.rand(batch, *shape))
        assert len(pool) * 3 * 8 * 8 <= held() <= bound
        state = [v for v in pool.state_dict().values() if isinstance(v, Tensor)]
        assert sum(t.untyped_storage().nbytes() for t in state) <= bound
        assert all(t.dtype == torch.uint8 for t in state if t.numel() > 1)


# ---------------------------------------------------------------- drawing


def test_plain_samples_are_the_images_uniformly_with_replacement() -> None:
    pool = filled(6, (3, 4, 5))
    batch = pool.sample(3000, rng(0))
    assert batch.dtype == torch.float32 and batch.shape == (3000, 3, 4, 5)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    originals = [i.tobytes() for i in pool.images().numpy()]
    back = (batch.numpy() * 255).round()
    np.testing.assert_allclose(batch.numpy(), back / 255, atol=1e-7)
    counts = [0] * 6
    for image in back.astype(np.uint8):
        counts[originals.index(np.ascontiguousarray(image).tobytes())] += 1
    assert chisquare(counts).pvalue > 1e-4


def variants(image: np.ndarray, shift: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of the mirror-padded image (C, H, W), and with ``flip`` their mirror images."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
    found = {}
    for i in range(2 * shift + 1):
        for j in range(2 * shift + 1):
            crop = padded[:, i : i + height, j : j + width]
            found[np.ascontiguousarray(crop).tobytes()] = (i, j, False)
            if flip:
                found[np.ascontiguousarray(crop[:, :, ::-1]).tobytes()] = (i, j, True)
    return found


@settings(max_examples=25)
@given(
    channels=st.integers(1, 3),
    height=st.integers(3, 8),
    width=st.integers(3, 8),
    shift=st.integers(0, 2),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_sample_is_one_of_the_shifts_and_flips(
    channels: int, height: int, width: int, shift: int, flip: bool, seed: int
) -> None:
    pool = filled(3, (channels, height, width), seed)
    batch = pool.sample(12, rng(seed), shift, flip)
    assert batch.shape == (12, channels, height, width) and batch.dtype == torch.float32
    allowed: set[bytes] = set()
    for image in pool.images().numpy():
        allowed |= set(variants(image, shift, flip))
    for image in (batch * 255).round().to(torch.uint8).numpy():
        assert np.ascontiguousarray(image).tobytes() in allowed


def test_shifts_and_flips_are_uniform_and_independent() -> None:
    image = torch.randperm(49, generator=rng(1)).view(1, 1, 7, 7) / 255
    pool = ImagePool(1, (1, 7, 7))
    pool.add(image)
    known = variants(pool.images().numpy()[0], 1, True)
    assert len(known) == 18  # all different
    batch = (pool.sample(5400, rng(2), shift=1, flip=True) * 255).round().to(torch.uint8)
    counts = dict.fromkeys(known.values(), 0)
    for sample in batch.numpy():
        counts[known[np.ascontiguousarray(sample).tobytes()]] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-4


def test_the_largest_shift_that_a_mirror_allows() -> None:
    pool = filled(1, (1, 4, 6))
    known = variants(pool.images().numpy()[0], 3, False)
    for image in (pool.sample(200, rng(0), shift=3) * 255).round().to(torch.uint8).numpy():
        assert np.ascontiguousarray(image).tobytes() in known
    with pytest.raises(InputError, match="shift"):
        pool.sample(1, rng(0), shift=4)
    with pytest.raises(InputError, match="shift"):
        pool.sample(1, rng(0), shift=-1)


def test_augment_keeps_type_values_and_channels_together() -> None:
    pixels = torch.randint(0, 256, (4, 5, 6, 2), generator=rng(0), dtype=torch.uint8)
    index = torch.tensor([2, 0, 2])
    plain = augment(pixels, index)
    assert plain.dtype == torch.uint8
    np.testing.assert_array_equal(plain.numpy(), pixels.numpy()[[2, 0, 2]].transpose(0, 3, 1, 2))
    moved = augment(pixels.double(), index, rng(1), 2, True)
    assert moved.dtype == torch.float64 and moved.shape == (3, 2, 5, 6)
    for got, i in zip(moved.numpy(), index.tolist(), strict=True):
        known = variants(pixels[i].double().numpy().transpose(2, 0, 1), 2, True)
        assert np.ascontiguousarray(got).tobytes() in known


def test_the_generator_of_random_numbers_decides_all() -> None:
    pool = filled(9, (2, 6, 6))
    state = torch.get_rng_state()
    first = pool.sample(20, rng(4), 2, True)
    assert torch.equal(first, pool.sample(20, rng(4), 2, True))
    assert not torch.equal(first, pool.sample(20, rng(5), 2, True))
    assert torch.equal(torch.get_rng_state(), state)  # the global one is not touched
    torch.manual_seed(7)
    free = pool.sample(20, shift=1, flip=True)
    torch.manual_seed(7)
    assert torch.equal(free, pool.sample(20, shift=1, flip=True))


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("added", [0, 2, 4, 7])
def test_a_restored_pool_goes_on_as_the_first(added: int) -> None:
    pool, other = ImagePool(4, (1, 2, 2)), ImagePool(4, (1, 2, 2))
    if added:
        pool.add(flat(list(range(added))))
    other.add(flat([200, 201, 202, 203, 204]))  # forgotten
    other.load_state_dict(copy.deepcopy(pool.state_dict()))
    assert len(other) == len(pool)
    for step in range(3):
        for p in (pool, other):
            p.add(flat([50 + 2 * step, 51 + 2 * step]))
        assert torch.equal(pool.images(), other.images())
        assert torch.equal(pool.sample(9, rng(step)), other.sample(9, rng(step)))


@pytest.mark.parametrize(
    ("capacity", "shape"),
    [(5, (1, 3, 3)), (3, (1, 3, 3)), (4, (3, 3, 3)), (4, (1, 4, 4))],
)
def test_the_state_of_another_pool_is_refused(capacity: int, shape: tuple[int, int, int]) -> None:
    pool = filled(4, (1, 3, 3))
    pool.add(torch.rand(3, 1, 3, 3))  # once round: the ring's turning point shows
    with pytest.raises(InputError):
        ImagePool(capacity, shape).load_state_dict(pool.state_dict())


def test_a_restored_pool_is_one_of_its_own() -> None:
    pool, other = ImagePool(4, (1, 2, 2)), ImagePool(4, (1, 2, 2))
    pool.add(flat([1, 2, 3, 4]))
    other.load_state_dict(pool.state_dict())
    pool.add(flat([5]))
    assert greys(pool) == [5, 2, 3, 4] and greys(other) == [1, 2, 3, 4]


# ---------------------------------------------------------------- bad input


def test_bad_input_is_refused() -> None:
    for capacity in (0, -3):
        with pytest.raises(InputError, match="capacity"):
            ImagePool(capacity, (1, 2, 2))
    pool = ImagePool(3, (1, 4, 4))
    with pytest.raises(InputError, match="empty"):
        pool.sample(2)
    for shape in [(2, 3, 4, 4), (2, 1, 4, 5), (1, 4, 4)]:
        with pytest.raises(InputError):
            pool.add(torch.zeros(shape))
    assert len(pool) == 0


def test_values_outside_0_to_1_do_not_wrap_around() -> None:
    """Bytes wrap (256 is 0): white must not turn black. Refused or cut, nothing else."""
    pool = ImagePool(3, (1, 1, 2))
    try:
        pool.add(torch.tensor([[[[1.01, -0.01]]]]))
    except InputError:
        return
    assert pool.images().flatten().tolist() == [255, 0]


def test_newest_are_the_last_added_across_the_ring():
    pool = ImagePool(4, (1, 2, 2))
    values = torch.arange(6).view(6, 1, 1, 1).expand(6, 1, 2, 2) * 10 / 255
    pool.add(values[:3])
    assert (pool.newest(2)[:, 0, 0, 0] * 255).round().tolist() == [10, 20]
    assert len(pool.newest(9)) == 3
    pool.add(values[3:])  # slots now hold 4, 5, 2, 3
    assert (pool.newest(3)[:, 0, 0, 0] * 255).round().tolist() == [30, 40, 50]
