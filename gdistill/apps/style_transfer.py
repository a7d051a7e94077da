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
) -> types.Images:
  """x -> z_1 by `encode` under A, z_1 -> x' by `decode` under B.

  One undistilled network may do both; a distilled one knows a single direction and number of steps.
  Source: dual diffusion implicit bridges, Su et al., 2203.08382.
  """
  z = ddim.invert(encode, x, cond_a, w_a, encode_steps, noise, project)
  return ddim.sample(decode, z, cond_b, w_b, decode_steps, noise, project)


def round_trip(
  encode: types.VFn,
  decode: types.VFn,
  x: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  encode_steps: jax.Array | int,
  decode_steps: jax.Array | int,
  noise: schedule.Schedule,
  project: types.Project | None = None,
) -> types.Images:
  """The transfer from A to A; what it changes in x is the error of the two walks."""
  return transfer(encode, decode, x, cond, cond, w, w, encode_steps, decode_steps, noise, project)
