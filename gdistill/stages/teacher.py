"""Teacher training: one network learns the conditional and the null model by label dropout."""

import jax

from gdistill.core import condition
from gdistill.core import losses
from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types
from gdistill.stages import draw


def loss(
  student: types.VFn,
  teacher: None,
  batch: dict,
  key: jax.Array,
  *,
  noise: schedule.Schedule,
  weight: str,
  p_uncond: float,
) -> types.PerExample:
  """Returns the loss [B]: omega |v - v_hat(z_t, c or null)|^2, with v = alpha eps - sigma x.

  In the loss, t ~ U[0, 1], v_hat is the network in training, and `weight` names omega. Each
  example's label c is replaced by the null label with probability `p_uncond`. `teacher` is always
  None; the argument exists because the losses of all stages take (student, teacher, batch, key).
  """
  x = batch['x']
  keys_t, keys_eps, keys_drop = draw.example_keys(key, batch['id'], 3)
  t, eps = draw.uniform(keys_t), draw.normal_like(keys_eps, x)
  cond = condition.drop(batch['cond'], keys_drop, p_uncond)
  logsnr = noise(t)
  v_hat = student(process.diffuse(x, eps, logsnr), logsnr, cond, 0.0 * t)
  return losses.weighted_mse(v_hat, process.v_from(x, eps, logsnr), logsnr, weight)
