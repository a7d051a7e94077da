"""Encoder distillation: progressive halving of the steps of DDIM inversion, from data to noise."""

import jax
from jax import numpy as jnp

from gdistill.core import losses
from gdistill.core import schedule
from gdistill.core import types
from gdistill.stages import draw
from gdistill.stages import progressive


def loss(
  student: types.VFn,
  teacher: types.VFn,
  batch: dict,
  key: jax.Array,
  *,
  num_steps: jax.Array,
  noise: schedule.Schedule,
  weight: str,
  w_min: float,
  w_max: float,
  w_power: float = 0.0,
  on_trajectory: bool = False,
  project: types.Project | None = None,
  loss_project: types.Project | None = None,
) -> types.PerExample:
  """Returns the loss [B]: omega |v~ - v_hat(z_t, c, w)|^2 / (1 + w)^p at a random t and w.

  In the loss, t = i/N with i ~ U{0..N-1}, w ~ U[w_min, w_max], v~ is the value of `target`, v_hat
  is the student, p is `w_power`, N is `num_steps`, and `weight` names omega. All arguments mean the
  same as in `progressive.loss`. With `on_trajectory`, z_t lies on the teacher's own path from x to
  noise, where an encoder calls the network; otherwise z_t is noised data.
  """
  x, cond = batch['x'], batch['cond']
  keys_i, keys_eps, keys_w = draw.example_keys(key, batch['id'], 3)
  i = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(keys_i)
  i = i.astype(jnp.float32)
  w = draw.uniform(keys_w, w_min, w_max)
  t = i / num_steps
  if on_trajectory:
    z = draw.trajectory(teacher, x, cond, w, t, 0.5 / num_steps, noise, project, inverted=True)
  else:
    z = draw.noised_data(x, draw.normal_like(keys_eps, x), t, noise)
  v_target = target(teacher, z, i, num_steps, cond, w, noise, loss_project)
  logsnr = noise(t)
  v_hat = student(z, logsnr, cond, w)
  return losses.distilled(v_hat, v_target, z, logsnr, w, weight, w_power, loss_project)


def target(
  teacher: types.VFn,
  z: types.Images,
  i: types.PerExample,
  num_steps: jax.Array,
  cond: types.Cond,
  w: types.PerExample,
  noise: schedule.Schedule,
  project: types.Project | None = None,
) -> types.Images:
  """Returns v~: a DDIM step t -> t'' with v~ ends where the teacher's two steps t -> t' -> t'' end.

  v~ is `progressive.landing` at t = i/N, t' = t + 0.5/N, t'' = t + 1/N, so the differences d1 and
  d2 of the angle phi are negative. t = 0 needs no special case, because at phi = 0, x_hat equals z
  for every v, and `project` does not change the teacher's v.
  """
  logsnrs = [noise((i + ahead) / num_steps) for ahead in (0.0, 0.5, 1.0)]
  return progressive.landing(teacher, z, logsnrs, cond, w, project)
