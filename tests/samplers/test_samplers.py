"""Tests of every sampler on models whose samples are known in closed form."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from known_models import COSINE
from known_models import gaussian_flow

from gdistill.core import projections
from gdistill.core import schedule
from gdistill.samplers import ancestral
from gdistill.samplers import ddim
from gdistill.samplers import dpm_solver
from gdistill.samplers import noise
from gdistill.samplers import stochastic

COND = {'label': jnp.zeros(4, jnp.int32)}
W = jnp.zeros(4)


def point(x):
  """Returns the exact model of one image x: v = alpha eps_hat - sigma x.

  eps_hat = (z - alpha x) / sigma.
  """

  def v_fn(z, logsnr, cond, w):
    alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(jnp.minimum(logsnr, 20.0)))
    return alpha * (z - alpha * x) / sigma - sigma * x

  return v_fn


def denoiser(c):
  """The exact model of N(0, c^2 I): v = alpha sigma (1 - c^2) z / (alpha^2 c^2 + sigma^2)."""

  def v_fn(z, logsnr, cond, w):
    alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(logsnr))
    return alpha * sigma * (1 - c**2) * z / (alpha**2 * c**2 + sigma**2)

  return v_fn


def draw(name, v_fn, z, num_steps, keys=None, project=None):
  keys = noise.image_keys(jnp.arange(len(z))) if keys is None else keys
  rest = (keys,) if name in ('stochastic', 'ancestral') else ()
  module = {'ddim': ddim, 'stochastic': stochastic, 'ancestral': ancestral, 'dpm': dpm_solver}[name]
  cond, w = {'label': jnp.zeros(len(z), jnp.int32)}, jnp.zeros(len(z))
  return module.sample(v_fn, z, cond, w, num_steps, COSINE, *rest, project=project)


@pytest.mark.parametrize('name', ['ddim', 'stochastic', 'ancestral', 'dpm'])
@pytest.mark.parametrize('num_steps', [1, 2, 5])
def test_data_that_is_one_image_comes_back_as_that_image(name, num_steps):
  x = jnp.asarray(np.random.default_rng(0).uniform(-0.8, 0.8, (4, 3, 3, 1)), jnp.float32)
  z = jax.random.normal(jax.random.key(0), x.shape)
  np.testing.assert_allclose(draw(name, point(x), z, num_steps), x, atol=1e-3)
  clipped = draw(name, point(x), z, num_steps, project=projections.clip)
  np.testing.assert_allclose(clipped, x, atol=1e-3)


@pytest.mark.parametrize('name', ['ddim', 'stochastic', 'ancestral', 'dpm'])
def test_projected_pictures_stay_in_range(name):
  x = jnp.full((2, 2, 2, 1), 1.7)
  z = jax.random.normal(jax.random.key(1), x.shape)
  found = draw(name, point(x), z, 4, project=projections.clip)
  np.testing.assert_allclose(found, 1.0, atol=1e-5)


@pytest.mark.parametrize('name', ['ddim', 'stochastic', 'ancestral', 'dpm'])
def test_an_image_does_not_depend_on_its_batch(name):
  keys = noise.image_keys(jnp.array([5, 6, 7]))
  z = noise.start(keys, (2, 2, 1))
  whole = draw(name, denoiser(0.5), z, 3, keys)
  alone = draw(name, denoiser(0.5), z[1:2], 3, keys[1:2])
  np.testing.assert_array_equal(whole[1:2], alone)


@pytest.mark.parametrize('name', ['ddim', 'stochastic', 'ancestral', 'dpm'])
def test_the_number_of_steps_is_the_number_of_calls_and_may_be_traced(name):
  times = []

  def counted(z, logsnr, cond, w):
    jax.debug.callback(lambda a: times.append(float(a[0])), logsnr, ordered=True)
    return denoiser(0.5)(z, logsnr, cond, w)

  z = jnp.ones((2, 1, 1, 1))
  jax.jit(lambda n: draw(name, counted, z, n))(4).block_until_ready()
  jax.effects_barrier()
  expected = COSINE(jnp.array([1.0, 0.75, 0.5, 0.25]))
  np.testing.assert_allclose(times, expected, rtol=1e-5)


@pytest.mark.parametrize('num_steps', [1, 2, 8, 64])
@pytest.mark.parametrize('c', [0.3, 1.0, 2.0])
def test_ddim_with_the_exact_flow_keeps_the_variance(c, num_steps):
  z = jnp.ones((1, 1, 1, 1))  # DDIM is linear here, so the variance is the square of the gain
  gain = draw('ddim', gaussian_flow(c, 1 / num_steps), z, num_steps)
  np.testing.assert_allclose(gain**2, c**2, rtol=1e-3)


@pytest.mark.parametrize('num_steps', [2, 4, 16])
@pytest.mark.parametrize('c', [0.3, 1.0, 2.0])
def test_the_stochastic_sampler_with_the_exact_flow_keeps_the_variance(c, num_steps, monkeypatch):
  # The sampler is linear, so the variance is the sum of squared responses to each noise draw. Image
  # j of the batch gets unit noise in draw j, and zero in every other draw.
  def unit(keys, step, shape):
    return (jnp.arange(num_steps + 1) == step).astype(jnp.float32).reshape(-1, 1, 1, 1)

  monkeypatch.setattr(noise, 'normal', unit)
  z = noise.start(None, (1, 1, 1))
  keys = noise.image_keys(jnp.arange(num_steps + 1))
  v_fn = gaussian_flow(c, 2 / num_steps)
  responses = draw('stochastic', v_fn, z, num_steps, keys)
  np.testing.assert_allclose(jnp.sum(responses**2), c**2, rtol=1e-3)
  # Every draw matters, so a missing noise step would change the variance.
  assert np.min(np.abs(responses[:num_steps])) > 0


def test_inversion_brings_back_the_noise(mixture, cosine):
  x, cond, w, _ = mixture.draw(4)
  z = ddim.invert(mixture.v_fn, x, cond, w, 512, cosine)
  back = ddim.sample(mixture.v_fn, z, cond, w, 512, cosine)
  np.testing.assert_allclose(back, x, atol=0.02)
  # DDIM is of first order: with a quarter of the step length the error is less than half.
  z2 = ddim.invert(mixture.v_fn, x, cond, w, 2048, cosine)
  better = ddim.sample(mixture.v_fn, z2, cond, w, 2048, cosine)
  assert np.abs(better - x).max() < 0.5 * np.abs(back - x).max()


def test_inversion_of_a_gaussian_is_its_flow():
  c, x = 0.5, jnp.full((1, 1, 1, 1), 0.7)
  z = ddim.invert(denoiser(c), x, {'label': jnp.zeros(1, int)}, jnp.zeros(1), 4096, COSINE)
  np.testing.assert_allclose(z, x / c, rtol=2e-3)  # the flow maps variance c^2 to variance 1


def test_dpm_solver_is_its_printed_algorithm_and_beats_ddim():
  # Algorithm 2 of 2211.01095 in float64, with the paper's notation: lambda = logsnr / 2, D is the
  # data estimate, and the first and last steps are of first order.
  c, n = 0.25, 16
  t = np.arange(n, 0, -1) / n
  lam = 0.5 * np.asarray(COSINE(jnp.asarray(t, jnp.float32)), np.float64)
  alpha, sigma = np.sqrt(1 / (1 + np.exp(-2 * lam))), np.sqrt(1 / (1 + np.exp(2 * lam)))
  x, data = 1.0, []
  for i in range(n):
    data.append(alpha[i] * c**2 / (alpha[i] ** 2 * c**2 + sigma[i] ** 2) * x)
    if i == n - 1:
      x = data[i]
      break
    h = lam[i + 1] - lam[i]
    d = data[i]
    if i > 0:
      r = (lam[i] - lam[i - 1]) / h
      d = (1 + 1 / (2 * r)) * data[i] - 1 / (2 * r) * data[i - 1]
    x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * d
  found = {
    name: float(draw(name, denoiser(c), jnp.ones((1, 1, 1, 1)), n)[0, 0, 0, 0])
    for name in ('dpm', 'ddim')
  }
  np.testing.assert_allclose(found['dpm'], x, rtol=1e-4)
  # The exact flow gives c.
  assert abs(found['dpm'] - c) < 0.5 * abs(found['ddim'] - c)


def test_one_step_is_one_step_whatever_the_deterministic_sampler():
  z = jax.random.normal(jax.random.key(3), (2, 2, 2, 1))
  first = draw('ddim', denoiser(0.4), z, 1)
  for name in ('dpm', 'stochastic', 'ancestral'):
    np.testing.assert_allclose(draw(name, denoiser(0.4), z, 1), first, atol=1e-5)


def test_ancestral_sampling_has_the_data_variance():
  # With 16,384 pixels the variance has a standard error of 1.1 %; the bias at N = 256 is smaller.
  c = 0.5
  keys = noise.image_keys(jnp.arange(4))
  z = noise.start(keys, (64, 64, 1))
  x = draw('ancestral', denoiser(c), z, 256, keys)
  np.testing.assert_allclose(np.var(x), c**2, rtol=0.05)


def test_noise_is_a_function_of_seed_and_step_alone():
  keys = noise.image_keys(jnp.array([3, 9]))
  a, b = noise.normal(keys, 1, (2, 2, 1)), noise.normal(keys[::-1], 1, (2, 2, 1))
  np.testing.assert_array_equal(a, b[::-1])
  assert np.abs(a - noise.normal(keys, 2, (2, 2, 1))).min() > 0
  assert np.abs(a[0] - a[1]).min() > 0


def watched(v_fn):
  """Returns (v_fn, zs, logsnrs): the model, and two lists that record each call's arguments."""
  seen, times = [], []

  def see(z, logsnr):
    seen.append(np.asarray(z))
    times.append(float(logsnr[0]))

  def recorded(z, logsnr, cond, w):
    jax.debug.callback(see, z, logsnr, ordered=True)
    return v_fn(z, logsnr, cond, w)

  return recorded, seen, times


@pytest.mark.parametrize('name', ['ddim', 'stochastic'])
@pytest.mark.parametrize('project', [None, projections.clip])
def test_a_walk_from_later_is_the_tail_of_a_whole_one(name, project):
  keys = noise.image_keys(jnp.arange(2))
  rest = (keys,) if name == 'stochastic' else ()
  sample = {'ddim': ddim, 'stochastic': stochastic}[name].sample
  cond, w = {'label': jnp.zeros(2, jnp.int32)}, jnp.zeros(2)
  v_fn, seen, times = watched(denoiser(0.4))
  run = jax.jit(lambda z, n, start: sample(v_fn, z, cond, w, n, COSINE, *rest, project, start))
  whole = run(3 * noise.start(keys, (2, 2, 1)), 5, 5).block_until_ready()
  jax.effects_barrier()
  points = list(seen)
  for start in (4, 2, 1):
    seen.clear(), times.clear()
    found = run(jnp.asarray(points[5 - start]), 5, start).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(seen, points[5 - start :])
    np.testing.assert_allclose(times, COSINE(jnp.arange(start, 0, -1) / 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('project', [None, projections.clip])
def test_an_inversion_that_stops_early_is_the_head_of_a_whole_one(project):
  x = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
  cond, w = {'label': jnp.zeros(2, jnp.int32)}, jnp.zeros(2)
  v_fn, seen, times = watched(denoiser(1.6))
  run = jax.jit(lambda n, stop: ddim.invert(v_fn, x, cond, w, n, COSINE, project, stop))
  run(5, 5).block_until_ready()
  jax.effects_barrier()
  points = list(seen)
  for stop in (4, 2, 1):
    seen.clear(), times.clear()
    np.testing.assert_array_equal(run(5, stop), points[stop])
    jax.effects_barrier()
    np.testing.assert_array_equal(seen, points[:stop])
    np.testing.assert_allclose(times, COSINE(jnp.arange(stop) / 5), rtol=1e-5, atol=1e-5)


def test_an_inversion_goes_through_the_projected_estimate():
  # Expected values in float64, by way of eps: z_s = alpha_s x_proj + sigma_s (z - alpha x_proj) /
  # sigma. The first step starts at sigma = 0, so it is the plain DDIM rotation.
  c, n = 1.6, 6
  x = np.random.default_rng(0).normal(size=(2, 3, 3, 1))
  # This model gives an x_hat beyond [-1, 1], so that x_hat is clipped often.
  v_fn = lambda z, logsnr, cond, w: denoiser(c)(z, logsnr, cond, w) - 0.4
  found = ddim.invert(
    v_fn, jnp.asarray(x, jnp.float32), {'label': jnp.zeros(2, int)}, jnp.zeros(2), n, COSINE,
    projections.clip,
  )  # fmt: skip
  logsnr = np.asarray(COSINE(jnp.arange(n + 1, dtype=jnp.float32) / n), np.float64)
  alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
  z, clipped = x, 0
  for i in range(n):
    a, s = alpha[i], sigma[i]
    v = a * s * (1 - c**2) * z / (a**2 * c**2 + s**2) - 0.4
    if i == 0:
      z = alpha[1] * z + sigma[1] * v  # a rotation by phi_1, from phi_0 = 0
      continue
    x_hat = a * z - s * v
    clipped += (np.abs(x_hat) > 1).sum()
    x_hat = np.clip(x_hat, -1, 1)
    z = alpha[i + 1] * x_hat + sigma[i + 1] * (z - a * x_hat) / s
  assert clipped > 10
  np.testing.assert_allclose(found, z, atol=2e-5)
