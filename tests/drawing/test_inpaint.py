"""Tests of inpainting: posteriors of correlated Gaussians, and a known region that stays fixed."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from known_models import COSINE

from gdistill.core import masks
from gdistill.core import process
from gdistill.core import projections
from gdistill.core import schedule
from gdistill.drawing import inpaint
from gdistill.samplers import ddim
from gdistill.samplers import noise
from gdistill.samplers import stochastic as stochastic_sampler

pytestmark = pytest.mark.full

SHAPE = (2, 3, 1)
MASKS = np.array([[[1, 1, 0], [0, 1, 0]], [[0, 0, 1], [1, 0, 0]]], np.float32)[..., None]
KEYS = noise.image_keys(jnp.array([5, 17]))
COND, W = {'label': jnp.array([1, 2])}, jnp.array([0.5, 3.0])


def covariance():
  root = np.random.default_rng(2).normal(size=(6, 6))
  return root @ root.T / 6 + 0.05 * np.eye(6)


S = covariance()


def pictures():
  x = np.random.default_rng(4).multivariate_normal(np.zeros(6), S, 2)
  return jnp.asarray(x.reshape(2, *SHAPE), jnp.float32)


def alpha_sigma(t):
  """Returns (alpha, sigma) at time t, in float64."""
  logsnr = np.asarray(COSINE(jnp.asarray([t], jnp.float32)), np.float64)[0]
  return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def conditional_flow(num_steps):
  """Returns the exact flow of N(mu, C), the posterior of N(0, S) given the known pixels.

  cond['extra'] gives the known pixels a. With K the projection onto the known pixels and
  G = S K (K S K + 1 - K)^-1: mu = G a, C = S - G K S, so known pixels have mean a and variance 0.
  Along each eigenvector of C the flow is that of one Gaussian:
  z_s = alpha_s mu + U r U' (z_t - alpha_t mu).
  """

  def v_fn(z, logsnr, cond, w):
    mask, masked = (cond['extra'][..., i].reshape(-1, 6) for i in (0, 1))
    k = jax.vmap(jnp.diag)(1.0 - mask)
    s = jnp.asarray(S, jnp.float32)[None]
    g = s @ k @ jnp.linalg.inv(k @ s @ k + jax.vmap(jnp.diag)(mask))
    mu = jnp.einsum('bij,bj->bi', g, masked)
    c2, u = jnp.linalg.eigh(s - g @ k @ s)
    c2 = jnp.maximum(c2, 0.0)
    t = jnp.round(_time(logsnr) * num_steps) / num_steps
    logsnr_s = COSINE(jnp.round(t * num_steps - 1) / num_steps)
    (alpha, sigma), (alpha_s, sigma_s) = (
      [a[:, None] for a in schedule.alpha_sigma(x)] for x in (logsnr, logsnr_s)
    )
    r = jnp.sqrt((alpha_s**2 * c2 + sigma_s**2) / (alpha**2 * c2 + sigma**2))
    away = jnp.einsum('bij,bj,bkj,bk->bi', u, r, u, z.reshape(-1, 6) - alpha * mu)
    d = (schedule.angle(logsnr) - schedule.angle(logsnr_s))[:, None]
    v = (jnp.cos(d) * z.reshape(-1, 6) - alpha_s * mu - away) / jnp.sin(d)
    return v.reshape(z.shape)

  return v_fn


def _time(logsnr):
  return schedule.angle(logsnr) * 2 / np.pi  # exact to 1e-4, which is enough to find a grid point


def posterior(x, mask):
  """Returns (mu, C) of the painted pixels, computed from submatrices of S in float64."""
  b, a = (np.flatnonzero(mask.reshape(-1) == i) for i in (1, 0))
  gain = S[np.ix_(b, a)] @ np.linalg.inv(S[np.ix_(a, a)])
  return gain @ np.asarray(x, np.float64).reshape(-1)[a], S[np.ix_(b, b)] - gain @ S[np.ix_(a, b)]


def marginal(z, logsnr, cond, w):
  """Returns v of the exact denoiser of N(0, S): x_hat = alpha S (alpha^2 S + sigma^2)^-1 z."""
  alpha, sigma = (a[:, None, None] for a in schedule.alpha_sigma(logsnr))
  s = jnp.asarray(S, jnp.float32)[None]
  x_hat = alpha * s @ jnp.linalg.inv(alpha**2 * s + sigma**2 * jnp.eye(6)[None])
  x_hat = jnp.einsum('bij,bj->bi', x_hat, z.reshape(-1, 6))
  return ((alpha[:, 0] * z.reshape(-1, 6) - x_hat) / sigma[:, 0]).reshape(z.shape)


@pytest.mark.parametrize('num_steps', [1, 2, 4])
def test_a_network_shown_what_is_known_draws_from_the_posterior(num_steps):
  # The exact flow of N(mu, C) maps z_1 = eps to x' = mu + C^(1/2) eps at any N.
  x, mask = pictures(), jnp.asarray(MASKS)
  cond = {**COND, 'extra': masks.condition(mask, x * (1 - mask))}
  v_fn = conditional_flow(num_steps)
  run = jax.jit(lambda n: inpaint.inpaint(v_fn, x, cond, W, n, COSINE, KEYS))
  found = np.asarray(run(num_steps))
  eps = np.asarray(noise.start(KEYS, SHAPE))
  for i, (m, e) in enumerate(zip(MASKS, eps, strict=True)):
    mu, c = posterior(x[i], m)
    c2, u = np.linalg.eigh(c)
    root = u @ np.diag(np.sqrt(c2)) @ u.T
    np.testing.assert_allclose(found[i][m == 1], mu + root @ e[m == 1], atol=3e-3)
    np.testing.assert_allclose(found[i][m == 0], x[i][m == 0], atol=3e-3)
    assert np.abs(root @ e[m == 1]).max() > 0.1


def test_one_step_of_the_exact_denoiser_is_the_posterior_mean():
  # x_hat = mu + alpha C (alpha^2 C + sigma^2)^-1 (z - alpha mu) is almost mu: alpha_1 is 5e-5.
  x, mask = pictures(), jnp.asarray(MASKS)
  cond = {**COND, 'extra': masks.condition(mask, x * (1 - mask))}

  def v_fn(z, logsnr, cond, w):
    mask, masked = (np.asarray(cond['extra'][..., i]) for i in (0, 1))
    x_hat = np.array(masked)
    for i in range(2):
      mu, c = posterior(masked[i], mask[i])
      alpha, sigma = (float(a[i]) for a in schedule.alpha_sigma(logsnr))
      gain = alpha * c @ np.linalg.inv(alpha**2 * c + sigma**2 * np.eye(len(c)))
      x_hat[i][mask[i] == 1] = mu + gain @ (np.asarray(z[i, ..., 0])[mask[i] == 1] - alpha * mu)
    alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(logsnr))
    return (alpha * z - x_hat[..., None]) / sigma

  with jax.disable_jit():
    found = np.asarray(inpaint.inpaint(v_fn, x, cond, W, 1, COSINE, KEYS))
  for i, m in enumerate(MASKS):
    np.testing.assert_allclose(found[i][m == 1], posterior(x[i], m)[0], atol=1e-3)
    np.testing.assert_allclose(found[i][m == 0], x[i][m == 0], atol=1e-5)


@pytest.mark.parametrize('stochastic', [False, True])
@pytest.mark.parametrize('project', [None, projections.clip])
def test_an_inpainting_network_is_sampled_as_any_other(stochastic, project):
  z = noise.start(KEYS, SHAPE)
  found = inpaint.inpaint(marginal, 0 * z, COND, W, 3, COSINE, KEYS, project, stochastic)
  rest = (KEYS, project) if stochastic else (project,)
  sample = (stochastic_sampler if stochastic else ddim).sample
  np.testing.assert_array_equal(found, sample(marginal, z, COND, W, 3, COSINE, *rest))


@pytest.mark.parametrize('num_steps', [1, 2, 5])
def test_what_is_known_is_the_picture_under_the_same_noise_at_every_time(record, num_steps):
  x, eps = pictures(), noise.start(KEYS, SHAPE)
  v_fn, calls = record(marginal)
  run = jax.jit(
    lambda n: inpaint.constrained(v_fn, x, jnp.asarray(MASKS), COND, W, n, COSINE, KEYS)
  )
  found = run(num_steps).block_until_ready()
  jax.effects_barrier()
  known = MASKS == 0
  assert len(calls) == num_steps
  for logsnr, z in calls:
    expected = np.asarray(process.diffuse(x, eps, jnp.asarray(logsnr)))
    np.testing.assert_allclose(z[known], expected[known], atol=2e-6)
  np.testing.assert_allclose(found[known], x[known], atol=1e-6)
  assert np.abs(found - x)[~known].min() > 1e-3


def reference(x, num_steps, noises, stochastic):
  """Samples with matrices in float64, overwriting the known region at every time.

  The noise of the known region is noises[0] at first. A stochastic step to s by way of k changes
  that noise: sigma_s eps_s = (alpha_s/alpha_k) sigma_k eps + sigma_{s|k} noises[i].
  """
  x, mask = np.asarray(x, np.float64).reshape(2, 6), MASKS.reshape(2, 6)
  noises = [np.asarray(n, np.float64).reshape(2, 6) for n in noises]
  known = mask == 0
  alpha, sigma = alpha_sigma(1.0)
  e = noises[0]
  z = np.where(known, alpha * x + sigma * e, noises[0])
  for i in range(num_steps):
    left = num_steps - i
    alpha, sigma = alpha_sigma(left / num_steps)
    x_hat = z @ (alpha * S @ np.linalg.inv(alpha**2 * S + sigma**2 * np.eye(6)))
    eps_hat = (z - alpha * x_hat) / sigma
    k = max(left - 2, 0) if stochastic else left - 1
    alpha_k, sigma_k = alpha_sigma(k / num_steps) if k else (1.0, 0.0)
    z = alpha_k * x_hat + sigma_k * eps_hat
    z = np.where(known, alpha_k * x + sigma_k * e, z)
    if stochastic and left > 1:
      alpha, sigma = alpha_sigma((left - 1) / num_steps)
      fresh = np.sqrt(sigma**2 - (alpha / alpha_k * sigma_k) ** 2)
      z = alpha / alpha_k * z + fresh * noises[i + 1]
      e = (alpha / alpha_k * sigma_k * e + fresh * noises[i + 1]) / sigma
      z = np.where(known, alpha * x + sigma * e, z)
  return z.reshape(2, *SHAPE)


@pytest.mark.parametrize('stochastic', [False, True])
@pytest.mark.parametrize('num_steps', [1, 2, 5])
def test_a_constrained_walk_is_its_matrices(stochastic, num_steps):
  x = pictures()
  run = jax.jit(
    lambda n: inpaint.constrained(
      marginal, x, jnp.asarray(MASKS), COND, W, n, COSINE, KEYS, stochastic=stochastic
    )
  )
  noises = [noise.normal(KEYS, i, SHAPE) for i in range(num_steps)]
  np.testing.assert_allclose(run(num_steps), reference(x, num_steps, noises, stochastic), atol=1e-5)


def test_what_is_known_has_the_noise_of_its_time_under_the_stochastic_sampler(record, monkeypatch):
  # Image j gets unit noise in draw j alone, so the variance is the sum of squared responses.
  num_steps = 4

  def unit(keys, step, shape):
    return jnp.broadcast_to(
      (jnp.arange(num_steps) == step).reshape(-1, 1, 1, 1), (num_steps, *shape)
    ).astype(jnp.float32)

  monkeypatch.setattr(noise, 'normal', unit)
  x = jnp.full((num_steps, *SHAPE), 0.7)
  v_fn, calls = record(marginal)
  cond, w = {'label': jnp.zeros(num_steps, jnp.int32)}, jnp.zeros(num_steps)
  found = inpaint.constrained(
    v_fn, x, jnp.zeros((num_steps, 2, 3, 1)).at[:, 0, 0].set(1.0), cond, w, num_steps, COSINE,
    noise.image_keys(jnp.arange(num_steps)), stochastic=True,
  )  # fmt: skip
  jax.effects_barrier()
  assert len(calls) == num_steps
  for logsnr, z in calls:
    alpha, sigma = (np.asarray(a[0]) for a in schedule.alpha_sigma(jnp.asarray(logsnr)))
    responses = z[:, 1, 1, 0] - alpha * 0.7
    np.testing.assert_allclose(np.sum(responses**2), sigma**2, rtol=1e-4)
  np.testing.assert_allclose(found[:, 1], 0.7, atol=1e-6)


@pytest.mark.parametrize('stochastic', [False, True])
def test_with_everything_to_be_painted_the_walk_is_an_ordinary_one(stochastic):
  x, z = pictures(), noise.start(KEYS, SHAPE)
  found = inpaint.constrained(
    marginal, x, jnp.ones((2, 2, 3, 1)), COND, W, 5, COSINE, KEYS, stochastic=stochastic
  )
  rest = (KEYS,) if stochastic else ()
  sample = (stochastic_sampler if stochastic else ddim).sample
  np.testing.assert_allclose(found, sample(marginal, z, COND, W, 5, COSINE, *rest), atol=1e-5)


@pytest.mark.parametrize('stochastic', [False, True])
def test_what_is_painted_is_clipped_and_what_is_known_is_not_moved(stochastic):
  x = jnp.full((2, *SHAPE), 0.25)

  def bright(z, logsnr, cond, w):  # a model with x_hat = 3 everywhere
    alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(logsnr))
    return (alpha * z - 3.0) / sigma

  found = inpaint.constrained(
    bright, x, jnp.asarray(MASKS), COND, W, 3, COSINE, KEYS, projections.clip, stochastic
  )
  np.testing.assert_allclose(found, np.where(MASKS == 1, 1.0, 0.25), atol=1e-6)


@pytest.mark.parametrize('stochastic', [False, True])
def test_rows_do_not_see_each_other(stochastic):
  def run(rows):
    x, mask, w, keys = (a[rows] for a in (pictures(), jnp.asarray(MASKS), W, KEYS))
    cond = {'label': COND['label'][rows]}
    return inpaint.constrained(
      point, x, mask, cond, w, 3, COSINE, keys, projections.clip, stochastic
    )

  def point(z, logsnr, cond, w):  # elementwise, so that a batch gives the same bits as one row
    return 0.3 * z + w[:, None, None, None]

  np.testing.assert_array_equal(run(slice(None))[1:], run(slice(1, 2)))


def test_known_pixels_come_back_bit_for_bit():
  rng = np.random.default_rng(0)
  drawn, known = (rng.integers(0, 256, (2, 4, 4, 3), np.uint8) for _ in range(2))
  mask = rng.integers(0, 2, (2, 4, 4, 1)).astype(np.float32)
  found = inpaint.composite(jnp.asarray(drawn), jnp.asarray(known), jnp.asarray(mask))
  assert found.dtype == jnp.uint8
  for b, i, j in np.ndindex(2, 4, 4):
    expected = (drawn if mask[b, i, j, 0] == 1 else known)[b, i, j]
    np.testing.assert_array_equal(found[b, i, j], expected)
