"""Published teachers as this package has them: settings, noise, parameters, and what guides them.

Each reader takes a folder or a file of safetensors and returns a `Teacher`. Nothing here writes.
"""

import dataclasses
import pathlib
import re

from flax import traverse_util

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import files
from gdistill.process import progress
from gdistill.published import adm as adm_teacher
from gdistill.published import cin256 as cin256_teacher
from gdistill.published import common
from gdistill.published import dit as dit_teacher
from gdistill.published import stable_diffusion

KINDS = ('stable_diffusion', 'cin256', 'dit', 'sit', 'adm64', 'adm256')
# A name that tells such a file from those below it: ADM has 18 input blocks for 256 pixels, 16 for
# 64.
_TOLD_BY = (
  ('cin256', 'model.diffusion_model.input_blocks.0.0.weight'),
  ('dit', 'x_embedder.proj.weight'),
  ('dit', 'transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight'),
  ('adm256', 'input_blocks.17.0.in_layers.0.weight'),
  ('adm64', 'input_blocks.15.0.in_layers.0.weight'),
)
# Arguments: the kinds they are for, and why others have no use for them.
_FOR = {
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
) -> common.Teacher:
  """The teacher of a folder or file; the kind is told from what it holds where it is not given.

  `null` is the file of a second, unconditional network (ADM), `autoencoder` and `text` are for a
  source that brings none. ConfigError or DataError says what is not there or does not fit.
  """
  path = pathlib.Path(source)
  if not path.exists():
    raise errors.DataError(f'--source={path} does not exist; name a folder or a .safetensors file')
  if path.is_file():
    common.one_file(path)  # of torch's it says what to do with it
  told, kind = kind, kind or _kind(path, text)
  if kind not in KINDS:
    raise errors.ConfigError(f'--kind={kind!r} must be one of {", ".join(KINDS)}')
  for flag, value in (('null', null), ('autoencoder', autoencoder), ('text', text)):
    kinds, reason = _FOR[flag]
    if value and kind not in kinds:
      raise errors.ConfigError(
        f'--{flag}={value} is for {", ".join(kinds)}: {kind} {reason}; leave it out'
      )
  reader = {
    'stable_diffusion': stable_diffusion.read, 'cin256': cin256_teacher.read,
    'dit': dit_teacher.read, 'sit': dit_teacher.read,
    'adm64': adm_teacher.read, 'adm256': adm_teacher.read,
  }[kind]  # fmt: skip
  found = reader(path, kind, null=null, autoencoder=autoencoder, text=text)
  _check_frozen(found, path, autoencoder, text)
  if kind == 'dit' and not told:
    progress.say(
      f'--source={path} was taken for DiT, whose names SiT has too: --kind=sit is for SiT'
    )
  about = {**found.about, 'licence': licence or _licence(path), 'source': path.name}
  return dataclasses.replace(found, about=about)


def _kind(path: pathlib.Path, text: str = '') -> str:
  """What a folder or a file holds, by its parts or names; DiT where it may be SiT."""
  if path.is_dir():
    if (path / 'unet').is_dir():
      return 'stable_diffusion' if text or (path / 'text_encoder').is_dir() else 'cin256'
    if (path / 'transformer').is_dir():
      return 'dit'
  names = set(files.names(common.one_file(path)))
  for kind, name in _TOLD_BY:
    if name in names:
      return kind
  raise errors.ConfigError(
    f'--source={path} is not recognised by its folders or names; say --kind={"|".join(KINDS)}'
  )


def _check_frozen(found: common.Teacher, path: pathlib.Path, autoencoder: str, text: str) -> None:
  """Of the networks beside it: whether they are finite, and make such latents as it works on."""
  if found.text is not None:
    common.check_finite(text or path, traverse_util.flatten_dict(found.text.params, sep='.'))
  own = found.autoencoder
  if own is None:
    return
  where = f'--autoencoder={autoencoder}' if autoencoder else f"{path}'s autoencoder"
  common.check_finite(where, autoencoders.state_from(own.net, own.params))
  channels = found.settings.image_channels
  if own.latent_channels != channels:
    raise errors.ConfigError(
      f'{where} makes latents of {own.latent_channels} channels, and the network of {path} works '
      f'on {channels}; name its own with --autoencoder'
    )


def _licence(path: pathlib.Path) -> str:
  """Of the model card beside the weights, 'not stated' where there is none."""
  card = (path if path.is_dir() else path.parent) / 'README.md'
  try:
    text = card.read_text(encoding='utf-8', errors='replace')
  except OSError:
    return 'not stated'
  found = re.search(r'^license:\s*(\S+)', text, re.MULTILINE)
  return found.group(1) if found else 'not stated'
