import math

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.core import schedule


def test_cosine_reaches_its_limits_and_is_antisymmetric(cosine):
  chex.assert_trees_all_close(cosine(jnp.array([1.0])), jnp.array([-20.0]), rtol=1e-5)
  # phi = a t + b with phi(0) + phi(1) = pi/2, so logsnr(1 - t) = -logsnr(t).
  t = jnp.linspace(0.01, 0.99, 33)
  chex.assert_trees_all_close(cosine(1 - t), -cosine(t), atol=2e-4)


def test_cosine_angle_is_linear_in_time(cosine):
  t = np.linspace(0.001, 1, 57)
  b = np.arctan(np.exp(-10.0))
  expected = (np.arctan(np.exp(10.0)) - b) * t + b
  found = schedule.angle(cosine(jnp.asarray(t, jnp.float32)))
  np.testing.assert_allclose(found, expected, atol=3e-7)


def test_cosine_follows_the_printed_formula_with_other_limits():
  t = np.linspace(0.05, 1, 20)
  b = np.arctan(np.exp(-3.0))
  a = np.arctan(np.exp(4.0)) - b
  found = schedule.cosine(-8.0, 6.0)(jnp.asarray(t, jnp.float32))
  np.testing.assert_allclose(found, -2 * np.log(np.tan(a * t + b)), atol=1e-4)


def test_time_zero_is_exactly_noiseless_and_shown_as_the_maximum(cosine):
  logsnr = cosine(jnp.array([0.0]))
  assert logsnr[0] == jnp.inf
  assert schedule.angle(logsnr)[0] == 0.0
  assert [float(a[0]) for a in schedule.alpha_sigma(logsnr)] == [1.0, 0.0]
  assert cosine.shown(logsnr)[0] == 20.0


@pytest.mark.parametrize(
  ('betas', 'abar_last'),
  # The last cumulative product of 1 - beta: 4.0358e-05 for DDPM's linear betas, and 0.0047 for
  # Stable Diffusion's scaled-linear betas, whose terminal SNR is not zero (sqrt(abar) = 0.0683).
  [
    (schedule.linear_betas(1e-4, 0.02), 4.0358e-05),
    (schedule.scaled_linear_betas(0.00085, 0.012), 0.068265**2),
  ],
)
def test_discrete_schedules_end_where_their_tables_do(betas, abar_last):
  found = schedule.discrete(betas)(jnp.array([1.0]))[0]
  np.testing.assert_allclose(found, np.log(abar_last / (1 - abar_last)), rtol=2e-4)


def test_discrete_time_is_index_plus_one_over_count():
  betas = np.array([0.1, 0.2, 0.4])
  made = schedule.discrete(betas)
  abar = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.6]
  expected = np.array([np.log(a / (1 - a)) for a in abar])
  np.testing.assert_allclose(made(jnp.array([1, 2, 3]) / 3), expected, rtol=1e-5)
  # Halfway between two indices logsnr is their mean; below 1/T it stays at index 0; t = 0 is clean.
  np.testing.assert_allclose(made(jnp.array([0.5])), expected[:2].mean(), rtol=1e-5)
  np.testing.assert_allclose(made(jnp.array([0.1])), expected[0], rtol=1e-5)
  assert made(jnp.array([0.0]))[0] == jnp.inf


BETAS = {
  'stable diffusion': schedule.scaled_linear_betas(0.00085, 0.012),
  'latent diffusion': schedule.scaled_linear_betas(0.0015, 0.0195),
  'linear': schedule.linear_betas(1e-4, 0.02),
  'squared cosine': schedule.squared_cosine_betas(),
}


@pytest.mark.parametrize('name', BETAS)
def test_the_index_is_the_schedule_backwards_and_whole_on_its_grid(name):
  betas = BETAS[name]
  made, index = schedule.discrete(betas), jax.jit(lambda x: schedule.index(x, betas))
  places = np.arange(1000)
  t = (jnp.asarray(places, jnp.float32) + 1.0) / 1000.0
  np.testing.assert_array_equal(index(made(t)), places)
  # Expected values from the definition of logsnr with sigma^2 = 1 - abar, in float64.
  abar = np.exp(np.cumsum(np.log1p(-betas)))
  logsnr = np.log(abar / (1 - abar))
  np.testing.assert_array_equal(index(jnp.asarray(logsnr, jnp.float32)), places)
  # The index is linear between two steps and constant beyond both ends; logsnr = +inf is t = 0.
  between = jnp.asarray(0.75 * logsnr[:-1] + 0.25 * logsnr[1:], jnp.float32)
  np.testing.assert_allclose(index(between), places[:-1] + 0.25, atol=1e-3)
  ends = jnp.array([jnp.inf, logsnr[0] + 1, logsnr[-1] - 1, -jnp.inf], jnp.float32)
  np.testing.assert_array_equal(index(ends), [0, 0, 999, 999])


@pytest.mark.parametrize('name', BETAS)
def test_a_ladders_times_are_at_the_index_that_time_says(name):
  made = schedule.discrete(BETAS[name])
  for steps in (512, 64, 40, 5, 1):
    t = jnp.arange(1, steps + 1) / steps
    found = schedule.index(made(t), BETAS[name])
    np.testing.assert_allclose(found, 1000 * np.arange(1, steps + 1) / steps - 1, atol=1e-3)


def test_squared_cosine_betas_are_the_printed_quotients():
  # Nichol & Dhariwal 2021, equation 17: f(t) = cos^2(...), beta_t = 1 - abar_t / abar_{t-1},
  # clipped to at most 0.999, computed here one number at a time.
  f = lambda t: math.cos((t / 1000 + 0.008) / (1 + 0.008) * math.pi / 2) ** 2
  expected = [min(1 - f(t) / f(t - 1), 0.999) for t in range(1, 1001)]
  np.testing.assert_allclose(schedule.squared_cosine_betas(), expected, rtol=1e-9)
  assert schedule.squared_cosine_betas()[-1] == 0.999


def test_betas_of_zero_terminal_snr_end_at_pure_noise_and_stay_finite():
  before = schedule.scaled_linear_betas(0.00085, 0.012)
  betas = schedule.zero_terminal_snr(before)
  root = np.sqrt(np.cumprod(1.0 - betas))
  old = np.sqrt(np.cumprod(1.0 - before))
  assert betas[-1] == 1.0 and root[-1] == 0.0 and np.isclose(root[0], old[0], rtol=1e-12)
  # A shift and a factor keep the ratios of differences.
  np.testing.assert_allclose(np.diff(root) / np.diff(root)[0], np.diff(old) / np.diff(old)[0])
  noise = schedule.discrete(betas)
  t = jnp.asarray([0.5, 0.998, 0.9985, 0.999, 0.9995, 1.0], jnp.float32)
  logsnr = noise(t)
  assert np.isfinite(logsnr).all() and (np.diff(logsnr) < 0).all()
  np.testing.assert_allclose(schedule.index(logsnr, betas), 1000 * t - 1, atol=1e-3)
  alpha, sigma = schedule.alpha_sigma(logsnr[-1:])
  assert alpha < 2**-24 and sigma == 1.0  # beside sigma, float32 cannot tell alpha from 0
  assert schedule.angle(logsnr[-1:]) == np.float32(np.pi / 2)
