"""Stage two: one step of the student learns to end where two steps of its teacher end."""

from collections.abc import Sequence

import jax
from jax import numpy as jnp

from gdistill.core import condition
from gdistill.core import losses
from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types
from gdistill.stages import draw

# Sampler -> (t - t', t - t'') in units of 1/N; t' and t'' are the ends of the teacher's two steps.
# Deterministic sampler: each of the teacher's two steps is half of the student's step of 1/N.
# Stochastic sampler: each of the teacher's two steps has length 1/N, because the student's step
# jumps by 2/N and forward noise then goes back by 1/N.
REACH = {'deterministic': (0.5, 1.0), 'stochastic': (1.0, 2.0)}


def loss(
  student: types.VFn,
  teacher: types.VFn,
  batch: dict,
  key: jax.Array,
  *,
  num_steps: jax.Array,
  noise: schedule.Schedule,
  sampler: str,
  weight: str,
  w_min: float,
  w_max: float,
  w_power: float = 0.0,
  p_uncond: float = 0.0,
  on_trajectory: bool = False,
  project: types.Project | None = None,
  loss_project: types.Project | None = None,
) -> types.PerExample:
  """Returns the loss [B]: omega |v~ - v_hat(z_t, c, w)|^2 / (1 + w)^p at a random t and w.

  In the loss, t = i/N with i ~ U{1..N}, w ~ U[w_min, w_max], v~ is the value of `target`, v_hat is
  the student, p is `w_power`, and `weight` names omega. N = `num_steps` may be a traced value, so
  one compiled train step serves every round of halving. `p_uncond` is the probability of label
  dropout in the naive baseline, which must distil the null (unconditional) model too. With
  `on_trajectory`, z_t lies on the teacher's own path from noise; otherwise z_t is noised data. With
  `loss_project`, the teacher's two steps project x_hat, as the teacher's sampler does, and errors
  of v_hat that a sampler's projection of x_hat removes do not count; see `losses.as_sampled`.
  """
  x = batch['x']
  keys_i, keys_eps, keys_w, keys_drop = draw.example_keys(key, batch['id'], 4)
  i = jax.vmap(lambda key: jax.random.randint(key, (), 1, num_steps + 1))(keys_i)
  i = i.astype(jnp.float32)
  eps, w = draw.normal_like(keys_eps, x), draw.uniform(keys_w, w_min, w_max)
  cond = condition.drop(batch['cond'], keys_drop, p_uncond) if p_uncond else batch['cond']
  t = i / num_steps
  if on_trajectory:
    z = draw.trajectory(teacher, eps, cond, w, t, REACH[sampler][0] / num_steps, noise, project)
  else:
    z = draw.noised_data(x, eps, t, noise)
  v_target = target(teacher, z, i, num_steps, cond, w, noise, sampler, loss_project)
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
  sampler: str,
  project: types.Project | None = None,
) -> types.Images:
  """Returns v~: a DDIM step t -> t'' with v~ ends where the teacher's two steps t -> t' -> t'' end.

  The time t is i/N, and `REACH` gives t' and t''. The formula of `landing` also holds at the ends
  of the grid of times. If t'' = 0, the x_hat of v~ is the teacher's x_hat at t'. In the last step
  of the stochastic sampler, t' = t'' = 0 and d2 = 0, so v~ is the teacher's v at t.
  """
  logsnrs = [noise(jnp.maximum(i - reach, 0.0) / num_steps) for reach in (0.0, *REACH[sampler])]
  return landing(teacher, z, logsnrs, cond, w, project)


def landing(
  teacher: types.VFn,
  z: types.Images,
  logsnrs: Sequence[types.PerExample],
  cond: types.Cond,
  w: types.PerExample,
  project: types.Project | None,
) -> types.Images:
  """Returns v~: a DDIM step t -> t'' with v~ ends where the teacher's two steps t -> t' -> t'' end.

  v~ = (sin d1 cos d2 v0 + sin d2 v1 - sin d1 sin d2 z_t) / sin(d1 + d2), d1 = phi_t - phi_t',
  d2 = phi_t' - phi_t'', where v0 and v1 are the teacher's v at t and t'. `logsnrs` holds the
  logsnr at t, t' and t''; t > t' > t'' in sampling, and t < t' < t'' in inversion. The formula for
  v~ is numerically stable, because no large terms cancel. With `project`, v0 and v1 are the v of
  the projected x_hat at t and t', so the x_hat of v~ is a weighted mean of both projected x_hat.
  """
  logsnr_t, logsnr_m, logsnr_s = logsnrs

  def v_at(z, logsnr):
    v = teacher(z, logsnr, cond, w)
    return v if project is None else process.project_v(z, v, logsnr, project)

  v0 = v_at(z, logsnr_t)
  v1 = v_at(process.ddim(z, v0, logsnr_t, logsnr_m), logsnr_m)
  phi_t, phi_m, phi_s = (schedule.angle(a) for a in (logsnr_t, logsnr_m, logsnr_s))
  d1, d2 = (types.expand_like(d, z) for d in (phi_t - phi_m, phi_m - phi_s))
  numerator = jnp.sin(d1) * jnp.cos(d2) * v0 + jnp.sin(d2) * v1 - jnp.sin(d1) * jnp.sin(d2) * z
  return numerator / jnp.sin(d1 + d2)
