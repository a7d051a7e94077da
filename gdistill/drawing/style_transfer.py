"""Style transfer: inverts a picture under its own class A and samples under a new class B."""

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
  """Inverts x to z_1 with `encode` under `cond_a`, then samples with `decode` under `cond_b`.

  If `stop` and `start` are given, inversion ends and sampling starts at the time t = stop /
  encode_steps = start / decode_steps (see `edit.same_time`): the result is an edit of x that keeps
  the noise found by inversion. `encode` is called `stop` times (default `encode_steps`), and
  `decode` is called `start` times (default `decode_steps`). One undistilled network may serve as
  `encode` and as `decode`; a distilled network works in one direction, with one number of steps.
  Source: dual diffusion implicit bridges, Su et al., arXiv 2203.08382.
  """
  z = ddim.invert(encode, x, cond_a, w_a, encode_steps, noise, project, stop)
  return ddim.sample(decode, z, cond_b, w_b, decode_steps, noise, project, start)
