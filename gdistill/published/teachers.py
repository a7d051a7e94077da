"""Tells which kind of published network a source holds, and reads the source as a Teacher.

A source is a folder or a file of safetensors. This file writes nothing.
"""

import dataclasses
import pathlib
import re

from flax import traverse_util

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import files
from gdistill.process import progress
from gdistill.published import adm
from gdistill.published import cin256
from gdistill.published import dit
from gdistill.published import source_files
from gdistill.published import stable_diffusion
from gdistill.published import teacher

# Every reader takes (path, kind, *, null, autoencoder, text): _TAKEN_BY says which it uses.
_READERS = {
  'stable_diffusion': stable_diffusion.read,
  'cin256': cin256.read,
  'dit': dit.read,
  'sit': dit.read,
  'adm64': adm.read,
  'adm256': adm.read,
}
KINDS = tuple(_READERS)
# (kind, name of an array that tells the kind), searched in this order: ADM has 18 input blocks for
# 256 pixels and 16 for 64 pixels, so a file of adm256 holds the array of adm64 too.
_ARRAY_OF_KIND = (
  ('cin256', 'model.diffusion_model.input_blocks.0.0.weight'),
  ('dit', 'x_embedder.proj.weight'),
  ('dit', 'transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight'),
  ('adm256', 'input_blocks.17.0.in_layers.0.weight'),
  ('adm64', 'input_blocks.15.0.in_layers.0.weight'),
)
# Argument -> (the kinds that take it, why the other kinds do not).
_TAKEN_BY = {
  'null': (('adm64', 'adm256'), 'has a null condition of its own'),
  'autoencoder': (('stable_diffusion', 'cin256', 'dit', 'sit'), 'draws pixels'),
  'text': (('stable_diffusion',), 'is conditioned on classes'),
}


def read(
  source: str,
  kind: str = '',
  null: str = '',
  autoencoder: str = '',
  text: str = '',
  licence: str = '',
) -> teacher.Teacher:
  """Returns the network of a folder or file; '' as `kind` means that the arrays tell the kind.

  `null` is the file of a second, unconditional network (ADM). `autoencoder` and `text` name frozen
  networks for a source that holds none. Raises ConfigError or DataError that says what is missing
  or does not fit.
  """
  path = pathlib.Path(source)
  if not path.exists():
    raise errors.DataError(f'--source={path} does not exist; name a folder or a .safetensors file')
  if path.is_file():
    source_files.weights_file(path)  # raises for a torch file and names the command to convert it
  given, kind = kind, kind or kind_of(path, text)
  if kind not in KINDS:
    raise errors.ConfigError(f'--kind={kind!r} must be one of {", ".join(KINDS)}')
  for flag, value in (('null', null), ('autoencoder', autoencoder), ('text', text)):
    kinds, reason = _TAKEN_BY[flag]
    if value and kind not in kinds:
      raise errors.ConfigError(
        f'--{flag}={value} is for {", ".join(kinds)}: {kind} {reason}; leave --{flag} out'
      )
  found = _READERS[kind](path, kind, null=null, autoencoder=autoencoder, text=text)
  _check_frozen(found, path, autoencoder, text)
  if kind == 'dit' and not given:
    progress.say(
      f"--source={path} is read as DiT. SiT's arrays have the same names: give --kind=sit for SiT"
    )
  about = {**found.about, 'licence': licence or licence_of(path), 'source': path.name}
  return dataclasses.replace(found, about=about)


def kind_of(path: pathlib.Path, text: str = '') -> str:
  """Returns the kind of network at `path`, told by its folders or by the names of its arrays.

  `text` is the folder of a text encoder, which makes a network with unet/ a Stable Diffusion.
  Returns 'dit' for SiT too. Raises ConfigError if the kind cannot be told.
  """
  if path.is_dir():
    if (path / 'unet').is_dir():
      return 'stable_diffusion' if text or (path / 'text_encoder').is_dir() else 'cin256'
    if (path / 'transformer').is_dir():
      return 'dit'
  names = set(files.names(source_files.weights_file(path)))
  for kind, name in _ARRAY_OF_KIND:
    if name in names:
      return kind
  raise errors.ConfigError(
    f'--source={path}: neither its folders nor its arrays tell what network it is; give '
    f'--kind={"|".join(KINDS)}'
  )


def licence_of(path: pathlib.Path) -> str:
  """Returns the licence in the model card, README.md beside the weights, or 'not stated'."""
  card = (path if path.is_dir() else path.parent) / 'README.md'
  try:
    text = card.read_text(encoding='utf-8', errors='replace')
  except OSError:
    return 'not stated'
  found = re.search(r'^license:\s*(\S+)', text, re.MULTILINE)
  return found.group(1) if found else 'not stated'


def _check_frozen(found: teacher.Teacher, path: pathlib.Path, autoencoder: str, text: str) -> None:
  """Raises DataError if weights are not finite, ConfigError for an autoencoder of other latents."""
  if found.text is not None:
    source_files.check_finite(text or path, traverse_util.flatten_dict(found.text.params, sep='.'))
  own = found.autoencoder
  if own is None:
    return
  where = f'--autoencoder={autoencoder}' if autoencoder else f"{path}'s autoencoder"
  source_files.check_finite(where, autoencoders.state_from(own.net, own.params))
  channels = found.settings.image_channels
  if own.latent_channels != channels:
    raise errors.ConfigError(
      f'{where} makes latents of {own.latent_channels} channels, and the network of {path} works '
      f"on {channels}; name the network's own autoencoder with --autoencoder"
    )
