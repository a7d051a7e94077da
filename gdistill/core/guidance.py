"""Classifier-free guidance: functions that take a model and return the guided model."""

from collections.abc import Callable

from jax import numpy as jnp

from gdistill.core import condition
from gdistill.core import types

# A function (z, logsnr, cond) -> (v_cond, v_null): the conditional and the null prediction, from
# which guidance extrapolates.
Halves = Callable[[types.Images, types.PerExample, types.Cond], tuple[types.Images, types.Images]]


def halves(
  v_fn: types.VFn,
  null: Callable[[types.Cond], types.Cond] = condition.null,
  other: types.VFn | None = None,
  one_batch: bool = False,
  channels: int = 0,
) -> Halves:
  """Returns a function (z, logsnr, cond) -> (v_cond, v_null): conditional and null prediction.

  `other` is the network that makes the null prediction; if `other` is None, `v_fn` makes both
  predictions. `other` may be a separately trained unconditional network, or a weaker conditional
  network with the identity function as `null` (autoguidance, Karras et al., arXiv 2406.02507). If
  `one_batch` is True and `other` is None, the conditional and the null pass of `v_fn` run as a
  single batch of 2B examples, which is faster on accelerators.

  If `channels` is not 0, only the first `channels` channels are guided: in the other channels,
  v_null is v_cond. DiT's and SiT's authors sample in this way, with 3 of 4 channels.
  """

  def predict(z, logsnr, cond):
    v_cond, v_null = both(z, logsnr, cond)
    if not channels:
      return v_cond, v_null
    return v_cond, jnp.concatenate([v_null[..., :channels], v_cond[..., channels:]], axis=-1)

  def both(z, logsnr, cond):
    zero = jnp.zeros_like(logsnr)
    if one_batch and other is None:
      z, logsnr, zero = (jnp.concatenate([a, a]) for a in (z, logsnr, zero))
      conds = {name: jnp.concatenate([cond[name], n]) for name, n in null(cond).items()}
      return tuple(jnp.split(v_fn(z, logsnr, conds, zero), 2))
    return v_fn(z, logsnr, cond, zero), (other or v_fn)(z, logsnr, null(cond), zero)

  return predict


def guided(
  v_fn: types.VFn,
  null: Callable[[types.Cond], types.Cond] = condition.null,
  other: types.VFn | None = None,
  one_batch: bool = False,
  channels: int = 0,
) -> types.VFn:
  """Returns the guided model v^w = (1 + w) v(z, c) - w v(z, null); w = 0 means no guidance.

  The arguments are those of `halves`.
  """
  return extrapolated(halves(v_fn, null, other, one_batch, channels))


def extrapolated(pair: Halves) -> types.VFn:
  """Returns the guided model (z, logsnr, cond, w) -> v^w; `pair` computes v_cond and v_null.

  Guidance in v equals guidance in x or eps as long as x_hat is not clipped.
  """

  def v_fn(z, logsnr, cond, w):
    v_cond, v_null = pair(z, logsnr, cond)
    return combine(v_cond, v_null, w)

  return v_fn


def combine(v_cond: types.Images, v_null: types.Images, w: types.PerExample) -> types.Images:
  """Returns (1 + w) v_cond - w v_null, computed so that w = 0 gives exactly v_cond."""
  return v_cond + types.expand_like(w, v_cond) * (v_cond - v_null)
