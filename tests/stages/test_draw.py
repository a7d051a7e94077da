"""Tests of draws from encoded pictures: posteriors and flips, which depend on the example's id."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.stages import draw

B, SHAPE = 64, (2, 3, 4)
LATENTS = np.random.default_rng(0).normal(size=(B, 2, 2, *SHAPE)).astype(np.float32)
KEY = jax.random.key(7)


def batch(latents=LATENTS, ids=None):
  ids = np.arange(len(latents)) if ids is None else np.asarray(ids)
  return {'latents': jnp.asarray(latents, jnp.bfloat16), 'id': jnp.asarray(ids, jnp.int32)}


latents_of = jax.jit(draw.latents, static_argnames='flip')


def noise_of(found, latents, side):
  """Returns (x - mean) / deviation of one flip; mean and deviation are stored in bfloat16."""
  mean, std = (np.asarray(latents[:, side, part], np.float32) for part in (0, 1))
  return (np.asarray(found) - mean) / std


def test_a_draw_is_the_mean_and_so_many_deviations():
  # x is linear in mean and deviation, so the same noise can be recovered after changing both.
  stored = batch()
  found = latents_of(stored, KEY, flip=False)
  eps = noise_of(found, stored['latents'], 0)
  assert found.dtype == jnp.float32 and found.shape == (B, *SHAPE)
  assert abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1
  other = LATENTS.copy()
  other[:, :, 0] += 4.0
  other[:, :, 1] *= -2.0
  moved = batch(other)
  again = latents_of(moved, KEY, flip=False)
  np.testing.assert_allclose(noise_of(again, moved['latents'], 0), eps, atol=2e-2, rtol=1e-2)
  still = np.stack([LATENTS[:, :, 0], np.zeros_like(LATENTS[:, :, 0])], 2)
  np.testing.assert_array_equal(
    latents_of(batch(still), KEY, flip=False), np.asarray(batch(still)['latents'][:, 0, 0])
  )


def test_without_deviations_it_is_the_mean_exactly():
  stored = batch(LATENTS[:, :, :1])
  found = latents_of(stored, KEY, flip=False)
  np.testing.assert_array_equal(found, np.asarray(stored['latents'][:, 0, 0], np.float32))


def test_half_of_them_are_the_flipped_pictures():
  stored = batch(LATENTS[:, :, :1])
  sides = np.asarray(stored['latents'][:, :, 0], np.float32)
  found = np.asarray(latents_of(stored, KEY, flip=True))
  flipped = np.array([np.array_equal(x, two[1]) for x, two in zip(found, sides, strict=True)])
  for x, side, two in zip(found, flipped, sides, strict=True):
    np.testing.assert_array_equal(x, two[int(side)])
  assert 18 < flipped.sum() < 46  # 32 within 3.5 standard deviations of fair coin flips
  another = np.asarray(latents_of(stored, jax.random.key(8), flip=True))
  again = np.array([np.array_equal(x, two[1]) for x, two in zip(another, sides, strict=True)])
  assert (again != flipped).any()


@pytest.mark.parametrize('flip', [False, True])
def test_an_example_has_its_flip_and_noise_by_its_place_alone(flip):
  whole = np.asarray(latents_of(batch(), KEY, flip=flip))
  rows = np.array([50, 3, 17])
  part = latents_of(batch(LATENTS[rows], ids=rows), KEY, flip=flip)
  np.testing.assert_array_equal(part, whole[rows])
  elsewhere = latents_of(batch(LATENTS[rows], ids=rows + 1), KEY, flip=flip)
  assert not np.any(np.asarray(elsewhere) == whole[rows])


def test_pixels_become_images_and_half_of_them_are_turned():
  pixels = np.random.default_rng(0).integers(0, 256, (B, 2, 5, 3), np.uint8)
  given = {'pixels': jnp.asarray(pixels), 'id': jnp.arange(B)}
  x = np.asarray(draw.images(given, None, flip=False))
  np.testing.assert_allclose(x, pixels / 127.5 - 1.0, atol=1e-6)
  turned = np.asarray(draw.images(given, KEY, flip=True))
  sides = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(turned, x, strict=True)])
  np.testing.assert_array_equal(turned[~sides], x[~sides])
  assert 18 < sides.sum() < 46


def test_two_devices_draw_what_one_does(tmp_path):
  script = (
    'import jax, numpy as np, sys\n'
    'from gdistill.stages import draw\n'
    "jax.config.update('jax_num_cpu_devices', 2)\n"
    "mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))\n"
    "rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))\n"
    'latents = np.load(sys.argv[1])\n'
    "batch = {'latents': jax.numpy.asarray(latents, 'bfloat16'), 'id': np.arange(len(latents))}\n"
    "drawn = jax.jit(draw.latents, static_argnames='flip')\n"
    'found = drawn(jax.device_put(batch, rows), jax.random.key(7), flip=True)\n'
    'assert len(found.sharding.device_set) == 2\n'
    'np.save(sys.argv[2], found)\n'
  )
  np.save(tmp_path / 'latents.npy', LATENTS)
  found = tmp_path / 'found.npy'
  subprocess.run([sys.executable, '-c', script, tmp_path / 'latents.npy', found], check=True)
  np.testing.assert_array_equal(np.load(found), latents_of(batch(), KEY, flip=True))


def test_what_is_known_of_an_image_is_what_its_own_mask_leaves():
  x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (6, 4, 8, 3)), jnp.float32)
  key, ids = jax.random.key(5), jnp.array([3, 1, 7, 0, 2, 9])
  extra = np.asarray(draw.masked_images(x, key, ids))
  mask, left = extra[..., :1], extra[..., 1:]
  assert extra.shape == (6, 4, 8, 4) and set(np.unique(mask)) == {0.0, 1.0}
  np.testing.assert_array_equal(left, np.where(mask == 1, 0, x))
  assert len({m.tobytes() for m in mask}) > 3
  # The mask depends on the example's id, not on its row in the batch.
  again = np.asarray(draw.masked_images(x[::-1], key, ids[::-1]))
  np.testing.assert_array_equal(again[::-1], extra)
