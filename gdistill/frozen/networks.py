"""The frozen networks around a latent network: autoencoder and text encoder."""

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
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.workdir import storage

AUTOENCODER = 'autoencoder'  # name of the autoencoder's folder in a workdir or a round's folder
_MOST_SAID = 5  # largest number of warnings about prompts that are cut


@functools.lru_cache(maxsize=2)
def autoencoder(path: str) -> autoencoders.Autoencoder:
  """Reads an autoencoder; the last two stay in memory."""
  return autoencoders.read(_on_disk(path))


@functools.lru_cache(maxsize=2)
def text_encoder(path: str, length: int) -> texts.TextEncoder:
  """Reads a text encoder for captions of at most `length` tokens; the last two stay in memory."""
  return texts.read(_on_disk(path, ('text_encoder', 'tokenizer')), length)


def _on_disk(path: str, parts: tuple[str, ...] = ('',)) -> str:
  """Returns a local path; from an object store, `parts` are copied to a temporary folder first.

  The temporary folder is removed when this process exits.
  """
  if storage.is_local(path):
    return path
  folder = tempfile.mkdtemp(prefix='gdistill-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  for part in parts:
    for name in storage.files(storage.path(path) / part):
      data = storage.read_bytes(storage.path(path) / part / name)
      storage.write_bytes(os.path.join(folder, part, name), data)
  return folder


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
  """The networks around a latent network: text encoder before it, autoencoder after it.

  Both are None in pixel space. `params` holds the parameters of those that are there.
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
    """Returns [H, W, C] of the pictures for [h, w, c] of the trained network's input."""
    if self.autoencoder is None:
      return shape
    return (shape[0] * self.autoencoder.factor, shape[1] * self.autoencoder.factor, 3)

  def names(self) -> dict[str, Any]:
    """Returns the entries of card.json that identify both networks by their digests."""
    return {
      'autoencoder': encoder_digest(self.autoencoder),
      'text': self.text.digest if self.text else '',
      'text_length': self.text.length if self.text else 0,
    }

  def tokens(
    self, prompts: Sequence[str], warn: bool = True
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (ids [n, length], mask [n, length]) of prompts; None without a text encoder.

    With `warn`, a line on the terminal names each prompt that is cut, up to five.
    """
    if self.text is None:
      return None
    ids, mask, warnings = self.text.tokens(prompts)
    warnings = warnings if warn else []
    for line in warnings[:_MOST_SAID]:
      progress.say(f'warning: {line}')
    if more := len(warnings[_MOST_SAID:]):
      progress.say(f'warning: {more:,} more prompts are too long and cut')
    return ids, mask

  def text_of(self, params: dict[str, Any], tokens: Any) -> dict[str, jax.Array]:
    """Returns 'text' and 'text_mask' of a batch's cond, {} without tokens; call inside jit.

    CLIP attends to its padding tokens, so networks conditioned on CLIP get no mask.
    """
    if tokens is None:
      return {}
    hidden = self.text.encode(params['text'], *tokens)
    return {'text': hidden} | ({} if self.text.kind == 'clip' else {'text_mask': tokens[1]})

  def encode(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Casts images to network input: mean of the latents, or the images; call inside jit."""
    return self.autoencoder.encode(params['autoencoder'], x)[0] if self.autoencoder else x

  def decode(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Casts network output to images, without clipping; call inside jit."""
    return self.autoencoder.decode(params['autoencoder'], x) if self.autoencoder else x


def of_settings(latents: recipes.Latents) -> Frozen:
  """Reads the networks that a recipe's section `latents` names; Frozen() in pixel space."""
  if not latents.autoencoder:
    return Frozen()
  text = text_encoder(latents.text, latents.text_length) if latents.text else None
  return Frozen(autoencoder(latents.autoencoder), text)


def check_fits(frozen: Frozen, latents: recipes.Latents, model: recipes.Model) -> None:
  """Raises ConfigError if the trained network does not fit what the frozen networks compute."""
  if frozen.autoencoder is None:
    return
  wanted = {'image_channels': frozen.autoencoder.latent_channels}
  if frozen.text:
    wanted |= {'context_dim': frozen.text.width, 'context_length': frozen.text.length}
  for name, size in wanted.items():
    if getattr(model, name) != size:
      of = latents.autoencoder if name == 'image_channels' else latents.text
      raise errors.ConfigError(
        f'model.{name}={getattr(model, name)} is not what {of} makes; set it to {size}'
      )


def read_frozen(folder: folders.Folder, decoder: str = '') -> Frozen:
  """Reads the networks of a finished round, from its folder or from the folder above.

  `decoder` names another autoencoder, to decode with. Raises CheckpointError if the networks found
  are not those that the round was trained with.
  """
  about = folder.card.get('latents')
  if not about:
    return Frozen()
  found = autoencoder(decoder or beside(folder, AUTOENCODER))
  if not decoder and encoder_digest(found) != about['autoencoder']:
    raise errors.CheckpointError(
      f'{folder.path} was trained on the latents of another autoencoder ({about["autoencoder"]}) '
      f'than {beside(folder, AUTOENCODER)} is ({encoder_digest(found)}); copy the autoencoder of '
      'the run that trained the round'
    )
  m = folder.settings
  if found.latent_channels != m.image_channels:
    raise errors.ConfigError(
      f'--decoder={decoder} reads latents of {found.latent_channels} channels, and {folder.path} '
      f'draws {m.image_channels}; name a decoder for these latents'
    )
  if not about['text']:
    return Frozen(found)
  text = text_encoder(beside(folder, ''), about['text_length'])
  if text.digest != about['text']:
    raise errors.CheckpointError(
      f'{folder.path} was trained with another text encoder ({about["text"]}) than '
      f'{beside(folder, "text_encoder")} is ({text.digest}); copy the text encoder of the run that '
      'trained the round'
    )
  return Frozen(found, text)


def beside(folder: folders.Folder, name: str) -> str:
  """Returns the folder `name` in a round's folder or in the folder above."""
  look = name or 'text_encoder'
  for at in (folder.path, folder.path.parent):
    if storage.exists(at / look / 'config.json'):
      return os.fspath(at / name if name else at)
  raise errors.CheckpointError(
    f'{folder.path} needs {look}/, which is neither in that folder nor beside it; copy {look}/ '
    'from the run that trained the round'
  )


def encoder_digest(found: autoencoders.Autoencoder) -> str:
  """Returns a name for an autoencoder: kind, digest of the parameters, scale and shift."""
  return f'{found.kind}-{found.digest}-{found.scale:.6g}-{found.shift:.6g}'
