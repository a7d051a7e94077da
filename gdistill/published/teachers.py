"""Finds out which kind of published network a source holds, and reads the source as a Teacher.

A source is a folder or a .safetensors file. The functions in this file write no files.
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

# Kind of network -> function that reads a source of this kind. Every reader takes the same
# arguments (path, kind, *, null, autoencoder, text); _TAKEN_BY says which kinds use null,
# autoencoder and text.
_READERS = {
  'stable_diffusion': stable_diffusion.read,
  'cin256': cin256.read,
  'dit': dit.read,
  'sit': dit.read,
  'adm64': adm.read,
  'adm256': adm.read,
}
KINDS = tuple(_READERS)
# Pairs (kind, name of an array by which `kind_of` recognises the kind), tried from top to bottom.
# adm256 must come before adm64: ADM has 18 input blocks for 256 pixels and 16 for 64 pixels, so a
# file of adm256 holds the array of adm64 too.
_ARRAY_OF_KIND = (
  ('cin256', 'model.diffusion_model.input_blocks.0.0.weight'),
  ('dit', 'x_embedder.proj.weight'),
  ('dit', 'transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight'),
  ('adm256', 'input_blocks.17.0.in_layers.0.weight'),
  ('adm64', 'input_blocks.15.0.in_layers.0.weight'),
)
# Argument of `read` -> (kinds that take the argument, why other kinds do not take the argument).
_TAKEN_BY = {
  'null': (('adm64', 'adm256'), 'has a null condition of its own'),
  'autoencoder': (('stable_diffusion', 'cin256', 'dit', 'sit'), 'draws pixels, not latents'),
  'text': (('stable_diffusion',), 'is conditioned on classes, not on text'),
}


def read(
  source: str,
  kind: str = '',
  null: str = '',
  autoencoder: str = '',
  text: str = '',
  licence: str = '',
) -> teacher.Teacher:
  """Returns the published network at `source`, a folder or a .safetensors file, as a Teacher.

  - `kind` is one of KINDS; if `kind` is '', the names of the folders and arrays of `source` tell
    the kind.
  - `null` is the file of a second, unconditional network, for ADM only.
  - `autoencoder` and `text` are paths of an autoencoder and a text encoder that are read instead of
    the autoencoder and the text encoder in `source`.
  - `licence` is the licence of the network; if '', the licence is read from README.md in `source`.

  Raises ConfigError if an argument does not fit the network, and DataError if a file is missing or
  damaged.
  """
  path = pathlib.Path(source)
  if not path.exists():
    raise errors.DataError(f'--source={path} does not exist; give a folder or a .safetensors file')
  if path.is_file():
    source_files.weights_file(path)  # raises ConfigError if `path` is a PyTorch pickle
  given, kind = kind, kind or kind_of(path, text)
  if kind not in KINDS:
    raise errors.ConfigError(f'--kind={kind!r} must be one of {", ".join(KINDS)}')
  for flag, value in (('null', null), ('autoencoder', autoencoder), ('text', text)):
    kinds, reason = _TAKEN_BY[flag]
    if value and kind not in kinds:
      raise errors.ConfigError(
        f'--{flag}={value} is only for networks of kind {", ".join(kinds)}, and the kind of '
        f'--source, {kind}, {reason}; leave --{flag} out'
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
  """Returns the kind of the network at `path`, which the names of folders or arrays there tell.

  A folder with unet/ is a Stable Diffusion if the folder has text_encoder/ or if `text`, the path
  of a text encoder, is given; otherwise the folder is a cin256. Returns 'dit' for a SiT too,
  because DiT and SiT have the same array names. Raises ConfigError if no name of a folder or an
  array at `path` tells the kind.
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
    f'--source={path}: no folder or array name in the source tells the kind of network; give '
    f'--kind={"|".join(KINDS)}'
  )


def licence_of(path: pathlib.Path) -> str:
  """Returns the field `license` of the README.md beside the weights, or 'not stated'."""
  card = (path if path.is_dir() else path.parent) / 'README.md'
  try:
    text = card.read_text(encoding='utf-8', errors='replace')
  except OSError:
    return 'not stated'
  found = re.search(r'^license:\s*(\S+)', text, re.MULTILINE)
  return found.group(1) if found else 'not stated'


def _check_frozen(found: teacher.Teacher, path: pathlib.Path, autoencoder: str, text: str) -> None:
  """Checks the autoencoder and the text encoder of a teacher.

  Raises DataError if a weight of the text encoder or autoencoder is not finite. Raises ConfigError
  if the autoencoder's latents have another number of channels than the network takes.
  """
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
      f"on {channels} channels; give the path of the network's own autoencoder as --autoencoder"
    )
