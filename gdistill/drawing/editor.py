"""Compiled functions with which a finished round edits, inpaints or style-transfers pictures."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gdistill import errors
from gdistill.core import masks
from gdistill.core import pixels as core_pixels
from gdistill.core import projections
from gdistill.devices import mesh as meshes
from gdistill.drawing import edit
from gdistill.drawing import inpaint
from gdistill.drawing import sampling
from gdistill.drawing import style_transfer
from gdistill.frozen import networks as frozen_networks
from gdistill.process import interrupt
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.samplers import noise as image_noise

# Arrays by name, with one row for each of n pictures. 'pixels' [n, H, W, C] uint8 are the source
# pictures, 'seeds' [n] are the seeds. 'labels', 'w' and, if the network reads text, 'prompts'
# (token ids, token mask) are the conditions of the pictures to draw; 'from_labels', 'from_w' and
# 'from_prompts' are the conditions of the source pictures. 'mask' [n, H, W, 1] is 1 where a picture
# is to be painted.
Rows = Mapping[str, Any]
# Returns (pixels [n, H, W, C] uint8, finite [n]: whether the values of a picture are finite).
Draw = Callable[[tuple, Rows, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]


class Editor:
  """A compiled function (rows, counts) -> pixels [n, H, W, C] uint8, for any number of rows.

  `counts` holds numbers of steps by name, such as 'num_steps'. The function `draw(params, rows,
  counts)` is compiled once for every size of picture; `params` are all parameters that `draw`
  needs. Rows are drawn in batches, which are split over this process's devices; the picture of a
  row depends on that row alone. `path` is the folder of the round that draws, for error lines.
  """

  def __init__(self, draw: Draw, params: Any, batch_size: int, path: Any):
    self.batch_size, self._path = batch_size, path
    self._whole, self._rows = meshes.over_local_devices(batch_size)
    self._params = jax.device_put(params, self._whole)
    self._draw = jax.jit(
      meshes.by_rows(draw, self._rows.mesh, (False, True, False)),
      in_shardings=(self._whole, self._rows, self._whole),
      out_shardings=self._rows,
    )

  def __call__(
    self,
    rows: Rows,
    counts: Mapping[str, int],
    stop: interrupt.Interrupt | None = None,
    progress: Callable[[int], None] = lambda done: None,
  ) -> np.ndarray:
    """Returns the pictures of all rows, drawn in batches.

    After each batch, `progress(n)` is called, where n is the number of rows drawn so far, and then
    `stop.check()`, which raises Preempted if a signal asked this process to exit. The last batch is
    filled up with repeated rows, which are not returned. Raises NumericsError if a picture is not
    finite.
    """
    total, out = len(rows['pixels']), []
    counts, num_steps = {name: np.int32(n) for name, n in counts.items()}, counts['num_steps']
    for first in range(0, total, self.batch_size):
      index = np.resize(np.arange(first, min(first + self.batch_size, total)), self.batch_size)
      batch = jax.device_put(jax.tree.map(lambda a: np.asarray(a)[index], dict(rows)), self._rows)
      drawn, finite = self._draw(self._params, batch, counts)
      done = min(first + self.batch_size, total)
      about = {'seed': rows['seeds'][first:done], 'w': rows['w'][first:done]}
      sampling.check_finite(finite, self._path, about, num_steps)
      out.append(np.asarray(drawn)[: done - first])
      progress(done)
      if stop is not None:
        stop.check()
    return np.concatenate(out)


def editor(
  folder: folders.Folder,
  frozen: frozen_networks.Frozen,
  batch_size: int,
  encoder: folders.Folder | None = None,
  negative: str | None = None,
) -> Editor:
  """Returns an Editor that edits pictures by sampling from z_t at t = start / num_steps.

  The editor takes the counts 'num_steps' and 'start', and with an `encoder` also 'encode_steps' and
  'encode_stop'. Without an `encoder`, z_t is the picture with noise from the picture's seed. With
  an `encoder`, z_t is the picture inverted under the condition of the source picture, by the first
  'encode_stop' of 'encode_steps' steps; inversion up to t = 1 is style transfer. `negative` is a
  negative prompt, away from which guidance leads.
  """
  of = _Networks(folder, frozen, encoder, negative)

  def draw(params, rows, counts):
    x, cond, keys = of.images(params, rows), of.cond(params, rows), of.keys(rows)
    v_fn = of.v_fn(params)
    if encoder is None:
      z = edit.edit(
        v_fn, x, cond, rows['w'], counts['num_steps'], counts['start'], of.noise, keys, of.project,
        stochastic=of.stochastic,
      )  # fmt: skip
    else:
      z = style_transfer.transfer(
        of.encoder_v_fn(params), v_fn, x, of.cond(params, rows, 'from_'), cond, rows['from_w'],
        rows['w'], counts['encode_steps'], counts['num_steps'], of.noise, of.project,
        counts['encode_stop'], counts['start'],
      )  # fmt: skip
    return of.pixels(params, z)

  return Editor(draw, of.params, batch_size, folder.path)


def painter(
  folder: folders.Folder,
  frozen: frozen_networks.Frozen,
  batch_size: int,
  exact: bool,
  negative: str | None = None,
) -> Editor:
  """Returns an Editor that paints pictures where 'mask' is 1; its only count is 'num_steps'.

  A network with extra input channels gets the mask and the masked picture; with any other network,
  the estimate x_hat is replaced by the source picture at each step where 'mask' is 0. With `exact`,
  the pixels where 'mask' is 0 are returned unchanged. `negative` is a negative prompt, away from
  which guidance leads.
  """
  of = _Networks(folder, frozen, None, negative)

  def draw(params, rows, counts):
    cond, keys, mask = of.cond(params, rows), of.keys(rows), rows['mask']
    x = of.images(params, rows)
    rest = rows['w'], counts['num_steps'], of.noise, keys, of.project
    if folder.settings.extra_channels:
      images = core_pixels.to_images(rows['pixels'])
      left = frozen.encode(params[0][1], images * (1.0 - mask))
      cond['extra'] = masks.condition(masks.smaller(mask, of.factor), left)
      z = inpaint.inpaint(of.v_fn(params), x, cond, *rest, stochastic=of.stochastic)
    else:
      # A latent counts as known only if no pixel in the block of pixels that the latent encodes is
      # to be painted.
      small = masks.covering(mask, of.factor)
      z = inpaint.constrained(of.v_fn(params), x, small, cond, *rest, stochastic=of.stochastic)
    drawn, finite = of.pixels(params, z)
    return inpaint.composite(drawn, rows['pixels'], mask) if exact else drawn, finite

  return Editor(draw, of.params, batch_size, folder.path)


class _Networks:
  """The networks that `draw` calls inside jit: of the drawing round and of an encoder's round."""

  def __init__(self, folder, frozen, encoder, negative):
    self._folder, self._frozen, self._encoder = folder, frozen, encoder
    self._negative = None if negative is None else frozen.tokens([negative])
    other = encoder is not None and encoder is not folder
    self.params = (
      sampling.arguments(folder, frozen),
      sampling.arguments(encoder, frozen_networks.Frozen()) if other else None,
    )
    self.noise = networks.noise(folder.noise)
    self.factor = frozen.autoencoder.factor if frozen.autoencoder else 1
    self.project = projections.unhidden(networks.projection(frozen.autoencoder is not None))
    self.stochastic = sampling.own_sampler(folder.card) == 'stochastic'

  def v_fn(self, params):
    return sampling.as_v_fn(self._folder, self._frozen, params[0], self._negative)

  def encoder_v_fn(self, params):
    return sampling.as_v_fn(self._encoder, self._frozen, params[1] or params[0], None)

  def cond(self, params, rows, whose=''):
    around, settings = params[0][1], self._folder.settings
    cond = {'label': rows[f'{whose}labels']}
    cond |= self._frozen.text_of(around, rows.get(f'{whose}prompts'))
    if settings.extra_channels:
      count, height, width, _ = rows['pixels'].shape
      shape = count, height // self.factor, width // self.factor, settings.image_channels
      cond['extra'] = sampling.nothing_known(self._frozen, around, shape)
    return cond

  def keys(self, rows):
    return image_noise.image_keys(rows['seeds'])

  def images(self, params, rows):
    return self._frozen.encode(params[0][1], core_pixels.to_images(rows['pixels']))

  def pixels(self, params, x):
    images = self._frozen.decode(params[0][1], x)
    return core_pixels.from_images(images), core_pixels.finite(x, images)


def check_pair(card: Mapping[str, Any], encoder: Mapping[str, Any], where: str) -> None:
  """Raises ConfigError if the encoder round in `where` does not fit the round that draws.

  `card` and `encoder` are the contents of the card.json of the two rounds.
  """
  about = [_of_process(c) for c in (card, encoder)]
  for what, ours in about[0].items():
    if about[1][what] != ours:
      raise errors.ConfigError(
        f'--encoder={where} does not fit --folder: the {what} of --encoder is {about[1][what]}, '
        f'and the {what} of --folder is {ours}; give an encoder of the same run as --encoder'
      )


def _of_process(card):
  """Returns the properties in which an encoder's round and the round that draws must agree."""
  settings, noise = folders.settings_of(card)
  latents = card.get('latents') or {}
  return {
    'noise': noise,
    'shape of picture': networks.image_shape(settings),
    'number of classes': settings.num_classes,
    'model.extra_channels': settings.extra_channels,
    'autoencoder': latents.get('autoencoder'),
    'text encoder': (latents.get('text'), latents.get('text_length')),
  }
