"""Stage one: one w-conditioned network learns the prediction of the guided teacher."""

import jax
from jax import numpy as jnp

from gdistill.core import guidance
from gdistill.core import losses
from gdistill.core import schedule
from gdistill.core import types
from gdistill.stages import draw


def loss(
  student: types.VFn,
  teacher: guidance.Halves,
  batch: dict,
  key: jax.Array,
  *,
  noise: schedule.Schedule,
  weight: str,
  w_min: float,
  w_max: float,
  w_power: float = 0.0,
  ws_per_pass: int = 1,
  trajectory_steps: int = 0,
  project: types.Project | None = None,
  loss_project: types.Project | None = None,
) -> types.PerExample:
  """Returns the loss [B]: omega |v^w - v_hat(z_t, c, w)|^2 / (1 + w)^p at a random t and w.

  In the loss, t ~ U[0, 1], w ~ U[w_min, w_max], v_hat is the student, and `weight` names omega.
  Each example has its own random values of w. The exponent p is `w_power`; the paper uses p = 0. A
  larger p gives more weight in the loss to low w, at which the errors are small.

  The target v^w = v_c + w (v_c - v_null) is linear in w, so one pass of the teacher serves
  `ws_per_pass` values of w; the loss is the mean over these values of w. If `trajectory_steps` > 0,
  z_t lies on the guided teacher's own path from noise, in DDIM steps of length
  1 / trajectory_steps; otherwise z_t is noised data. With `loss_project`, errors of v_hat that a
  sampler's projection of x_hat removes do not count; see `losses.as_sampled`.
  """
  x, cond = batch['x'], batch['cond']
  keys_t, keys_eps, *keys_w = draw.example_keys(key, batch['id'], 2 + ws_per_pass)
  t, eps = draw.uniform(keys_t), draw.normal_like(keys_eps, x)
  ws = [draw.uniform(keys, w_min, w_max) for keys in keys_w]
  logsnr = noise(t)
  if trajectory_steps:
    guided = guidance.extrapolated(teacher)
    z = draw.trajectory(guided, eps, cond, ws[0], t, 1.0 / trajectory_steps, noise, project)
  else:
    z = draw.noised_data(x, eps, t, noise)
  v_cond, v_null = teacher(z, logsnr, cond)

  def repeated(a):
    return jnp.concatenate([a] * ws_per_pass)

  w = jnp.concatenate(ws)
  target = guidance.combine(repeated(v_cond), repeated(v_null), w)
  logsnrs, conds = repeated(logsnr), jax.tree.map(repeated, dict(cond))
  zs = repeated(z)
  v_hat = student(zs, logsnrs, conds, w)
  error = losses.distilled(v_hat, target, zs, logsnrs, w, weight, w_power, loss_project)
  return jnp.mean(error.reshape(ws_per_pass, -1), axis=0)
