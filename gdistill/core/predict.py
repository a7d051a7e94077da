"""Networks that predict x, eps or v, adapted once to the one interface: they return v."""

from collections.abc import Callable

from gdistill.core import schedule
from gdistill.core import types

Network = Callable[[types.Images, types.PerExample, types.Cond, types.PerExample], types.Images]


def as_v(network: Network, predict: str, noise: schedule.Schedule) -> types.VFn:
  """(z, logsnr, cond, w) -> v_hat from a network whose output is 'x', 'eps' or 'v'.

  x: v = (alpha z - x) / sigma, eps: v = (eps - sigma z) / alpha, so an x-network has no v where
  sigma = 0 and an eps-network none where alpha = 0; both divide at the limits of the schedule
  at worst, because that is all a network is ever shown.
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
  """v = ((alpha - sigma) z - u) / (alpha + sigma), u what `network` says of z / (alpha + sigma).

  A network of the linear path y = t x + (1 - t) eps estimates u = dy/dt = x - eps. With
  t = alpha / (alpha + sigma), y is z / (alpha + sigma); x_hat = y + (1 - t) u and
  eps_hat = y - t u, and v = alpha eps_hat - sigma x_hat. No level is singular. Source: Ma et al.,
  2401.08740.
  """

  def v_fn(z, logsnr, cond, w):
    alpha, sigma = (types.expand_like(a, z) for a in schedule.alpha_sigma(logsnr))
    u = network(z / (alpha + sigma), logsnr, cond, w)
    return ((alpha - sigma) * z - u) / (alpha + sigma)

  return v_fn
