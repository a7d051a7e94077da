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
  logsnr(0) is +inf, so that the last step of a sampler returns x_hat with no special case. When
  DDIM inversion calls the network at t = 0, the network gets `logsnr_max` in place of +inf.
  """

  inside: Callable[[types.PerExample], types.PerExample]  # function t -> logsnr, for t > 0
  logsnr_min: float
  logsnr_max: float

  def __call__(self, t: types.PerExample) -> types.PerExample:
    return jnp.where(t > 0, self.inside(jnp.maximum(t, jnp.finfo(t.dtype).tiny)), jnp.inf)

  def shown(self, logsnr: types.PerExample) -> types.PerExample:
    """Clips logsnr to [logsnr_min, logsnr_max]: the value that the network gets as input."""
    return jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)


def cosine(logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
  """Returns the cosine schedule logsnr(t) = -2 log tan(a t + b): phi = a t + b is linear in t.

  b = arctan(exp(-logsnr_max / 2)) and a = arctan(exp(-logsnr_min / 2)) - b, so that logsnr(t)
  goes from logsnr_max to logsnr_min. Source: Salimans & Ho, arXiv 2202.00512.
  """
  # a and b are computed in float64, because a + b may be within 5e-5 of pi/2, so that float32 would
  # lose digits of pi/2 - (a + b).
  b = float(np.arctan(np.exp(-0.5 * logsnr_max)))
  a = float(np.arctan(np.exp(-0.5 * logsnr_min))) - b
  # tan(phi) is computed as sin(phi) / sin(rest), where rest = pi/2 - phi. `rest` is formed from the
  # small angle pi/2 - c, where c is phi at t = 1, because pi/2 - phi in float32 would have few
  # correct digits.
  c = a + b

  def inside(t: types.PerExample) -> types.PerExample:
    phi, rest = a * t + b, a * (1.0 - t) + (0.5 * np.pi - c)
    return -2.0 * (jnp.log(jnp.sin(phi)) - jnp.log(jnp.sin(rest)))

  return Schedule(inside, logsnr_min, logsnr_max)


def discrete(betas: np.ndarray) -> Schedule:
  """Returns the Schedule of T discrete `betas`: logsnr(t) is the logsnr at index T t - 1.

  The logsnr at index i of the betas is log(abar_i / (1 - abar_i)), where abar is the cumulative
  product of 1 - beta. Between two whole indices, logsnr is interpolated linearly. For 0 < t < 1/T,
  logsnr stays at the value of index 0. At t = 1, logsnr is the value of the last index, so the
  terminal SNR may be above zero.
  """
  table = _logsnrs(betas)
  count = len(table)

  def inside(t: types.PerExample) -> types.PerExample:
    index = jnp.clip(count * t - 1.0, 0.0, count - 1.0)
    return jnp.interp(index, jnp.arange(count, dtype=t.dtype), jnp.asarray(table, t.dtype))

  return Schedule(inside, float(table[-1]), float(table[0]))


# The logsnr at which betas with a terminal SNR of zero end, in place of -inf. There alpha is 2e-9,
# which float32 cannot tell from 0 beside a sigma of 1: a DDIM step is the same rotation to the bit.
# A finite number keeps posteriors, ratios of alphas and interpolation between indices free of NaN.
_PURE_NOISE = -40.0


def _logsnrs(betas: np.ndarray) -> np.ndarray:
  """Returns [T] float64: the logsnr at every index of T betas, and -40 where a logsnr is lower."""
  abar = np.cumprod(1.0 - np.asarray(betas, np.float64))
  with np.errstate(divide='ignore'):
    return np.maximum(np.log(abar) - np.log1p(-abar), _PURE_NOISE)


def index(logsnr: types.PerExample, betas: np.ndarray) -> types.PerExample:
  """Returns the index into `betas` at which the schedule `discrete(betas)` has this logsnr.

  The index may be fractional: between the logsnrs of two betas, the index is linear in logsnr. An
  index within 0.001 of a whole number is rounded, because float32 is inexact. For a logsnr outside
  the range of the betas' logsnrs, the index is the first or the last index.
  """
  table = _logsnrs(betas)[::-1].copy()  # reversed, because jnp.interp needs increasing values
  places = jnp.arange(len(table) - 1, -1, -1, dtype=logsnr.dtype)
  found = jnp.interp(logsnr, jnp.asarray(table, logsnr.dtype), places)
  whole = jnp.round(found)
  return jnp.where(jnp.abs(found - whole) < 1e-3, whole, found)


def linear_betas(start: float, end: float, count: int = 1000) -> np.ndarray:
  """Returns `count` betas, linear from start to end; Ho et al. (DDPM) use 1e-4 to 0.02."""
  return np.linspace(start, end, count, dtype=np.float64)


def scaled_linear_betas(start: float, end: float, count: int = 1000) -> np.ndarray:
  """Returns betas whose square roots are linear from start to end (arXiv 2112.10752).

  Stable Diffusion uses start = 0.00085 and end = 0.012.
  """
  return np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2


def squared_cosine_betas(count: int = 1000) -> np.ndarray:
  """Returns the betas, at most 0.999, of abar(t) = cos^2(((t + 0.008) / 1.008) pi/2).

  Source: Nichol & Dhariwal, arXiv 2102.09672.
  """
  abar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.minimum(1.0 - abar[1:] / abar[:-1], 0.999)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
  """Returns the betas with sqrt(abar) shifted and scaled, so that abar is 0 at the last index.

  sqrt(abar) at the first index is kept. The last beta is exactly 1. Source: Lin et al., arXiv
  2305.08891, algorithm 1.
  """
  root = np.sqrt(np.cumprod(1.0 - np.asarray(betas, np.float64)))
  abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
  return 1.0 - abar / np.concatenate([[1.0], abar[:-1]])


def angle(logsnr: types.PerExample) -> types.PerExample:
  """Returns phi = arctan(sigma / alpha), which is 0 for clean data and pi/2 for pure noise."""
  return jnp.arctan(jnp.exp(-0.5 * logsnr))


def alpha_sigma(logsnr: types.PerExample) -> tuple[jax.Array, jax.Array]:
  """Returns (alpha, sigma): alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
  return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
