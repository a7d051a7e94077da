"""Pictures from a finished round: one compiled sampler for every number of steps and every w."""

import copy
import math
from collections.abc import Callable

import jax
import numpy as np
from jax import numpy as jnp

from gdistill import errors
from gdistill import interrupt
from gdistill import model
from gdistill.core import guidance
from gdistill.core import projections
from gdistill.samplers import ancestral
from gdistill.samplers import ddim
from gdistill.samplers import dpm_solver
from gdistill.samplers import noise as image_noise
from gdistill.samplers import stochastic

SAMPLERS = ('ddim', 'stochastic', 'ancestral', 'dpm_solver')


class Sampler:
  """(seeds [B], labels [B], w [B], num_steps) -> pixels [B, H, W, C] uint8, for one batch size.

  Each image is a function of its own seed, label, w and the number of steps. x_hat is clipped to
  [-1, 1] in every step. Compiled once: the number of steps and the parameters are arguments.
  A batch is spread over this process's devices.
  """

  def __init__(self, folder: model.Folder, sampler: str, batch_size: int):
    self.batch_size = batch_size
    self._program = _program(folder, sampler)
    devices = jax.local_devices()
    count = math.gcd(batch_size, len(devices))
    mesh = jax.sharding.Mesh(np.array(devices[:count]), ('data',))
    self._whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    self._rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    self._params = jax.device_put(folder.params, self._whole)
    net = model.build(folder.settings, folder.takes_w)
    schedule = model.noise(folder.noise)
    shape = model.image_shape(folder.settings)

    def draw(params, seeds, labels, w, num_steps):
      v_fn = model.as_v_fn(net, params, folder.settings, schedule)
      if folder.guided:
        v_fn = guidance.guided(v_fn)
      keys = image_noise.image_keys(seeds)
      z, cond = image_noise.start(keys, shape), {'label': labels}
      x = _walk(sampler)(v_fn, z, cond, w, num_steps, schedule, keys)
      return jnp.round((jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)

    shardings = (self._whole, *(self._rows,) * 3, self._whole)
    jitted = jax.jit(draw, in_shardings=shardings, out_shardings=self._rows)
    empty = self._arguments(np.zeros(1), np.zeros(1), np.zeros(1), 1)
    self._draw = jitted.lower(self._params, *empty).compile()
    self._draw(self._params, *empty)  # the first call pays for set-up

  def _arguments(self, seeds, labels, w, num_steps) -> tuple:
    """One batch's arrays, padded by repetition, where the program expects them."""
    kinds = (np.uint32, np.int32, np.float32)
    rows = [
      np.resize(a, self.batch_size).astype(kind)
      for a, kind in zip((seeds, labels, w), kinds, strict=True)
    ]
    return (*jax.device_put(rows, self._rows), jax.device_put(np.int32(num_steps), self._whole))

  def draw(self, seeds, labels, w, num_steps: int) -> jax.Array:
    """One batch of at most batch_size images, on the devices; filled up by repetition."""
    return self._draw(self._params, *self._arguments(seeds, labels, w, num_steps))

  def serves(self, folder: model.Folder, sampler: str) -> bool:
    """Whether this compiled program also draws from that folder, given its parameters."""
    return self._program == _program(folder, sampler)

  def with_params(self, folder: model.Folder) -> 'Sampler':
    """The same program with another round's parameters."""
    other = copy.copy(self)
    other._params = jax.device_put(folder.params, self._whole)
    return other

  def __call__(
    self,
    seeds: np.ndarray,
    labels: np.ndarray,
    w: np.ndarray,
    num_steps: int,
    stop: interrupt.Interrupt | None = None,
    progress: Callable[[int], None] = lambda done: None,
  ) -> np.ndarray:
    """Any number of images, batch by batch; polls `stop` and reports between batches."""
    out = []
    for first in range(0, len(seeds), self.batch_size):
      rows = slice(first, first + self.batch_size)
      count = len(seeds[rows])
      out.append(np.asarray(self.draw(seeds[rows], labels[rows], w[rows], num_steps))[:count])
      progress(first + count)
      if stop is not None:
        stop.check()
    return np.concatenate(out)


def _program(folder: model.Folder, sampler: str) -> tuple:
  return folder.settings, folder.noise, folder.takes_w, folder.guided, sampler


def _walk(sampler: str) -> Callable:
  """The sampler's function, given keys whether it draws noise or not."""
  clip = projections.clip
  if sampler in ('ddim', 'dpm_solver'):
    sample = {'ddim': ddim, 'dpm_solver': dpm_solver}[sampler].sample
    return lambda v_fn, z, cond, w, n, schedule, keys: sample(v_fn, z, cond, w, n, schedule, clip)
  sample = {'stochastic': stochastic, 'ancestral': ancestral}[sampler].sample
  return lambda v_fn, z, cond, w, n, schedule, keys: sample(
    v_fn, z, cond, w, n, schedule, keys, clip
  )


def own_sampler(card: dict) -> str:
  """The sampler a round was distilled for."""
  return 'stochastic' if card.get('sampler') == 'stochastic' else 'ddim'


def check_steps(card: dict, num_steps: int, sampler: str) -> None:
  """A distilled network knows only its own grid."""
  trained = card['num_steps']
  if not 1 <= num_steps <= 100_000:
    raise errors.ConfigError(f'--num_steps={num_steps} must be from 1 to 100000')
  if sampler not in SAMPLERS:
    raise errors.ConfigError(f'--sampler={sampler!r} must be one of {", ".join(SAMPLERS)}')
  if trained and num_steps != trained:
    raise errors.ConfigError(
      f'--num_steps={num_steps} is outside the grid of this student, which was distilled for '
      f'{trained}; sample with --num_steps={trained}, or from another round'
    )
  if trained and sampler != own_sampler(card):
    raise errors.ConfigError(
      f'--sampler={sampler!r} is not what this student was distilled for; '
      f'use --sampler={own_sampler(card)}'
    )
