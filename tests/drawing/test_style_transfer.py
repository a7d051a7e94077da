"""Tests of style transfer between Gaussians, where both flows are known in closed form."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from known_models import COSINE

from gdistill.core import projections
from gdistill.drawing import style_transfer

pytestmark = pytest.mark.full


def sides(gaussians):
  """Returns (x, cond_a, cond_b, w_a, w_b), with different conditions and w in A and B."""
  x, cond, w = gaussians.draw(4)
  return x, cond, {'label': cond['label'] + 1}, w, w[::-1] + 0.5


@pytest.mark.parametrize(('encode_steps', 'decode_steps'), [(1, 1), (4, 4), (2, 8), (8, 1)])
def test_transfer_by_the_exact_flows_moves_the_mean(gaussians, encode_steps, decode_steps):
  # The two flows scale the distance from their means by 1/c and by c: x' = m_B + (x - m_A). The
  # tolerance covers alpha_1, which is 5e-5 instead of 0.
  x, cond_a, cond_b, w_a, w_b = sides(gaussians)
  run = jax.jit(
    lambda *counts: style_transfer.transfer(
      gaussians.flow(-1 / encode_steps), gaussians.flow(1 / decode_steps), x, cond_a, cond_b, w_a,
      w_b, *counts, COSINE,
    )
  )  # fmt: skip
  found = run(encode_steps, decode_steps)
  expected = x + gaussians.mean(cond_b, w_b) - gaussians.mean(cond_a, w_a)
  np.testing.assert_allclose(found, expected, atol=2e-3)
  assert np.abs(expected - x).max() > 0.5


def test_transfer_by_the_denoiser_moves_the_mean_in_the_limit_of_many_steps(gaussians):
  x, cond_a, cond_b, w_a, w_b = sides(gaussians)
  v_fn = gaussians.denoiser()
  expected = x + gaussians.mean(cond_b, w_b) - gaussians.mean(cond_a, w_a)
  run = jax.jit(
    lambda m, n: style_transfer.transfer(
      v_fn, v_fn, x, cond_a, cond_b, w_a, w_b, m, n, COSINE
    )
  )  # fmt: skip
  coarse, fine = (np.abs(run(n, 2 * n) - expected).max() for n in (256, 2048))
  assert fine < 0.01 and fine < 0.25 * coarse  # DDIM is of first order


def test_a_round_trip_returns_the_picture(gaussians):
  x, cond, w = gaussians.draw(4)
  found = style_transfer.transfer(
    gaussians.flow(-1 / 2), gaussians.flow(1 / 4), x, cond, cond, w, w, 2, 4, COSINE
  )
  np.testing.assert_allclose(found, x, atol=2e-3)


def test_encoder_and_decoder_are_called_at_their_own_times(gaussians, record):
  x, cond_a, cond_b, w_a, w_b = sides(gaussians)
  encode, encoded = record(gaussians.denoiser())
  decode, decoded = record(gaussians.denoiser())
  found = style_transfer.transfer(encode, decode, x, cond_a, cond_b, w_a, w_b, 2, 4, COSINE)
  found.block_until_ready()
  jax.effects_barrier()
  for calls, times in ((encoded, [0, 0.5]), (decoded, [1, 0.75, 0.5, 0.25])):
    np.testing.assert_allclose(
      [logsnr[0] for logsnr, _ in calls], COSINE(jnp.array(times, jnp.float32)), rtol=1e-5
    )


def test_rows_do_not_see_each_other(gaussians):
  x, cond_a, cond_b, w_a, w_b = sides(gaussians)
  v_fn = gaussians.denoiser()

  def run(rows):
    args = jax.tree.map(lambda a: a[rows], (x, cond_a, cond_b, w_a, w_b))
    return style_transfer.transfer(v_fn, v_fn, *args, 3, 5, COSINE, projections.clip)

  np.testing.assert_array_equal(run(slice(None))[2:3], run(slice(2, 3)))


def test_pictures_stay_in_range(gaussians):
  x, cond_a, cond_b, w_a, w_b = sides(gaussians)
  v_fn, x = gaussians.denoiser(), jnp.clip(x, -1, 1)
  found = style_transfer.transfer(
    v_fn, v_fn, x, cond_a, cond_b, w_a, w_b + 4, 8, 8, COSINE, projections.clip
  )
  assert np.abs(found).max() <= 1 + 1e-6
