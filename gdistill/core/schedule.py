"""Noise schedules: functions from time t in [0, 1] to logsnr, with t = 0 exactly noiseless."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.core import types


@dataclasses.dataclass(frozen=True)
class Schedule:
  """logsnr(t) = log(alpha_t^2 / sigma_t^2), decreasing in t, and the limits a network is shown.

  At t = 0 logsnr is +inf, so that a grid's last step returns x_hat with no special case; a
  network asked there (inversion starts there) is shown `logsnr_max`.
  """

  inside: Callable[[types.PerExample], types.PerExample]  # logsnr for t > 0
  logsnr_min: float
  logsnr_max: float

  def __call__(self, t: types.PerExample) -> types.PerExample:
    return jnp.where(t > 0, self.inside(jnp.maximum(t, jnp.finfo(t.dtype).tiny)), jnp.inf)

  def shown(self, logsnr: types.PerExample) -> types.PerExample:
    """What the network sees: logsnr within the limits."""
    return jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)


def cosine(logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
  """logsnr(t) = -2 log tan(a t + b), b = arctan(e^(-max/2)), a = arctan(e^(-min/2)) - b.

  The angle phi = a t + b is linear in t. Source: Salimans & Ho, 2202.00512.
  """
  # Python's float64 here: a + b is within 5e-5 of pi/2, where float32 loses what is left.
  b = float(np.arctan(np.exp(-0.5 * logsnr_max)))
  a = float(np.arctan(np.exp(-0.5 * logsnr_min))) - b
  c = a + b  # phi at t = 1; tan(phi) = 1 / tan(pi/2 - phi), formed from the small angle

  def inside(t: types.PerExample) -> types.PerExample:
    phi, rest = a * t + b, a * (1.0 - t) + (0.5 * np.pi - c)
    return -2.0 * (jnp.log(jnp.sin(phi)) - jnp.log(jnp.sin(rest)))

  return Schedule(inside, logsnr_min, logsnr_max)


def discrete(betas: np.ndarray) -> Schedule:
  """A T-step beta schedule as a function of t: index = T t - 1, logsnr linear between indices.

  logsnr at index i is log(abar_i / (1 - abar_i)), abar the running product of 1 - beta; it is
  defined for t >= 1/T and held at index 0 below. t = 1 keeps the schedule's own terminal SNR.
  """
  table = _logsnrs(betas)
  count = len(table)

  def inside(t: types.PerExample) -> types.PerExample:
    index = jnp.clip(count * t - 1.0, 0.0, count - 1.0)
    return jnp.interp(index, jnp.arange(count, dtype=t.dtype), jnp.asarray(table, t.dtype))

  return Schedule(inside, float(table[-1]), float(table[0]))


def _logsnrs(betas: np.ndarray) -> np.ndarray:
  """logsnr at every index, in float64."""
  abar = np.cumprod(1.0 - np.asarray(betas, np.float64))
  return np.log(abar) - np.log1p(-abar)


def index(logsnr: types.PerExample, betas: np.ndarray) -> types.PerExample:
  """The index at which a beta schedule has this logsnr: `discrete` backwards, 1000 t - 1.

  Linear between indices, held at the ends, and exactly whole on the grid itself.
  """
  table = _logsnrs(betas)[::-1].copy()  # increasing, as interp wants it
  places = jnp.arange(len(table) - 1, -1, -1, dtype=logsnr.dtype)
  found = jnp.interp(logsnr, jnp.asarray(table, logsnr.dtype), places)
  whole = jnp.round(found)
  return jnp.where(jnp.abs(found - whole) < 1e-3, whole, found)  # what float32's rounding is worth


def linear_betas(start: float, end: float, count: int = 1000) -> np.ndarray:
  """Linear from start to end: 1e-4 to 0.02 in Ho et al., 2006.11239."""
  return np.linspace(start, end, count, dtype=np.float64)


def scaled_linear_betas(start: float, end: float, count: int = 1000) -> np.ndarray:
  """Square roots linear (Rombach et al., 2112.10752); Stable Diffusion: 0.00085 to 0.012."""
  return np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2


def squared_cosine_betas(count: int = 1000) -> np.ndarray:
  """abar(t) = cos^2(((t + 0.008) / 1.008) pi/2), betas at most 0.999 (Nichol & Dhariwal 2021)."""
  abar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.minimum(1.0 - abar[1:] / abar[:-1], 0.999)


def angle(logsnr: types.PerExample) -> types.PerExample:
  """phi = arctan(sigma / alpha): 0 at the data, pi/2 at pure noise."""
  return jnp.arctan(jnp.exp(-0.5 * logsnr))


def alpha_sigma(logsnr: types.PerExample) -> tuple[jax.Array, jax.Array]:
  """alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
  return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
