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

AUTOENCODER = 'autoencoder'  # folder of a run, and of an imported network
_MOST_SAID = 5  # prompts that are cut


@functools.lru_cache(maxsize=2)
def autoencoder(path: str) -> autoencoders.Autoencoder:
  return autoencoders.read(_on_disk(path))


@functools.lru_cache(maxsize=2)
def text_encoder(path: str, length: int) -> texts.TextEncoder:
  return texts.read(_on_disk(path, ('text_encoder', 'tokenizer')), length)


def _on_disk(path: str, parts: tuple[str, ...] = ('',)) -> str:
  """The path, or a copy of the parts of a folder in an object store, for as long as we run."""
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
  """What stands around a network: a text encoder before it and a decoder behind, or neither.

  `params` holds the parameters of both, {} of neither.
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

  def tokens(
    self, prompts: Sequence[str], warn: bool = True
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """(ids [n, length], mask [n, length]), and lines of prompts that are cut if we `warn`."""
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
    """The 'text' and 'text_mask' of a batch's cond, {} without tokens; to be traced.

    CLIP's padding counts, so its networks are given no mask.
    """
    if tokens is None:
      return {}
    hidden = self.text.encode(params['text'], *tokens)
    return {'text': hidden} | ({} if self.text.kind == 'clip' else {'text_mask': tokens[1]})

  def encode(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """What a network works on, of images: the mean of their latents. To be traced."""
    return self.autoencoder.encode(params['autoencoder'], x)[0] if self.autoencoder else x

  def decode(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Images of what a network drew, not clipped; to be traced."""
    return self.autoencoder.decode(params['autoencoder'], x) if self.autoencoder else x


def read_frozen(folder: folders.Folder, decoder: str = '') -> Frozen:
  """Of a finished round: they lie in its folder or in the one above. `decoder` names another."""
  about = folder.card.get('latents')
  if not about:
    return Frozen()
  found = autoencoder(decoder or beside(folder, AUTOENCODER))
  if not decoder and encoder_digest(found) != about['autoencoder']:
    raise errors.CheckpointError(
      f'{folder.path} was trained on the latents of another autoencoder ({about["autoencoder"]}) '
      f'than {beside(folder, AUTOENCODER)} is ({encoder_digest(found)}); copy that of its run'
    )
  m = folder.settings
  if found.latent_channels != m.image_channels:
    raise errors.ConfigError(
      f'--decoder={decoder} reads latents of {found.latent_channels} channels, and {folder.path} '
      f'draws {m.image_channels}; name one for these latents'
    )
  if not about['text']:
    return Frozen(found)
  text = text_encoder(beside(folder, ''), about['text_length'])
  if text.digest != about['text']:
    raise errors.CheckpointError(
      f'{folder.path} was trained with another text encoder ({about["text"]}) than '
      f'{beside(folder, "text_encoder")} is ({text.digest}); copy that of its run'
    )
  return Frozen(found, text)


def beside(folder: folders.Folder, name: str) -> str:
  """The folder `name` in a round's folder or in the one above."""
  look = name or 'text_encoder'
  for at in (folder.path, folder.path.parent):
    if storage.exists(at / look / 'config.json'):
      return os.fspath(at / name if name else at)
  raise errors.CheckpointError(
    f'{folder.path} needs {look}/, which is neither in it nor beside it; copy it from the run'
  )


def encoder_digest(found: autoencoders.Autoencoder) -> str:
  """Names an autoencoder's parameters and what is made of its latents."""
  return f'{found.kind}-{found.digest}-{found.scale:.6g}-{found.shift:.6g}'


def networks(recipe: recipes.Recipe) -> dict[str, Any]:
  """Which frozen networks a recipe trains with."""
  where = recipe.latents
  text = text_encoder(where.text, where.text_length) if where.text else None
  return {
    'autoencoder': encoder_digest(autoencoder(where.autoencoder)),
    'text': text.digest if text else '',
    'text_length': text.length if text else 0,
  }
