"""Noise schedules: functions from time t in [0, 1] to logsnr, exactly noiseless at t = 0."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.core import types


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A noise schedule logsnr(t) = log(alpha_t^2 / sigma_t^2), which decreases in t.

  `logsnr_min` and `logsnr_max` are the limits of the logsnr that a network gets as input.
  logsnr(0) is +inf, so that the last step of a sampler returns x_hat with no special case. DDIM
  inversion calls the network at t = 0, and the network gets `logsnr_max` in place of +inf.
  """

  inside: Callable[[types.PerExample], types.PerExample]  # t -> logsnr for t > 0
  logsnr_min: float
  logsnr_max: float

  def __call__(self, t: types.PerExample) -> types.PerExample:
    return jnp.where(t > 0, self.inside(jnp.maximum(t, jnp.finfo(t.dtype).tiny)), jnp.inf)

  def shown(self, logsnr: types.PerExample) -> types.PerExample:
    """Clips logsnr to [logsnr_min, logsnr_max]: the value that the network gets as input."""
    return jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)


def cosine(logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
  """logsnr(t) = -2 log tan(a t + b), b = arctan(e^(-max/2)), a = arctan(e^(-min/2)) - b.

  The angle phi = a t + b is linear in t. Source: Salimans & Ho, 2202.00512.
  """
  # float64, because a + b is within 5e-5 of pi/2: float32 would lose digits of pi/2 - (a + b).
  b = float(np.arctan(np.exp(-0.5 * logsnr_max)))
  a = float(np.arctan(np.exp(-0.5 * logsnr_min))) - b
  # c is phi at t = 1. tan(phi) is sin(phi) / sin(rest) with rest = pi/2 - phi; `rest` is formed
  # from the small angle pi/2 - c, because pi/2 - phi in float32 has few correct digits.
  c = a + b

  def inside(t: types.PerExample) -> types.PerExample:
    phi, rest = a * t + b, a * (1.0 - t) + (0.5 * np.pi - c)
    return -2.0 * (jnp.log(jnp.sin(phi)) - jnp.log(jnp.sin(rest)))

  return Schedule(inside, logsnr_min, logsnr_max)


def discrete(betas: np.ndarray) -> Schedule:
  """Returns the Schedule of T betas: logsnr(t) is the logsnr at index T t - 1 of the betas.

  logsnr at index i is log(abar_i / (1 - abar_i)), where abar is the cumulative product of
  1 - beta. Between two whole indices, logsnr is linear. For 0 < t < 1/T, logsnr stays at the value
  of index 0. At t = 1, logsnr is the value of the last index, so the terminal SNR may be above
  zero.
  """
  table = _logsnrs(betas)
  count = len(table)

  def inside(t: types.PerExample) -> types.PerExample:
    index = jnp.clip(count * t - 1.0, 0.0, count - 1.0)
    return jnp.interp(index, jnp.arange(count, dtype=t.dtype), jnp.asarray(table, t.dtype))

  return Schedule(inside, float(table[-1]), float(table[0]))


def _logsnrs(betas: np.ndarray) -> np.ndarray:
  """Returns [T] float64: the logsnr at every index of T betas."""
  abar = np.cumprod(1.0 - np.asarray(betas, np.float64))
  return np.log(abar) - np.log1p(-abar)


def index(logsnr: types.PerExample, betas: np.ndarray) -> types.PerExample:
  """Returns the index at which a beta schedule has this logsnr: the inverse of `discrete`.

  The index is T t - 1 in a schedule of T betas. Between the logsnrs of two betas, the index is
  linear in logsnr. At the logsnr of a beta, the index is exactly a whole number. Outside the range
  of the betas' logsnrs, the index is constant.
  """
  table = _logsnrs(betas)[::-1].copy()  # jnp.interp needs increasing values
  places = jnp.arange(len(table) - 1, -1, -1, dtype=logsnr.dtype)
  found = jnp.interp(logsnr, jnp.asarray(table, logsnr.dtype), places)
  whole = jnp.round(found)
  return jnp.where(jnp.abs(found - whole) < 1e-3, whole, found)  # removes float32 rounding error


def linear_betas(start: float, end: float, count: int = 1000) -> np.ndarray:
  """Returns `count` betas, linear from start to end; Ho et al., 2006.11239, use 1e-4 to 0.02."""
  return np.linspace(start, end, count, dtype=np.float64)


def scaled_linear_betas(start: float, end: float, count: int = 1000) -> np.ndarray:
  """Returns betas whose square roots are linear from start to end (Rombach et al., 2112.10752).

  Stable Diffusion uses start = 0.00085 and end = 0.012.
  """
  return np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2


def squared_cosine_betas(count: int = 1000) -> np.ndarray:
  """Returns the betas of abar(t) = cos^2(((t + 0.008) / 1.008) pi/2), limited to 0.999.

  Source: Nichol & Dhariwal 2021.
  """
  abar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.minimum(1.0 - abar[1:] / abar[:-1], 0.999)


def angle(logsnr: types.PerExample) -> types.PerExample:
  """phi = arctan(sigma / alpha): 0 for clean data, pi/2 for pure noise."""
  return jnp.arctan(jnp.exp(-0.5 * logsnr))


def alpha_sigma(logsnr: types.PerExample) -> tuple[jax.Array, jax.Array]:
  """Returns (alpha, sigma): alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
  return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
