"""Editing: a picture is noised to a time t, then sampled from t under a new condition."""

import math

import jax

from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types
from gdistill.samplers import ddim
from gdistill.samplers import noise as image_noise
from gdistill.samplers import stochastic as stochastic_sampler


def on_grid(strength: float, num_steps: int) -> tuple[int, bool]:
  """Returns (start, exact): start/N is nearest to `strength`; `exact` says if it equals `strength`.

  `start` is a whole number from 1 to N = `num_steps`.
  """
  if not 0 < strength <= 1:
    raise ValueError(f'{strength=} must be above 0 and at most 1; give a value in this range')
  wanted = strength * num_steps
  start = max(1, math.floor(wanted + 0.5))
  return start, math.isclose(wanted, start, abs_tol=1e-6)  # rounding error: 0.29 * 100 != 29


def same_time(start: int, num_steps: int, encode_steps: int) -> int | None:
  """Returns `stop` with stop / encode_steps = start / num_steps, or None if `stop` is not whole."""
  stop, rest = divmod(start * encode_steps, num_steps)
  return None if rest else stop


def edit(
  v_fn: types.VFn,
  x: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  start: jax.Array | int,
  noise: schedule.Schedule,
  keys: types.Keys,
  project: types.Project | None = None,
  stochastic: bool = False,
) -> types.Images:
  """Adds noise to x, z_t = alpha x + sigma eps at t = start/N, and samples from z_t under `cond`.

  The noise eps depends only on the image's key and equals the noise z_1 from which sampling with
  that key starts. v_fn is called `start` times. Source: SDEdit, Meng et al., arXiv 2108.01073.
  """
  eps = image_noise.start(keys, x.shape[1:])
  z = process.diffuse(x, eps, noise(ddim.grid_time(start, num_steps, x)))
  return walk_on(v_fn, z, cond, w, num_steps, start, noise, keys, project, stochastic)


def walk_on(
  v_fn: types.VFn,
  z: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  start: jax.Array | int,
  noise: schedule.Schedule,
  keys: types.Keys,
  project: types.Project | None,
  stochastic: bool,
) -> types.Images:
  """Samples x from z_t at t = start/N, with DDIM or, if `stochastic`, the stochastic sampler.

  A distilled network needs the sampler that the network was distilled for.
  """
  if stochastic:
    return stochastic_sampler.sample(v_fn, z, cond, w, num_steps, noise, keys, project, start)
  return ddim.sample(v_fn, z, cond, w, num_steps, noise, project, start)
