"""Class-conditional Gaussians whose flow, also under guidance, is exact in any number of steps."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from known_models import gaussian_flow

from gdistill.core import guidance
from gdistill.core import schedule


class Gaussians:
  """Data of which class k is N(mean_k, c^2 I) and the null class N(mean_-1, c^2 I).

  One step of a class's v is its flow: z_s = alpha_s m + r (z_t - alpha_t m), r as in
  `gaussian_flow`. v is linear in m, so guidance by w moves m to (1 + w) m - w mean_-1.
  """

  shape, spread = (2, 2, 1), 0.5

  def __init__(self):
    self.means = np.random.default_rng(3).uniform(-1, 1, (4, *self.shape)).astype(np.float32)

  def flow(self, step):
    """Returns the guided model that is exact for steps of length `step`, negative for inversion."""
    return self._guided(gaussian_flow(self.spread, step))

  def denoiser(self):
    """Returns the exact guided model, whose samples are exact in the limit of many steps."""

    def centred(z, logsnr, cond, w):
      alpha, sigma = _alpha_sigma(logsnr)
      c2 = self.spread**2
      return alpha * sigma * (1 - c2) * z / (alpha**2 * c2 + sigma**2)

    return self._guided(centred)

  def mean(self, cond, w):
    """Returns the mean [B, H, W, C] of the guided Gaussian."""
    w = np.asarray(w)[:, None, None, None]
    return (1 + w) * self.means[np.asarray(cond['label'])] - w * self.means[-1]

  def draw(self, count, seed=0):
    """Draws (x, cond, w) with labels 0 and 1."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    x = self.means[label] + self.spread * rng.normal(size=(count, *self.shape))
    w = jnp.asarray(rng.uniform(0, 3, count), jnp.float32)
    return jnp.asarray(x, jnp.float32), {'label': jnp.asarray(label, jnp.int32)}, w

  def _guided(self, centred):
    def v_fn(z, logsnr, cond, w):
      alpha, sigma = _alpha_sigma(logsnr)
      mean = jnp.asarray(self.means)[cond['label']]
      return centred(z - alpha * mean, logsnr, cond, w) - sigma * mean

    return guidance.guided(v_fn)


def _alpha_sigma(logsnr):
  return (a[:, None, None, None] for a in schedule.alpha_sigma(logsnr))


@pytest.fixture(scope='session')
def gaussians() -> Gaussians:
  return Gaussians()


@pytest.fixture
def record():
  """Returns a function v_fn -> (v_fn, calls); `calls` records (logsnr, z) of every call."""

  def recorded(v_fn):
    calls = []

    def watched(z, logsnr, cond, w):
      jax.debug.callback(
        lambda *seen: calls.append(tuple(np.asarray(a) for a in seen)), logsnr, z, ordered=True
      )
      return v_fn(z, logsnr, cond, w)

    return watched, calls

  return recorded
