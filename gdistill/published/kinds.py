"""Finds out the kind of network that a source holds, and names networks that cannot be imported.

A source is a folder or a .safetensors file. Names of classes, folders and arrays tell the kind; no
array is read.
"""

import pathlib
from collections.abc import Collection

from gdistill import errors
from gdistill.convert import files
from gdistill.convert import pickled_names
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.process import progress
from gdistill.published import families
from gdistill.published import source_files

KINDS = ('stable_diffusion', 'cin256', 'dit', 'sit', 'adm64', 'adm256')
# Pairs (kind, name of an array by which the kind is recognised), tried from top to bottom. adm256
# must come before adm64: ADM has 18 input blocks for 256 pixels and 16 for 64 pixels, so a file of
# adm256 holds the array of adm64 too.
_ARRAY_OF_KIND = (
  ('cin256', 'model.diffusion_model.input_blocks.0.0.weight'),
  ('dit', 'x_embedder.proj.weight'),
  ('dit', 'transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight'),
  ('adm256', 'input_blocks.17.0.in_layers.0.weight'),
  ('adm64', 'input_blocks.15.0.in_layers.0.weight'),
)
_OF_DIT = ('DiTTransformer2DModel', 'Transformer2DModel')  # classes of DiT in diffusers
# Subfolder of a Stable Diffusion -> (what the subfolder holds, argument that replaces it).
_PARTS = {
  'unet': ('the network', ''), 'vae': ('the autoencoder', 'autoencoder'),
  'text_encoder': ('the text encoder', 'text'), 'tokenizer': ('the tokenizer', 'text'),
  'scheduler': ('the noise schedule', ''),
}  # fmt: skip


def kind_of(path: pathlib.Path, given: str = '', autoencoder: str = '', text: str = '') -> str:
  """Returns the kind of the network at `path`: `given`, or if `given` is '', what names there tell.

  The class in model_index.json counts first, then the names of the folders, then those of the
  arrays. If gdistill does not know the class, such as one of the user's own code, folders and
  arrays tell the kind, and a line for the user says so. Returns 'dit' for a SiT too, because DiT
  and SiT have the same array names. `autoencoder` and `text` are paths of networks that are read
  instead of those at `path`.

  Raises ConfigError, with the name of the network, if gdistill cannot import it, also if `given`
  names a kind. Raises ConfigError if no name tells the kind, or if the class in model_index.json is
  of another kind than `given`. Raises DataError if a part of a Stable Diffusion is missing.
  """
  if given and given not in KINDS:
    raise errors.ConfigError(f'--kind={given!r} must be one of {", ".join(KINDS)}')
  stated, unknown = _by_class(path, given) if path.is_dir() else ('', '')
  if stated or any((path / part).is_dir() for part in ('unet', 'transformer')):
    kind = given or stated or _by_folders(path, text)
  else:
    try:
      kind = _by_arrays(path, given)
    except errors.GdistillError as e:
      if not unknown:
        raise
      raise _unsupported(path, f'a {unknown}') from e
  if unknown:
    progress.say(
      f'note: --source={path}: {unknown} in model_index.json is a class that gdistill does not '
      f'know; the network is read as one of kind {kind}'
    )
  if kind == 'stable_diffusion':
    _check_parts(path, {'autoencoder': autoencoder, 'text': text})
  return kind


def _by_class(path: pathlib.Path, given: str) -> tuple[str, str]:
  """Returns (kind that model_index.json states or '', its class if that is unknown or '').

  Raises ConfigError for classes of other networks.
  """
  index = path / 'model_index.json'
  stated = unknown = ''
  if index.is_file():
    name = source_files.read_json(index).get('_class_name')
    name = name[-1] if isinstance(name, list) and name else name  # a pipeline with code of its own
    if not isinstance(name, str):
      raise errors.DataError(
        f'{index}: _class_name={name!r} must be the class of a pipeline; download the file again'
      )
    if what := families.of_class(name):
      raise _unsupported(path, f'a {name} ({what})')
    unknown = '' if name in families.PIPELINES else name
    stated = families.PIPELINES.get(name, '')
    if given and stated and given != stated and (given, stated) != ('sit', 'dit'):
      raise errors.ConfigError(
        f'--kind={given}: {index} states {name}, which is of kind {stated}; leave --kind out'
      )
  for part in ('unet', 'transformer', ''):
    file = path / part / 'config.json'
    if file.is_file():
      config = source_files.read_json(file)
      what, name = families.of_config(config), config.get('_class_name')
      if what or (part == 'transformer' and name not in (None, *_OF_DIT)):
        raise _unsupported(f'{path}: {part}/config.json'.replace(' /', ' '), what or name)
  return stated, unknown


def _unsupported(source: pathlib.Path | str, what: str, more: str = '') -> errors.ConfigError:
  return errors.ConfigError(
    f'--source={source} is {what}, which gdistill cannot import yet{more}; {families.SUPPORTED}'
  )


def _by_folders(path: pathlib.Path, text: str) -> str:
  """Returns the kind of a folder of diffusers without a pipeline of a known kind."""
  if not (path / 'unet').is_dir():
    return 'dit'
  if text or (path / 'text_encoder').is_dir():
    return 'stable_diffusion'
  if (path / 'class_embedder').is_dir():
    return 'cin256'
  if unet2d.CLASSES in files.names(source_files.weights_file(path / 'unet')):
    return 'cin256'
  raise errors.DataError(
    f'--source={path} has no text_encoder/, which Stable Diffusion needs, and no {unet2d.CLASSES}, '
    'the table of classes of cin256; download text_encoder/ and tokenizer/ too, or give the folder '
    'of the text encoder as --text'
  )


def _by_arrays(path: pathlib.Path, given: str) -> str:
  """Returns `given`, or the kind that the names of the arrays in a file tell."""
  try:
    file = source_files.weights_file(path)
  except files.Pickled as e:
    names = pickled_names.names(e.file)
    _refuse_by_arrays(e.file, names, ', so converting the file to safetensors would not help')
    kind = next((kind for kind, name in _ARRAY_OF_KIND if name in names), '')
    about = f'--source={path} holds the arrays of a network of kind {kind}, but ' if kind else ''
    raise errors.ConfigError(f'{about}{e}') from e
  names = set(files.names(file))
  _refuse_by_arrays(file, names)
  if given:
    return given
  for kind, name in _ARRAY_OF_KIND:
    if name in names:
      return kind
  raise errors.ConfigError(
    f'--source={path}: no folder or array name in the source tells the kind of network; give '
    f'--kind={"|".join(KINDS)}'
  )


def _refuse_by_arrays(file: pathlib.Path, names: Collection[str], more: str = '') -> None:
  """Raises ConfigError if the arrays are those of a network that cannot be imported from a file.

  `more` is what follows from that for the file, such as that it need not be converted.
  """
  if what := families.of_arrays(names):
    raise _unsupported(file, what, more)
  if what := families.of_whole_file(names):
    raise errors.ConfigError(
      f'--source={file} is {what} in one file, and gdistill imports it from a folder of diffusers'
      f'{more}; make the folder in Python with diffusers: StableDiffusionPipeline.from_single_file('
      f"{str(file)!r}).save_pretrained('FOLDER')"
    )
  if what := families.of_part(names):
    raise errors.ConfigError(
      f'--source={file} is only {what}{more}; give the folder with unet/, vae/, text_encoder/, '
      'tokenizer/ and scheduler/ as --source'
    )


def _check_parts(path: pathlib.Path, instead: dict[str, str]) -> None:
  """Raises DataError for the first missing subfolder of a Stable Diffusion.

  `instead` is {argument: path} of the networks that are read from elsewhere.
  """
  for part, (what, argument) in _PARTS.items():
    if not (path / part).is_dir() and not instead.get(argument):
      remedy = f', or give --{argument}' if argument else ''
      raise errors.DataError(
        f'--source={path} has no {part}/, {what} of Stable Diffusion; download {part}/ too{remedy}'
      )
