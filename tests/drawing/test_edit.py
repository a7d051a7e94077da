"""Tests of editing: the grid, the start of sampling, and edits of Gaussians in closed form."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from known_models import COSINE

from gdistill.core import projections
from gdistill.core import schedule
from gdistill.drawing import edit
from gdistill.drawing import style_transfer
from gdistill.samplers import noise

pytestmark = pytest.mark.full

KEYS = noise.image_keys(jnp.array([5, 17]))


def alpha_sigma(start, num_steps):
  t = jnp.asarray([start / num_steps], jnp.float32)
  return tuple(float(a[0]) for a in schedule.alpha_sigma(COSINE(t)))


def other(cond):
  return {'label': cond['label'] + 1}


@pytest.mark.parametrize(
  ('strength', 'num_steps', 'expected'),
  [
    (0.5, 4, (2, True)),
    (1.0, 1, (1, True)),
    (1.0, 64, (64, True)),
    (0.29, 100, (29, True)),  # 0.29 * 100 is 28.999999999999996
    (1 / 3, 3, (1, True)),
    (0.6, 4, (2, False)),
    (0.65, 4, (3, False)),
    (0.375, 4, (2, False)),  # halfway between two grid points: the noisier one
    (0.01, 4, (1, False)),  # not 0, which would return the picture unchanged
    (0.99, 4, (4, False)),
  ],
)
def test_strength_is_the_nearest_time_of_the_grid(strength, num_steps, expected):
  assert edit.on_grid(strength, num_steps) == expected


@pytest.mark.parametrize('strength', [0.0, -0.5, 1.01, float('nan')])
def test_strength_is_above_0_and_at_most_1(strength):
  with pytest.raises(ValueError, match=r'strength=.* must be above 0 and at most 1'):
    edit.on_grid(strength, 4)


@pytest.mark.parametrize(
  ('start', 'num_steps', 'encode_steps', 'stop'),
  [(1, 2, 4, 2), (3, 4, 4, 3), (3, 4, 64, 48), (2, 4, 2, 1), (1, 4, 2, None), (3, 3, 7, 7)],
)
def test_an_encoder_stops_at_the_same_time_or_has_no_such_step(
  start, num_steps, encode_steps, stop
):
  assert edit.same_time(start, num_steps, encode_steps) == stop


@pytest.mark.parametrize('stochastic', [False, True])
@pytest.mark.parametrize(('num_steps', 'start'), [(4, 4), (4, 3), (4, 1), (1, 1)])
def test_an_edit_starts_from_the_picture_under_its_own_noise(
  gaussians, record, stochastic, num_steps, start
):
  x, cond, w = gaussians.draw(2)
  v_fn, calls = record(gaussians.denoiser())
  run = jax.jit(lambda n, i: edit.edit(v_fn, x, cond, w, n, i, COSINE, KEYS, stochastic=stochastic))
  run(num_steps, start).block_until_ready()
  jax.effects_barrier()
  times = COSINE(jnp.arange(start, 0, -1) / num_steps)
  np.testing.assert_allclose([logsnr[0] for logsnr, _ in calls], times, rtol=1e-5, atol=1e-5)
  alpha, sigma = alpha_sigma(start, num_steps)
  np.testing.assert_allclose(
    calls[0][1], alpha * x + sigma * noise.start(KEYS, x.shape[1:]), atol=1e-6
  )


@pytest.mark.parametrize(('num_steps', 'start'), [(4, 4), (4, 2), (8, 3), (1, 1)])
def test_an_edit_by_the_exact_flow_is_linear(gaussians, num_steps, start):
  # x' = m_B + r (alpha x + sigma eps - alpha m_B), r = c / sqrt(alpha^2 c^2 + sigma^2)
  x, cond, w = gaussians.draw(2)
  cond = other(cond)
  found = edit.edit(gaussians.flow(1 / num_steps), x, cond, w, num_steps, start, COSINE, KEYS)
  c, mean = gaussians.spread, gaussians.mean(cond, w)
  alpha, sigma = alpha_sigma(start, num_steps)
  z = alpha * x + sigma * noise.start(KEYS, x.shape[1:])
  r = c / np.sqrt(alpha**2 * c**2 + sigma**2)
  np.testing.assert_allclose(found, mean + r * (z - alpha * mean), atol=2e-3)


@pytest.mark.parametrize('stochastic', [False, True])
@pytest.mark.parametrize(('num_steps', 'start'), [(4, 3), (8, 2), (8, 8), (4, 1)])
def test_edits_of_data_are_data(gaussians, stochastic, num_steps, start, monkeypatch):
  # The edit is linear, so the variance is the sum of squared responses. Image j of the batch gets
  # unit noise in draw j alone; the last image gets no noise but a unit of x, whose variance is c^2.
  def unit(keys, step, shape):
    draws = (jnp.arange(num_steps + 2) == step) & (jnp.arange(num_steps + 2) <= num_steps)
    return jnp.broadcast_to(draws.reshape(-1, 1, 1, 1), (num_steps + 2, *shape)).astype(float)

  monkeypatch.setattr(noise, 'normal', unit)
  count = num_steps + 2
  cond, w = {'label': jnp.zeros(count, jnp.int32)}, jnp.zeros(count)
  mean = gaussians.mean(cond, w)
  x = jnp.asarray(mean).at[-1].add(1.0)
  v_fn = gaussians.flow((2 if stochastic else 1) / num_steps)
  found = edit.edit(
    v_fn, x, cond, w, num_steps, start, COSINE, noise.image_keys(jnp.arange(count)),
    stochastic=stochastic,
  )  # fmt: skip
  responses = (found - mean)[:, 0, 0, 0]
  c = gaussians.spread
  variance = jnp.sum(responses[:-1] ** 2) + responses[-1] ** 2 * c**2
  np.testing.assert_allclose(variance, c**2, rtol=2e-3)


@pytest.mark.parametrize(
  ('encode_steps', 'stop', 'num_steps', 'start'), [(4, 3, 4, 3), (8, 4, 2, 1), (1, 1, 4, 4)]
)
def test_an_inverted_edit_by_the_exact_flows_is_linear(
  gaussians, encode_steps, stop, num_steps, start
):
  # z_t = alpha m_A + (x - m_A) / r, x' = m_B + r (z_t - alpha m_B), with
  # r = c / sqrt(alpha^2 c^2 + sigma^2).
  x, cond, w = gaussians.draw(2)
  w_b = w + 1.0
  run = jax.jit(
    lambda m, stop, n, start: style_transfer.transfer(
      gaussians.flow(-1 / encode_steps), gaussians.flow(1 / num_steps), x, cond, other(cond), w,
      w_b, m, n, COSINE, None, stop, start,
    )
  )  # fmt: skip
  found = run(encode_steps, stop, num_steps, start)
  c, m_a, m_b = gaussians.spread, gaussians.mean(cond, w), gaussians.mean(other(cond), w_b)
  alpha, sigma = alpha_sigma(start, num_steps)
  r = c / np.sqrt(alpha**2 * c**2 + sigma**2)
  np.testing.assert_allclose(found, m_b + (x - m_a) + r * alpha * (m_a - m_b), atol=5e-3)


@pytest.mark.parametrize('stochastic', [False, True])
def test_an_edited_image_does_not_depend_on_its_batch(gaussians, stochastic):
  x, cond, w = gaussians.draw(2)

  def run(rows):
    return edit.edit(
      gaussians.denoiser(), x[rows], {'label': cond['label'][rows]}, w[rows], 4, 3, COSINE,
      KEYS[rows], projections.clip, stochastic,
    )  # fmt: skip

  np.testing.assert_array_equal(run(slice(0, 2))[1:], run(slice(1, 2)))


@pytest.mark.parametrize('stochastic', [False, True])
def test_edits_in_pixel_space_are_clipped(gaussians, stochastic):
  x, cond, w = gaussians.draw(2)
  run = [
    edit.edit(
      gaussians.denoiser(), x, cond, w + 4, 4, 3, COSINE, KEYS, project, stochastic
    )
    for project in (None, projections.clip)
  ]  # fmt: skip
  assert np.abs(run[0]).max() > 1.2 and np.abs(run[1]).max() <= 1 + 1e-6


def test_an_inverted_edit_in_pixel_space_is_clipped_in_both_walks(gaussians):
  x, cond, w = gaussians.draw(2)
  x = jnp.clip(x, -1, 1)
  rest = (gaussians.denoiser(), x, cond, other(cond), w + 4, w + 4, 4, 8, COSINE)
  seen = []

  def project(x_hat):
    seen.append(x_hat.shape)
    return projections.clip(x_hat)

  found = style_transfer.transfer(gaussians.denoiser(), *rest, project, 2, 4)
  # `project` is traced twice: once in the inversion, once in the sampling.
  assert len(seen) == 2 and np.abs(found).max() <= 1 + 1e-6
