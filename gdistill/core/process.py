"""The diffusion process for networks that predict v: noising, DDIM steps and the posterior."""

import jax
from jax import numpy as jnp

from gdistill.core import schedule
from gdistill.core import types


def diffuse(x: types.Images, eps: types.Images, logsnr: types.PerExample) -> types.Images:
  """Returns the noisy z_t = alpha x + sigma eps."""
  alpha, sigma = _alpha_sigma(logsnr, x)
  return alpha * x + sigma * eps


def v_from(x: types.Images, eps: types.Images, logsnr: types.PerExample) -> types.Images:
  """Returns v = alpha eps - sigma x."""
  alpha, sigma = _alpha_sigma(logsnr, x)
  return alpha * eps - sigma * x


def x_from_v(z: types.Images, v_hat: types.Images, logsnr: types.PerExample) -> types.Images:
  """Returns x_hat = alpha z - sigma v_hat."""
  alpha, sigma = _alpha_sigma(logsnr, z)
  return alpha * z - sigma * v_hat


def eps_from_v(z: types.Images, v_hat: types.Images, logsnr: types.PerExample) -> types.Images:
  """Returns eps_hat = sigma z + alpha v_hat."""
  alpha, sigma = _alpha_sigma(logsnr, z)
  return sigma * z + alpha * v_hat


def ddim(
  z_t: types.Images, v_hat: types.Images, logsnr_t: types.PerExample, logsnr_s: types.PerExample
) -> types.Images:
  """Returns z_s = cos(d) z_t - sin(d) v_hat, a DDIM step: a rotation by the angle d.

  d = phi_t - phi_s, so a step with d < 0 goes towards noise.
  """
  d = types.expand_like(schedule.angle(logsnr_t) - schedule.angle(logsnr_s), z_t)
  return jnp.cos(d) * z_t - jnp.sin(d) * v_hat


def ddim_projected(
  z_t: types.Images, x_hat: types.Images, logsnr_t: types.PerExample, logsnr_s: types.PerExample
) -> types.Images:
  """Returns z_s after a DDIM step with a given x_hat, for example a clipped x_hat.

  z_s = (sin phi_s / sin phi_t) z_t + (sin(phi_t - phi_s) / sin phi_t) x_hat. phi_t must be above 0,
  which means that z_t holds some noise, because the formula for z_s divides by sin phi_t.
  """
  phi_t, phi_s = schedule.angle(logsnr_t), schedule.angle(logsnr_s)
  keep = types.expand_like(jnp.sin(phi_s) / jnp.sin(phi_t), z_t)
  gain = types.expand_like(jnp.sin(phi_t - phi_s) / jnp.sin(phi_t), z_t)
  return keep * z_t + gain * x_hat


def step(
  z_t: types.Images,
  v_hat: types.Images,
  logsnr_t: types.PerExample,
  logsnr_s: types.PerExample,
  project: types.Project | None,
) -> types.Images:
  """Returns z_s after a DDIM step from t to s, by `ddim_projected` if `project` is given."""
  if project is None:
    return ddim(z_t, v_hat, logsnr_t, logsnr_s)
  return ddim_projected(z_t, project(x_from_v(z_t, v_hat, logsnr_t)), logsnr_t, logsnr_s)


def project_v(
  z: types.Images, v_hat: types.Images, logsnr: types.PerExample, project: types.Project
) -> types.Images:
  """Returns the v that gives project(x_hat): v_hat + (x_hat - project(x_hat)) / sin(phi).

  `ddim` with the returned v equals `step` with `project`. At phi = 0, x_hat equals z for every v,
  so v_hat is returned unchanged.
  """
  x_hat = x_from_v(z, v_hat, logsnr)
  sin = jnp.sin(types.expand_like(schedule.angle(logsnr), z))
  moved = (x_hat - project(x_hat)) / jnp.where(sin > 0, sin, 1.0)
  return v_hat + jnp.where(sin > 0, moved, 0.0)


def renoise(
  z_k: types.Images, eps: types.Images, logsnr_k: types.PerExample, logsnr_s: types.PerExample
) -> types.Images:
  """Adds noise from time k to a noisier time s: z_s = (alpha_s/alpha_k) z_k + sigma_{s|k} eps.

  The variance of the added noise is sigma_{s|k}^2 = (1 - exp(logsnr_s - logsnr_k)) sigma_s^2.
  """
  alpha_k, _ = _alpha_sigma(logsnr_k, z_k)
  alpha_s, sigma_s = _alpha_sigma(logsnr_s, z_k)
  fresh = types.expand_like(jnp.sqrt(-jnp.expm1(logsnr_s - logsnr_k)), z_k)
  return (alpha_s / alpha_k) * z_k + fresh * sigma_s * eps


def posterior(
  z_t: types.Images, x: types.Images, logsnr_t: types.PerExample, logsnr_s: types.PerExample
) -> tuple[types.Images, jax.Array]:
  """Returns mean and variance of q(z_s | z_t, x) for s < t; the variance is [B, 1, 1, 1].

  With r = exp(logsnr_t - logsnr_s), the mean is r (alpha_s/alpha_t) z_t + (1 - r) alpha_s x and the
  variance is (1 - r) sigma_s^2. Source: arXiv 2006.11239, in the notation of arXiv 2202.00512.
  """
  alpha_t, _ = _alpha_sigma(logsnr_t, z_t)
  alpha_s, sigma_s = _alpha_sigma(logsnr_s, z_t)
  r = types.expand_like(jnp.exp(logsnr_t - logsnr_s), z_t)
  one_minus_r = types.expand_like(-jnp.expm1(logsnr_t - logsnr_s), z_t)
  return r * (alpha_s / alpha_t) * z_t + one_minus_r * alpha_s * x, one_minus_r * sigma_s**2


def _alpha_sigma(logsnr: types.PerExample, images: types.Images) -> tuple[jax.Array, jax.Array]:
  alpha, sigma = schedule.alpha_sigma(logsnr)
  return types.expand_like(alpha, images), types.expand_like(sigma, images)
