"""Models whose answer is known in closed form: a mixture of Gaussians, and one Gaussian's flow."""

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.core import schedule
from gdistill.core import types

COSINE = schedule.cosine()
SIZE, CLASSES, SPREAD = 3, 4, 0.4


class Mixture:
  """A mixture of equally likely classes N(mean_k, spread^2 I), whose denoisers have closed forms.

  With S = alpha^2 spread^2 + sigma^2 the v of a class is
  alpha sigma (1 - spread^2) (z - alpha mean) / S - sigma mean. The v of the null condition is the
  mean of the classes' v, weighted by the posterior of the classes, which is proportional to
  exp(-|z - alpha mean|^2 / 2S).
  """

  def __init__(self, classes: int = CLASSES, size: int = SIZE, spread: float = SPREAD):
    self.shape, self.spread = (size, size, 1), spread
    self.means = np.random.default_rng(7).normal(size=(classes, *self.shape)).astype(np.float32)
    self.v_fn = jax.jit(self._v)

  def _v(self, z, logsnr, cond, w):
    del w
    alpha, sigma = (types.expand_like(a, z)[:, None] for a in schedule.alpha_sigma(logsnr))
    s = alpha**2 * self.spread**2 + sigma**2
    away = z[:, None] - alpha * self.means[None]
    v = alpha * sigma * (1 - self.spread**2) * away / s - sigma * self.means[None]
    logits = -jnp.sum(away**2, axis=(2, 3, 4)) / (2 * s[:, :, 0, 0, 0])
    one_hot = jax.nn.one_hot(cond['label'], len(self.means))
    r = jnp.where(cond['label'][:, None] < 0, jax.nn.softmax(logits), one_hot)
    return jnp.sum(r[:, :, None, None, None] * v, axis=1)

  def guided_x(self, z, logsnr, label, w):
    """Returns (1 + w) E[x | z, c] - w E[x | z] in float64 numpy, from Bayes' rule, not from v."""
    z, logsnr, w = (np.asarray(a, np.float64) for a in (z, logsnr, w))
    alpha2 = 1 / (1 + np.exp(-logsnr))
    alpha, s2 = np.sqrt(alpha2), 1 - alpha2
    out = np.empty_like(z)
    for b in range(len(z)):
      s = alpha2[b] * self.spread**2 + s2[b]
      gain = alpha[b] * self.spread**2 / s
      each = self.means + gain * (z[b] - alpha[b] * self.means)
      d2 = ((z[b] - alpha[b] * self.means) ** 2).sum((1, 2, 3))
      r = np.exp(-(d2 - d2.min()) / (2 * s))
      null = np.tensordot(r / r.sum(), each, 1)
      out[b] = (1 + w[b]) * each[label[b]] - w[b] * null
    return out

  def draw(self, count: int, seed: int = 0):
    """Draws (x, cond, w, key): data of the mixture with labels, guidance strengths and a key."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(self.means), count).astype(np.int32)
    x = self.means[label] + self.spread * rng.normal(size=(count, *self.shape))
    w = rng.uniform(0, 4, count)
    return (
      jnp.asarray(x, jnp.float32),
      {'label': jnp.asarray(label)},
      jnp.asarray(w, jnp.float32),
      jax.random.key(seed),
    )


def time_of(logsnr):
  """Returns t of the cosine schedule at logsnr, from phi = a t + b."""
  b = np.arctan(np.exp(-10.0))
  a = np.arctan(np.exp(10.0)) - b
  return (schedule.angle(logsnr) - b) / a


def gaussian_flow(c: float, step: float, project=None):
  """Returns the v_fn with which a step of length `step` is the exact flow of N(0, c^2 I).

  z_s = r z_t with r^2 = (alpha_s^2 c^2 + sigma_s^2) / (alpha_t^2 c^2 + sigma_t^2), so
  v = (cos(d) - r) / sin(d) z.
  """

  def v_fn(z, logsnr, cond, w):
    t = time_of(logsnr)
    logsnr_s = COSINE(jnp.maximum(jnp.round((t - step) * 4096) / 4096, 0.0))
    alpha_t, sigma_t = schedule.alpha_sigma(logsnr)
    alpha_s, sigma_s = schedule.alpha_sigma(logsnr_s)
    r = jnp.sqrt((alpha_s**2 * c**2 + sigma_s**2) / (alpha_t**2 * c**2 + sigma_t**2))
    d = schedule.angle(logsnr) - schedule.angle(logsnr_s)
    return types.expand_like((jnp.cos(d) - r) / jnp.sin(d), z) * z

  return v_fn
