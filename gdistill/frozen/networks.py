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
  """Reads an autoencoder; the last two autoencoders read stay in memory."""
  return autoencoders.read(_on_disk(path))


@functools.lru_cache(maxsize=2)
def text_encoder(path: str, length: int) -> texts.TextEncoder:
  """Reads a text encoder for up to `length` tokens; the last two encoders read stay in memory."""
  return texts.read(_on_disk(path, ('text_encoder', 'tokenizer')), length)


def _on_disk(path: str, parts: tuple[str, ...] = ('',)) -> str:
  """Returns a local path; copies `parts` to a temporary folder if `path` is in an object store.

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

  In pixel space `autoencoder` and `text` are None. `params` holds the parameters of the networks
  that are not None.
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
    """Returns the shape [H, W, C] of pictures; `shape` is that of the trained network's input."""
    if self.autoencoder is None:
      return shape
    return (shape[0] * self.autoencoder.factor, shape[1] * self.autoencoder.factor, 3)

  def names(self) -> dict[str, Any]:
    """Returns the entries of card.json that identify autoencoder and text encoder by digests."""
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
    """Returns {'text', 'text_mask'} for a batch's cond, or {} without tokens; call inside jit.

    Networks conditioned on CLIP get no mask, because CLIP attends to padding tokens.
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
        f'model.{name}={getattr(model, name)} does not fit the output of {of}; '
        f'set model.{name}={size}'
      )


def read_frozen(folder: folders.Folder, decoder: str = '') -> Frozen:
  """Reads the frozen networks of a finished round, from the round's folder or the folder above.

  `decoder` is the path of another autoencoder for decoding. Raises CheckpointError if the round was
  trained with other networks than the networks found.
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
  if text.digest != about['text']:
    raise errors.CheckpointError(
      f'{folder.path} was trained with another text encoder ({about["text"]}), and '
      f'{beside(folder, "text_encoder")} is {text.digest}; copy the text_encoder/ of the run that '
      'trained this round'
    )
  return Frozen(found, text)


def beside(folder: folders.Folder, name: str) -> str:
  """Returns the path of the subfolder `name` of a round's folder, or of the folder above."""
  look = name or 'text_encoder'
  for at in (folder.path, folder.path.parent):
    if storage.exists(at / look / 'config.json'):
      return os.fspath(at / name if name else at)
  raise errors.CheckpointError(
    f'{folder.path} needs {look}/, which is neither there nor in the folder above; copy {look}/ '
    'from the run that trained this round'
  )


def encoder_digest(found: autoencoders.Autoencoder) -> str:
  """Returns a name for an autoencoder: kind, digest of the parameters, scale and shift."""
  return f'{found.kind}-{found.digest}-{found.scale:.6g}-{found.shift:.6g}'
