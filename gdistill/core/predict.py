"""Adapters that turn a network predicting x, eps, v or a flow velocity into a v_fn."""

from collections.abc import Callable

from gdistill.core import schedule
from gdistill.core import types

Network = Callable[[types.Images, types.PerExample, types.Cond, types.PerExample], types.Images]


def as_v(network: Network, predict: str, noise: schedule.Schedule) -> types.VFn:
  """Returns the v_fn (z, logsnr, cond, w) -> v_hat of a network that predicts 'x', 'eps' or 'v'.

  If the network predicts x, v = (alpha z - x) / sigma, which is undefined at sigma = 0. If the
  network predicts eps, v = (eps - sigma z) / alpha, which is undefined at alpha = 0.
  The returned v_fn first clips logsnr to the schedule's logsnr_min and logsnr_max, so that neither
  alpha nor sigma is 0.
  """

  def v_fn(z, logsnr, cond, w):
    shown = noise.shown(logsnr)
    output = network(z, shown, cond, w)
    if predict == 'v':
      return output
    alpha, sigma = (types.expand_like(a, z) for a in schedule.alpha_sigma(shown))
    return (alpha * z - output) / sigma if predict == 'x' else (output - sigma * z) / alpha

  return v_fn


def flow_as_v(network: Network) -> types.VFn:
  """Returns the v_fn of a flow-matching network, v = ((alpha - sigma) z - u) / (alpha + sigma).

  A network trained on the linear path y = t x + (1 - t) eps estimates u = dy/dt = x - eps. With
  t = alpha / (alpha + sigma), y is z / (alpha + sigma), x_hat is y + (1 - t) u, and eps_hat is
  y - t u, which gives v = alpha eps_hat - sigma x_hat. The formula for v never divides by zero,
  because alpha + sigma is at least 1. Source: Ma et al., arXiv 2401.08740.
  """

  def v_fn(z, logsnr, cond, w):
    alpha, sigma = (types.expand_like(a, z) for a in schedule.alpha_sigma(logsnr))
    u = network(z / (alpha + sigma), logsnr, cond, w)
    return ((alpha - sigma) * z - u) / (alpha + sigma)

  return v_fn
