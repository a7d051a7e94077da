"""Samples from a finished round: one compiled program for every number of steps and every w."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from gdistill import errors
from gdistill.core import condition
from gdistill.core import guidance
from gdistill.core import masks
from gdistill.core import pixels as core_pixels
from gdistill.core import projections
from gdistill.core import types
from gdistill.devices import mesh as meshes
from gdistill.frozen import networks as frozen_networks
from gdistill.frozen import prompts as run_prompts
from gdistill.process import interrupt
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.samplers import ancestral
from gdistill.samplers import ddim
from gdistill.samplers import dpm_solver
from gdistill.samplers import noise as image_noise
from gdistill.samplers import stochastic

SAMPLERS = ('ddim', 'stochastic', 'ancestral', 'dpm_solver')
# Largest w of a guided network. Guidance multiplies the difference of two predictions by w, and
# with it the rounding errors of both: at w = 1000, errors of float32 reach the grey levels of a
# picture, and those of bfloat16 exceed its whole range. Published pictures have w from 0 to 20.
MOST_W = 1000.0
# Which arguments of the function that `drawing` returns have a row for each picture.
SPLIT = False, True, False, False


class Sampler:
  """A compiled function (seeds [B], labels [B], w [B], num_steps) -> pixels [B, H, W, C] uint8.

  Each image is a function of the image's seed, label and w, and of the number of steps. If the
  round has no autoencoder, the estimate x_hat of the image is clipped to [-1, 1] in every step. If
  the network reads text, `labels` are indices into the sampler's prompts, by default the prompts in
  the round's card.json. The program is compiled once, for one batch size, from token ids to pixels;
  the number of steps, the tokens and the parameters are arguments of the program. A batch is split
  over this process's devices.
  """

  def __init__(
    self,
    folder: folders.Folder,
    sampler: str,
    batch_size: int,
    frozen: frozen_networks.Frozen | None = None,
    negative: str | None = None,
  ):
    self.batch_size = batch_size
    self._frozen = frozen or frozen_networks.read_frozen(folder)
    self._program = _program(folder, sampler)
    self._path = folder.path
    self._prompts = self._frozen.tokens(run_prompts.of_card(folder.card) or [''], warn=False)
    self._negative = None if negative is None else self._frozen.tokens([negative])
    self._whole, self._rows = meshes.over_local_devices(batch_size)
    self._params = jax.device_put(arguments(folder, self._frozen), self._whole)
    draw = drawing(folder, self._frozen, sampler)
    jitted = jax.jit(
      meshes.by_rows(draw, self._rows.mesh, SPLIT),
      in_shardings=(self._whole, self._rows, self._whole, self._whole),
      out_shardings=self._rows,
    )
    empty = self._arguments(np.zeros(1), np.zeros(1), np.zeros(1), 1)
    self._draw = jitted.lower(self._params, *empty).compile()
    self._draw(self._params, *empty)  # warm-up, because the first call takes longest

  def _arguments(self, seeds, labels, w, num_steps) -> tuple:
    """Returns a batch's arrays on the devices, filled up to `batch_size` with repeated rows."""
    kinds = {'seeds': np.uint32, 'labels': np.int32, 'w': np.float32}
    rows = {
      name: np.resize(a, self.batch_size).astype(kind)
      for (name, kind), a in zip(kinds.items(), (seeds, labels, w), strict=True)
    }
    if self._prompts is not None:
      rows['prompts'] = tuple(a[rows['labels']] for a in self._prompts)
    whole = jax.device_put((self._negative, np.int32(num_steps)), self._whole)
    return (jax.device_put(rows, self._rows), *whole)

  def draw(self, seeds, labels, w, num_steps: int) -> jax.Array:
    """Returns the pixels of one batch, [batch_size, H, W, C] on the devices.

    A batch of fewer than `batch_size` images is filled up with repeated images.
    """
    return self.draw_both(seeds, labels, w, num_steps)[0]

  def draw_both(self, seeds, labels, w, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Returns (pixels, x) of a batch; x is the network's output: latents, or images in [-1, 1].

    Raises NumericsError if a picture of the batch is not finite.
    """
    given = self._arguments(seeds, labels, w, num_steps)
    pixels, x, finite = self._draw(self._params, *given)
    check_finite(finite, self._path, {'seed': seeds, 'w': w}, num_steps)
    return pixels, x

  @property
  def num_prompts(self) -> int:
    """Returns the number of the sampler's prompts, or 0 if the network reads no text."""
    return 0 if self._prompts is None else len(self._prompts[0])

  def with_prompts(self, prompts: Sequence[str]) -> 'Sampler':
    """Returns a copy of this sampler with other prompts; the copy shares the compiled program."""
    other = copy.copy(self)
    other._prompts = self._frozen.tokens(prompts)
    return other

  def serves(self, folder: folders.Folder, sampler: str) -> bool:
    """Returns whether the compiled program can draw from the round in `folder` with `sampler`."""
    return self._program == _program(folder, sampler)

  def with_params(self, folder: folders.Folder) -> 'Sampler':
    """Returns a copy of this sampler with the parameters of the round `folder`, not recompiled."""
    other = copy.copy(self)
    other._params = jax.device_put(arguments(folder, self._frozen), self._whole)
    other._path = folder.path
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
    """Returns the pixels of any number of images, drawn in batches.

    After each batch, `progress(n)` is called, where n is the number of images drawn so far, and
    then `stop.check()`, which raises Preempted if a signal asked this process to exit. Raises
    NumericsError if a picture is not finite.
    """
    out = []
    for first in range(0, len(seeds), self.batch_size):
      rows = slice(first, first + self.batch_size)
      count = len(seeds[rows])
      out.append(np.asarray(self.draw(seeds[rows], labels[rows], w[rows], num_steps))[:count])
      progress(first + count)
      if stop is not None:
        stop.check()
    return np.concatenate(out)


def drawing(folder: folders.Folder, frozen: frozen_networks.Frozen, sampler: str) -> Callable:
  """Returns a function (params, rows, negative, num_steps) -> (pixels, x, finite), to be compiled.

  `params` are those of `arguments`. `rows` has the seeds, labels and strengths w of a batch, and
  its prompts as tokens if the network reads text. `finite` [B] tells which pictures are finite.
  """
  schedule = networks.noise(folder.noise)
  shape = networks.image_shape(folder.settings)
  project = networks.projection(frozen.autoencoder is not None)
  walk = _walk(sampler, projections.unhidden(project))

  def draw(params, rows, negative, num_steps):
    _, around = params
    v_fn = as_v_fn(folder, frozen, params, negative)
    keys = image_noise.image_keys(rows['seeds'])
    cond = {'label': rows['labels'], **frozen.text_of(around, rows.get('prompts'))}
    if folder.settings.extra_channels:
      cond['extra'] = nothing_known(frozen, around, (len(rows['seeds']), *shape))
    x = walk(v_fn, image_noise.start(keys, shape), cond, rows['w'], num_steps, schedule, keys)
    images = frozen.decode(around, x)
    return core_pixels.from_images(images), x, core_pixels.finite(x, images)

  return draw


def check_finite(finite: Any, folder: Any, rows: Mapping[str, Any], num_steps: int) -> None:
  """Raises NumericsError if one of the pictures of a batch is not finite: `finite` [B] is False.

  `rows` holds the seeds and strengths w of the pictures, {'seed': [n], 'w': [n]}, n <= B. The error
  names the round in `folder` that drew the pictures and the first picture that is not finite.
  """
  count = len(rows['seed'])
  bad = np.flatnonzero(~np.asarray(finite)[:count])
  if len(bad):
    seed, w = (rows[name][bad[0]] for name in ('seed', 'w'))
    raise errors.NumericsError(
      f'{len(bad)} of {count} pictures drawn from {folder} are not finite (NaN or infinity), the '
      f'first with seed {seed}, w = {w:g} and {num_steps} step{"s" if num_steps > 1 else ""}, so '
      'they are not written; use a smaller w; if that does not help, the weights are damaged or '
      'the training failed: train or import the round again'
    )


def _program(folder: folders.Folder, sampler: str) -> tuple:
  about = folder.card.get('latents') or {}
  frozen = tuple(about.get(name) for name in ('autoencoder', 'text', 'text_length'))
  return folder.net, folder.settings, folder.noise, folder.guided, sampler, frozen


def arguments(folder: folders.Folder, frozen: frozen_networks.Frozen) -> tuple[Any, dict[str, Any]]:
  """Returns (the network's parameters, {name: parameters} of further networks) for `as_v_fn`.

  The further networks are the frozen networks (such as an autoencoder) and, under the name 'null',
  the unconditional network if the round has an unconditional network.
  """
  null = {} if folder.null_params is None else {'null': folder.null_params}
  return folder.params, frozen.params | null


def as_v_fn(
  folder: folders.Folder,
  frozen: frozen_networks.Frozen,
  params: tuple[Any, dict[str, Any]],
  negative: Any,
) -> types.VFn:
  """Returns the velocity function v_fn of a round; call inside jit with `params` from `arguments`.

  If the round needs guidance when the round is sampled, v_fn is guided with strength w, away from
  the prompt `negative`, or away from the null condition if `negative` is None. If the round has a
  separate unconditional network, guidance leads away from the output of the unconditional network.
  """
  params, around = params
  schedule = networks.noise(folder.noise)
  v_fn = networks.as_v_fn(folder.net, params, folder.settings, schedule)
  if not folder.guided:
    return v_fn
  against = frozen.text_of(around, negative)
  null = condition.instead(against) if against else condition.null
  other = None
  if 'null' in around:
    other = networks.as_v_fn(folder.net, around['null'], folder.settings, schedule)
  return guidance.guided(v_fn, null, other, channels=folder.settings.guided_channels)


def nothing_known(
  frozen: frozen_networks.Frozen, params: dict[str, Any], shape: tuple[int, ...]
) -> types.Images:
  """Returns the cond['extra'] with which an inpainting network paints every pixel of a picture.

  In cond['extra'], the mask is 1 everywhere and the masked picture is grey. Call `nothing_known`
  inside jit.
  """
  factor = frozen.autoencoder.factor if frozen.autoencoder else 1
  channels = 3 if frozen.autoencoder else shape[3]
  grey = jnp.zeros((1, shape[1] * factor, shape[2] * factor, channels))
  left = jnp.broadcast_to(frozen.encode(params, grey), shape)
  return masks.condition(jnp.ones((*shape[:3], 1)), left)


def _walk(sampler: str, project: types.Project | None) -> Callable:
  """Returns the sampler as a function that takes keys; a sampler without noise ignores the keys."""
  if sampler in ('ddim', 'dpm_solver'):
    sample = {'ddim': ddim, 'dpm_solver': dpm_solver}[sampler].sample
    return lambda v_fn, z, cond, w, n, noise, keys: sample(v_fn, z, cond, w, n, noise, project)
  sample = {'stochastic': stochastic, 'ancestral': ancestral}[sampler].sample
  return lambda v_fn, z, cond, w, n, noise, keys: sample(v_fn, z, cond, w, n, noise, keys, project)


def own_sampler(card: dict) -> str:
  """Returns the sampler that a round was distilled for; 'ddim' for an undistilled round."""
  return 'stochastic' if card.get('sampler') == 'stochastic' else 'ddim'


def check_draws(folder: Any, card: dict) -> None:
  """Raises ConfigError if the round is an encoder, which turns pictures into noise."""
  if card['stage'] == 'encoder':
    raise errors.ConfigError(
      f'{folder} is an encoder of N = {card["num_steps"]}, which turns pictures into noise and '
      'cannot draw; give the folder of a teacher or student, or give this encoder to gdistill '
      'transfer as --encoder'
    )


def check_steps(folder: Any, card: dict, num_steps: int, sampler: str) -> None:
  """Raises ConfigError if the round cannot draw with this sampler and this number of steps."""
  check_draws(folder, card)
  trained = card['num_steps']
  check_count('--num_steps', num_steps, folder, card)
  if sampler not in SAMPLERS:
    raise errors.ConfigError(f'--sampler={sampler!r} must be one of {", ".join(SAMPLERS)}')
  if trained and num_steps != trained:
    raise errors.ConfigError(
      f'--num_steps={num_steps}: this student was distilled for num_steps={trained}; '
      f'use --num_steps={trained}, or sample from another round'
    )
  if trained and sampler != own_sampler(card):
    raise errors.ConfigError(
      f'--sampler={sampler!r}: this student was distilled for the sampler '
      f'{own_sampler(card)}; use --sampler={own_sampler(card)}, or sample from another round'
    )


def check_count(flag: str, num_steps: int, folder: Any, card: dict) -> None:
  """Raises ConfigError unless `num_steps` is from 1 to the number of times of the round's schedule.

  A continuous noise schedule takes up to 100,000 steps. A discrete one of T betas takes T: with
  more steps, neighbouring steps have the same noise level. `flag` is named in the error.
  """
  noise = folders.settings_of(card)[1]
  times = networks.times(noise)
  if not 1 <= num_steps <= (times or 100_000):
    why = f', because the noise schedule {noise.name} of {folder} has {times} times'
    raise errors.ConfigError(
      f'{flag}={num_steps} must be from 1 to {times or 100_000}{why if times else ""}'
    )


def check_w(given: str, w: float, card: dict) -> None:
  """Raises ConfigError unless w is from 0 to MOST_W, or to the largest w of the student's training.

  `given` is the flag with its value, which the error names.
  """
  most = max(MOST_W, card.get('w_max') or 0.0)
  if not 0 <= w <= most:
    raise errors.ConfigError(
      f'{given} must be a number of at least 0 and at most {most:g}: guidance multiplies rounding '
      'errors by w, and beyond this nothing else is left; usual strengths are from 0 to 20'
    )


def rounding(card: dict, num_steps: int) -> str:
  """Returns a sentence on the times that diffusers rounds at N = `num_steps`; '' if it rounds none.

  The times t = i/N, i = 1 to N, of a discrete schedule with T betas have the timesteps T i/N - 1,
  between which gdistill interpolates. The schedulers of diffusers take whole timesteps.
  """
  times = networks.times(folders.settings_of(card)[1])
  rounded = num_steps - math.gcd(num_steps, times) if times else 0
  if not rounded:
    return ''
  first = times * (num_steps - 1) / num_steps - 1  # the first timestep that is not whole
  return (
    f'{num_steps} steps do not divide the {times} timesteps of this noise schedule, so that '
    f'{rounded} of the {num_steps} timesteps are not whole, the first {first:.2f}: diffusers would '
    f'round it to {round(first + 1) - 1}, and its pictures would differ slightly'
  )
