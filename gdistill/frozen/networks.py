"""Reads and calls the frozen networks of latent diffusion: the autoencoder and the text encoder."""

import atexit
import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.data import caption_files
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.workdir import storage

AUTOENCODER = 'autoencoder'  # name of the autoencoder's folder in a workdir or a round's folder
_MOST_SAID = 5  # most warnings printed about prompts that are too long


@functools.lru_cache(maxsize=2)
def autoencoder(path: str) -> autoencoders.Autoencoder:
  """Reads the autoencoder at `path`; the two autoencoders used last are cached in memory."""
  return autoencoders.read(_on_disk(path))


@functools.lru_cache(maxsize=2)
def text_encoder(path: str, length: int) -> texts.TextEncoder:
  """Reads the text encoder at `path` for texts of up to `length` tokens; the two text encoders used
  last are cached in memory.
  """
  return texts.read(_on_disk(path, ('text_encoder', 'tokenizer')), length)


def _on_disk(path: str, parts: tuple[str, ...] = ('',)) -> str:
  """Returns a local `path` unchanged; if `path` is in an object store, copies the subfolders
  `parts` to a temporary folder and returns the temporary folder.

  The temporary folder is removed when this process exits.
  """
  if storage.is_local(path):
    return path
  folder = tempfile.mkdtemp(prefix='gdistill-', dir=storage.temporary_root())
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  for part in parts:
    for name in storage.files(storage.path(path) / part):
      data = storage.read_bytes(storage.path(path) / part / name)
      storage.write_bytes(os.path.join(folder, part, name), data)
  return folder


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
  """The frozen networks beside a trained latent network: the autoencoder and the text encoder.

  For a network in pixel space, `autoencoder` and `text` are None. `params` is {'autoencoder':
  parameters, 'text': parameters}, without the networks that are None.
  """

  autoencoder: autoencoders.Autoencoder | None = None
  text: texts.TextEncoder | None = None

  @property
  def params(self) -> dict[str, Any]:
    return {
      name: found.params
      for name, found in (('autoencoder', self.autoencoder), ('text', self.text))
      if found is not None
    }

  def picture_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the shape [H, W, C] of pictures, given the `shape` of the trained network's input."""
    if self.autoencoder is None:
      return shape
    return (shape[0] * self.autoencoder.factor, shape[1] * self.autoencoder.factor, 3)

  def names(self) -> dict[str, Any]:
    """Returns the entries of card.json, the record of a round, that identify the autoencoder and
    the text encoder by digests.
    """
    return {
      'autoencoder': encoder_digest(self.autoencoder),
      'text': self.text.digest if self.text else '',
      'text_length': self.text.length if self.text else 0,
    }

  def tokens(
    self, prompts: Sequence[str], warn: bool = True
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (token ids [n, length], mask [n, length]) of the prompts, or None without a text
    encoder.

    With `warn`, prints a warning for each of the first five prompts that are too long and are cut.
    """
    if self.text is None:
      return None
    # Prompts are read as captions are, so that a text of several lines, or with a byte-order mark,
    # has the tokens that training has seen.
    ids, mask, warnings = self.text.tokens([caption_files.one_line(p) for p in prompts])
    warnings = warnings if warn else []
    for line in warnings[:_MOST_SAID]:
      progress.say(f'warning: {line}')
    if more := len(warnings[_MOST_SAID:]):
      progress.say(f'warning: {more:,} more prompts are too long and cut')
    return ids, mask

  def text_of(self, params: dict[str, Any], tokens: Any) -> dict[str, jax.Array]:
    """Returns the entries 'text' and 'text_mask' of a batch's cond, or {} if `tokens` is None; call
    inside jit.

    With CLIP as text encoder there is no 'text_mask', because networks conditioned on CLIP also
    attend to padding tokens.
    """
    if tokens is None:
      return {}
    hidden = self.text.encode(params['text'], *tokens)
    return {'text': hidden} | ({} if self.text.kind == 'clip' else {'text_mask': tokens[1]})

  def encode(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Returns the trained network's input for images x: the mean of the latents of x, or x itself
    in pixel space; call inside jit.
    """
    return self.autoencoder.encode(params['autoencoder'], x)[0] if self.autoencoder else x

  def decode(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Returns images, not clipped, from the trained network's output x: the decoded latents, or x
    itself in pixel space; call inside jit.
    """
    return self.autoencoder.decode(params['autoencoder'], x) if self.autoencoder else x


def of_settings(latents: recipes.Latents) -> Frozen:
  """Reads the frozen networks at the paths in a recipe's section `latents`; returns an empty
  Frozen() if the section has no path of an autoencoder.
  """
  if not latents.autoencoder:
    return Frozen()
  encoder = autoencoder(latents.autoencoder)
  text = text_encoder(latents.text, latents.text_length) if latents.text else None
  return Frozen(encoder, text)


def check_fits(frozen: Frozen, latents: recipes.Latents, model: recipes.Model) -> None:
  """Raises ConfigError if the trained network's input sizes differ from the output sizes of the
  frozen networks.

  Prints a note if the autoencoder's scale may be a default that nobody meant.
  """
  if frozen.autoencoder is None:
    return
  default = (frozen.autoencoder.kind, frozen.autoencoder.scale) == (
    'vq',
    autoencoders.DEFAULT_SCALE,
  )
  if default and not jax.process_index():
    progress.say(
      f'note: {latents.autoencoder}/config.json: scaling_factor={frozen.autoencoder.scale:g}, the '
      'default that diffusers writes for every VQModel, is taken: the run works on latents times '
      'this number'
    )
  wanted = {'image_channels': frozen.autoencoder.latent_channels}
  if frozen.text:
    wanted |= {'context_dim': frozen.text.width, 'context_length': frozen.text.length}
  for name, size in wanted.items():
    if getattr(model, name) != size:
      of = latents.autoencoder if name == 'image_channels' else latents.text
      raise errors.ConfigError(
        f'model.{name}={getattr(model, name)} does not fit the output of {of}; '
        f'set model.{name}={size}'
      )


def read_frozen(folder: folders.Folder, decoder: str = '') -> Frozen:
  """Reads the frozen networks of a finished round, from the round's folder or from its parent
  folder.

  `decoder` is the path of an autoencoder that decodes instead of the round's own autoencoder.
  Raises CheckpointError if the networks found are not the networks that the round was trained with,
  according to the digests in the round's card.json.
  """
  about = folder.card.get('latents')
  if not about:
    return Frozen()
  found = autoencoder(decoder or beside(folder, AUTOENCODER))
  if not decoder and encoder_digest(found) != about['autoencoder']:
    raise errors.CheckpointError(
      f'{folder.path} was trained on the latents of another autoencoder ({about["autoencoder"]}), '
      f'and {beside(folder, AUTOENCODER)} is {encoder_digest(found)}; copy the autoencoder/ of '
      'the run that trained this round'
    )
  m = folder.settings
  if found.latent_channels != m.image_channels:
    raise errors.ConfigError(
      f'--decoder={decoder} reads latents of {found.latent_channels} channels, and {folder.path} '
      f'makes latents of {m.image_channels}; give a decoder for {m.image_channels} channels'
    )
  if not about['text']:
    return Frozen(found)
  text = text_encoder(beside(folder, ''), about['text_length'])
  if text.digest != about['text'] == text.earlier_digest:
    raise errors.CheckpointError(
      f'{folder.path} was made by a version of gdistill that split the tokens that were added to '
      'its tokenizer into bytes, and this version reads them as tokens; import the teacher again, '
      'or train a new run, and draw from that one'
    )
  if text.digest != about['text']:
    raise errors.CheckpointError(
      f'{folder.path} was trained with another text encoder ({about["text"]}), and '
      f'{beside(folder, "text_encoder")} is {text.digest}; copy the text_encoder/ of the run that '
      'trained this round'
    )
  return Frozen(found, text)


def beside(folder: folders.Folder, name: str) -> str:
  """Returns the path of subfolder `name` of a round's folder or, if absent there, of the parent
  folder.
  """
  look = name or 'text_encoder'
  for at in (folder.path, folder.path.parent):
    if storage.exists(at / look / 'config.json'):
      return os.fspath(at / name if name else at)
  raise errors.CheckpointError(
    f'{folder.path} needs {look}/, which is neither there nor in the folder above; copy {look}/ '
    'from the run that trained this round'
  )


def encoder_digest(found: autoencoders.Autoencoder) -> str:
  """Returns a text that identifies an autoencoder: kind, digest of the parameters, and the scale
  and shift of the latents.
  """
  return f'{found.kind}-{found.digest}-{found.scale:.6g}-{found.shift:.6g}'
