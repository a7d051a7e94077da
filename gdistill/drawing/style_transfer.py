"""Style transfer: encoded into noise as what a picture is, decoded as what it is to become."""

import jax

from gdistill.core import schedule
from gdistill.core import types
from gdistill.samplers import ddim


def transfer(
  encode: types.VFn,
  decode: types.VFn,
  x: types.Images,
  cond_a: types.Cond,
  cond_b: types.Cond,
  w_a: types.PerExample,
  w_b: types.PerExample,
  encode_steps: jax.Array | int,
  decode_steps: jax.Array | int,
  noise: schedule.Schedule,
  project: types.Project | None = None,
  stop: jax.Array | int | None = None,
  start: jax.Array | int | None = None,
) -> types.Images:
  """x -> z_1 by `encode` under A, z_1 -> x' by `decode` under B.

  With `stop` and `start` it turns back at t = stop / encode_steps = start / decode_steps
  (`edit.same_time`), in as many calls: an edit with the picture's own noise. One undistilled
  network may do both; a distilled one knows a single direction and number of steps. Source: dual
  diffusion implicit bridges, Su et al., 2203.08382.
  """
  z = ddim.invert(encode, x, cond_a, w_a, encode_steps, noise, project, stop)
  return ddim.sample(decode, z, cond_b, w_b, decode_steps, noise, project, start)
