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
