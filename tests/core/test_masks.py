"""Tests of the random masks: their shapes, and that each mask depends on its key alone."""

import jax
import numpy as np
import pytest
import scipy.ndimage
from jax import numpy as jnp

from gdistill.core import masks

KEYS = jax.random.split(jax.random.key(3), 400)


DRAW = jax.jit(lambda keys: masks.random(keys, 12, 8))


@pytest.fixture(scope='module')
def drawn():
  return np.asarray(DRAW(KEYS))[..., 0]


def test_masks_are_0_and_1_and_something_is_always_to_be_painted(drawn):
  assert drawn.shape == (400, 12, 8) and set(np.unique(drawn)) == {0.0, 1.0}
  assert drawn.any((1, 2)).all()


def test_one_in_ten_is_everything_and_no_pixel_is_favoured_much(drawn):
  whole = drawn.all((1, 2)).mean()
  # 0.1 are all 1 by choice; in some others the rectangles cover everything.
  assert 0.06 < whole < 0.25
  assert 0.3 < drawn.mean() < 0.8
  often = drawn.mean(0)
  # The masks favour no side of the picture.
  np.testing.assert_allclose(often, often[::-1, ::-1], atol=0.12)


def test_one_in_four_is_a_complement_one_in_ten_everything_the_rest_up_to_three_rectangles(
  monkeypatch,
):
  keys = jax.random.split(jax.random.key(4), 4000)
  drawn = np.asarray(jax.jit(lambda keys: masks.random(keys, 12, 8))(keys))[..., 0] > 0
  monkeypatch.setattr(masks, 'ALL', 0.0)
  monkeypatch.setattr(masks, 'INVERTED', 0.0)
  plain = np.asarray(jax.jit(lambda keys: masks.random(keys, 12, 8))(keys))[..., 0] > 0
  part = ~plain.all((1, 2))  # a mask that is 1 everywhere is never inverted
  count, three = part.sum(), 3.0  # the tolerance is three standard deviations
  for kind, wanted in ((~plain, 0.25), (np.ones_like(plain), 0.1), (plain, 0.65)):
    share = (drawn == kind).all((1, 2))[part].mean()
    assert abs(share - wanted) < three * np.sqrt(wanted * (1 - wanted) / count), wanted
  pieces = [scipy.ndimage.label(mask)[1] for mask in plain]
  assert set(pieces) == {1, 2, 3}


def test_a_rectangle_has_at_least_a_quarter_of_each_side(monkeypatch):
  monkeypatch.setattr(masks, 'INVERTED', 0.0)
  found = []
  for mask in np.asarray(jax.jit(lambda keys: masks.random(keys, 12, 8))(KEYS))[..., 0]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if box.all():  # the mask is one rectangle
      found.append(box.shape)
  heights, widths = np.array(found).T
  assert len(found) > 80 and heights.min() == 3 and widths.min() == 2
  assert heights.max() == 12 and widths.max() == 8


def test_complements_of_rectangles_are_among_them(drawn):
  edges = [m[[0, 0, -1, -1], [0, -1, 0, -1]].all() and not m.all() for m in drawn]
  assert np.mean(edges) > 0.05  # an inverted mask: 1 in all four corners, 0 somewhere inside


def test_a_mask_is_a_function_of_its_key_alone(drawn):
  np.testing.assert_array_equal(DRAW(KEYS[::-1])[::-1, ..., 0], drawn)


def test_what_covers_a_pixel_covers_its_block():
  mask = np.zeros((1, 4, 6, 1), np.float32)
  mask[0, 3, 1] = mask[0, 0, 4] = 1
  found = np.asarray(masks.covering(mask, 2))[0, ..., 0]
  np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 0]])
  np.testing.assert_array_equal(
    np.asarray(masks.smaller(mask, 2))[0, ..., 0], [[0, 0, 1], [0, 0, 0]]
  )


def test_the_condition_is_the_mask_and_then_what_it_leaves():
  left = jnp.arange(1.0, 13.0).reshape(1, 2, 2, 3)
  mask = jnp.array([[1.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
  found = masks.condition(mask, left)
  assert found.shape == (1, 2, 2, 4)
  np.testing.assert_array_equal(found[0, 0, 0], [1, 1, 2, 3])
  np.testing.assert_array_equal(found[0, 1, 0], [0, 7, 8, 9])


@pytest.mark.parametrize('factor', [1, 2, 4, 8])
def test_a_latent_mask_takes_the_pixels_of_nearest_interpolation(factor):
  mask = np.random.default_rng(1).integers(0, 2, (2, 16, 24, 1)).astype(np.float32)
  height, width = 16 // factor, 24 // factor
  rows = [i * 16 // height for i in range(height)]  # torch's nearest index: floor(i H / h)
  columns = [j * 24 // width for j in range(width)]
  expected = mask[:, rows][:, :, columns]
  np.testing.assert_array_equal(masks.smaller(jnp.asarray(mask), factor), expected)
