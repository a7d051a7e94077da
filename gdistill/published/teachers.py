"""Reads the published network that a source holds as a Teacher.

A source is a folder or a .safetensors file. The functions in this file write no files.
"""

import dataclasses
import pathlib
import re

from flax import traverse_util

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.process import progress
from gdistill.published import adm
from gdistill.published import cin256
from gdistill.published import dit
from gdistill.published import kinds
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
  guided_channels: int = 0,
) -> teacher.Teacher:
  """Returns the published network at `source`, a folder or a .safetensors file, as a Teacher.

  - `kind` is one of kinds.KINDS; if `kind` is '', `kinds.kind_of` finds out the kind.
  - `null` is the file of a second, unconditional network, for ADM only.
  - `autoencoder` and `text` are paths of an autoencoder and a text encoder that are read instead of
    the autoencoder and the text encoder in `source`.
  - `licence` is the licence of the network; if '', the licence is read from README.md in `source`.
  - `guided_channels` is the number of channels, from the first, that guidance changes; 0: all.

  Raises ConfigError if an argument does not fit the network, and DataError if a file is missing or
  damaged.
  """
  path = pathlib.Path(source)
  if not path.exists():
    raise errors.DataError(f'--source={path} does not exist; give a folder or a .safetensors file')
  given, kind = kind, kinds.kind_of(path, kind, autoencoder, text)
  for flag, value in (('null', null), ('autoencoder', autoencoder), ('text', text)):
    takers, reason = _TAKEN_BY[flag]
    if value and kind not in takers:
      raise errors.ConfigError(
        f'--{flag}={value} is only for networks of kind {", ".join(takers)}, and the kind of '
        f'--source, {kind}, {reason}; leave --{flag} out'
      )
  found = _READERS[kind](path, kind, null=null, autoencoder=autoencoder, text=text)
  _check_frozen(found, path, autoencoder, text)
  found = _with_guided_channels(found, guided_channels)
  if kind == 'dit' and not given:
    progress.say(
      f"--source={path} is read as DiT. SiT's arrays have the same names: give --kind=sit for SiT"
    )
  about = {**found.about, 'licence': licence or licence_of(path), 'source': path.name}
  return dataclasses.replace(found, about=about)


def _with_guided_channels(found: teacher.Teacher, channels: int) -> teacher.Teacher:
  """Returns the teacher with guidance in the first `channels` channels, or in all if 0.

  For a DiT or SiT guided in all channels, prints a note on the authors' rule. Raises ConfigError if
  the network does not have so many channels.
  """
  most = found.settings.image_channels
  if not 0 <= channels <= most:
    raise errors.ConfigError(
      f'--guided_channels={channels} must be from 0, which means all channels, to {most}, the '
      f'channels of the network'
    )
  if found.kind in ('dit', 'sit') and not channels:
    progress.say(
      f'note: the authors of DiT and SiT guide channels 0 to 2 only, and their published FIDs are '
      f'of that rule; this teacher is guided in all {most} channels: give --guided_channels=3 for '
      "the authors' rule"
    )
  settings = dataclasses.replace(found.settings, guided_channels=channels)
  return dataclasses.replace(found, settings=settings)


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
