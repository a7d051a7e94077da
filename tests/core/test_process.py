import jax
import numpy as np
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import projections
from gdistill.core import schedule

LOGSNRS = jnp.array([-7.0, -1.0, 0.0, 2.5, 9.0])
SHAPE = (5, 2, 2, 1)


def draw(seed):
  return jax.random.normal(jax.random.key(seed), SHAPE)


def test_v_is_a_rotation_of_x_and_eps():
  x, eps = draw(0), draw(1)
  z = process.diffuse(x, eps, LOGSNRS)
  v = process.v_from(x, eps, LOGSNRS)
  # A rotation keeps lengths, z^2 + v^2 = x^2 + eps^2, and x and eps follow from z and v.
  np.testing.assert_allclose(z**2 + v**2, x**2 + eps**2, rtol=1e-5)
  np.testing.assert_allclose(process.x_from_v(z, v, LOGSNRS), x, atol=2e-6)
  np.testing.assert_allclose(process.eps_from_v(z, v, LOGSNRS), eps, atol=2e-6)


def test_ddim_with_the_true_v_lands_on_the_same_path():
  x, eps = draw(0), draw(1)
  z, v = process.diffuse(x, eps, LOGSNRS), process.v_from(x, eps, LOGSNRS)
  for target in (LOGSNRS + 3.0, LOGSNRS - 3.0, jnp.full(5, jnp.inf)):
    landed = process.ddim(z, v, LOGSNRS, target)
    np.testing.assert_allclose(landed, process.diffuse(x, eps, target), atol=3e-6)


def test_the_sine_form_is_the_rotation_where_nothing_is_projected():
  z, v = draw(2), draw(3)
  x_hat = process.x_from_v(z, v, LOGSNRS)
  for target in (LOGSNRS + 1.0, jnp.full(5, jnp.inf)):
    np.testing.assert_allclose(
      process.ddim_projected(z, x_hat, LOGSNRS, target),
      process.ddim(z, v, LOGSNRS, target),
      atol=2e-5,
    )


def test_rotating_by_the_projected_v_is_the_projected_step():
  z, v = draw(2), 3 * draw(3)
  projected = process.project_v(z, v, LOGSNRS, projections.clip)
  x_hat = process.x_from_v(z, v, LOGSNRS)
  assert (abs(x_hat) > 1).any() and (abs(x_hat) < 1).any()
  np.testing.assert_allclose(
    process.x_from_v(z, projected, LOGSNRS), np.clip(x_hat, -1, 1), atol=1e-6
  )
  for target in (LOGSNRS + 1.0, jnp.full(5, jnp.inf)):
    np.testing.assert_allclose(
      process.ddim(z, projected, LOGSNRS, target),
      process.step(z, v, LOGSNRS, target, projections.clip),
      atol=2e-5,
    )
  at_data = process.project_v(z, v, jnp.full(5, jnp.inf), projections.clip)
  np.testing.assert_array_equal(at_data, v)


def test_renoise_adds_exactly_the_missing_variance():
  # alpha_s^2 var(x) + sigma_s^2 for var(x) = 1 is 1: the map keeps unit variance, by algebra.
  k, s = LOGSNRS + 2.0, LOGSNRS
  keep = process.renoise(jnp.ones(SHAPE), jnp.zeros(SHAPE), k, s)[:, 0, 0, 0]
  fresh = process.renoise(jnp.zeros(SHAPE), jnp.ones(SHAPE), k, s)[:, 0, 0, 0]
  np.testing.assert_allclose(keep**2 + fresh**2, 1.0, rtol=1e-5)
  alpha_k, sigma_k = schedule.alpha_sigma(k)
  alpha_s, sigma_s = schedule.alpha_sigma(s)
  np.testing.assert_allclose(keep, alpha_s / alpha_k, rtol=1e-5)
  np.testing.assert_allclose(keep**2 * sigma_k**2 + fresh**2, sigma_s**2, rtol=1e-4)


def test_posterior_is_bayes_rule_for_two_gaussians():
  # The product of q(z_s | x) = N(alpha_s x, sigma_s^2) and q(z_t | z_s) = N(a z_s, b), as a normal
  # density in z_s.
  s, t = LOGSNRS + 1.5, LOGSNRS
  x, z_t = draw(4), draw(5)
  mean, variance = process.posterior(z_t, x, t, s)
  alpha_t2, alpha_s2 = 1 / (1 + np.exp(-np.float64(t))), 1 / (1 + np.exp(-np.float64(s)))
  a = np.sqrt(alpha_t2 / alpha_s2)
  b = (1 - alpha_t2) - a**2 * (1 - alpha_s2)
  expected = 1 / (1 / (1 - alpha_s2) + a**2 / b)
  np.testing.assert_allclose(variance[:, 0, 0, 0], expected, rtol=1e-4)
  prior = (np.sqrt(alpha_s2) / (1 - alpha_s2))[:, None, None, None] * x
  seen = (a / b)[:, None, None, None] * z_t
  np.testing.assert_allclose(mean, expected[:, None, None, None] * (prior + seen), atol=1e-4)


def test_posterior_at_time_zero_is_x_itself():
  x, z_t = draw(4), draw(5)
  mean, variance = process.posterior(z_t, x, LOGSNRS, jnp.full(5, jnp.inf))
  np.testing.assert_array_equal(mean, x)
  np.testing.assert_array_equal(variance, 0.0)
