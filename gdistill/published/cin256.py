"""Reads latent diffusion's class-conditional ImageNet network, cin256-v2."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import files
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.models import latent_unet
from gdistill.process import progress
from gdistill.published import model_settings
from gdistill.published import schedulers
from gdistill.published import source_files
from gdistill.published import teacher
from gdistill.recipe import settings as recipes

NOISE = recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
_IMAGE_SIZE = 64  # height and width of the latents of cin256-v2
_AUTOENCODER_FOLDERS = ('vqvae', 'vae', 'autoencoder')
_Network = tuple[recipes.Model, recipes.Noise, dict[str, np.ndarray], dict]


def read(
  path: pathlib.Path, kind: str, *, null: str, autoencoder: str, text: str
) -> teacher.Teacher:
  """Returns the class-conditional ImageNet network at `path` as a teacher.

  `path` is a diffusers folder with unet/, or a .safetensors file whose arrays have the names of the
  latent diffusion code. If `autoencoder` is '', the autoencoder is read from `path` too. `null` and
  `text` are not used, because the network has a null condition of its own and takes no text.
  """
  if path.is_dir() and (path / 'unet').is_dir():
    settings, noise, state, params = _read_folder(path)
    parts = (path / name for name in _AUTOENCODER_FOLDERS)
    own = next((part for part in parts if part.is_dir()), path)
  else:
    settings, noise, state, params = _read_file(path)
    own = source_files.weights_file(path)
  about = {
    'digest': source_files.digest(state),
    'null_rule': f'row {settings.num_classes} of the class table',
    'head_order': 'q, k, v apart',
    'epsilon': settings.epsilon,
  }
  where = autoencoder or own
  frozen = _of_latent_diffusion(autoencoders.read(where), where, noise)
  return teacher.Teacher(kind, settings, noise, params, 'trained', about, autoencoder=frozen)


def _of_latent_diffusion(
  frozen: autoencoders.Autoencoder, where: str | pathlib.Path, noise: recipes.Noise
) -> autoencoders.Autoencoder:
  """Returns the autoencoder with the scale of latents that the network was trained on.

  diffusers writes scaling_factor=0.18215 for every VQModel whose scale nobody stated, and latent
  diffusion's networks, which have the noise schedule NOISE, were trained on latents without a
  scale. Any other number, and 0.18215 with another noise schedule, is taken as config.json says.
  Prints a note of what is taken.
  """
  if frozen.kind != 'vq' or frozen.scale == 1.0 or not pathlib.Path(where).is_dir():
    return frozen
  said = f'note: {where}/config.json: scaling_factor={frozen.scale:g}'
  if frozen.scale != autoencoders.DEFAULT_SCALE or noise != NOISE:
    progress.say(f'{said} is taken: the network is read as trained on latents times this number')
    return frozen
  progress.say(
    f'{said} is not taken: diffusers writes this default for every VQModel, and latent '
    "diffusion's network works on latents without a scale"
  )
  return dataclasses.replace(frozen, scale=1.0)


def _read_folder(path: pathlib.Path) -> _Network:
  """Returns (settings, noise schedule, {array name: array}, parameters) from a diffusers folder.

  If the weights in unet/ lack the table of class embeddings, the first array of the weights file in
  class_embedder/ is the table.
  """
  config, state = source_files.read_component(path / 'unet')
  table_file = path / 'class_embedder' / source_files.WEIGHTS_NAME
  if unet2d.CLASSES not in state and table_file.is_file():
    tables = list(source_files.read_weights(table_file).values())
    state |= {unet2d.CLASSES: tables[0]} if tables else {}
  noise, predict = schedulers.read(path)
  with source_files.errors_begin_with(path / 'unet' / 'config.json'):
    fields = unet2d.settings_from(config, _num_classes(state, path))
    image_size = model_settings.image_size(config, _IMAGE_SIZE)
    settings = model_settings.of_latent_unet(fields, image_size, predict)
    net = model_settings.build(settings, noise)
  with source_files.errors_begin_with(path / 'unet'):
    params = unet2d.params_from(state, net)
  return settings, noise, state, params


def _read_file(path: pathlib.Path) -> _Network:
  """Returns (settings, noise schedule, {array name: array}, parameters) from the authors' file.

  Raises DataError if an array of the network has a NaN or an infinity; the file also holds arrays
  of the autoencoder and of the training, and these arrays are not checked.
  """
  file = source_files.weights_file(path)
  state = files.weights(file)
  net = latent_unet.LatentUNet(**latent_unet.CIN256)
  fields = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
  fields['num_classes'] = _num_classes(state, path)
  settings = model_settings.of_latent_unet(fields, _IMAGE_SIZE, 'eps')
  with source_files.errors_begin_with(file):
    net = model_settings.build(settings, NOISE)
    used = {id(a) for a in unet2d.ldm_renamed(state, net).values()}
    source_files.check_finite(file, {name: a for name, a in state.items() if id(a) in used})
    params = unet2d.ldm_params_from(state, net)
  return settings, NOISE, state, params


def _num_classes(state: Mapping[str, np.ndarray], path: pathlib.Path) -> int:
  """Returns the number of classes: the rows of the table of class embeddings, minus one.

  The last row of the table of class embeddings is the null condition. Raises ConfigError if the
  arrays `state` do not contain a table of class embeddings with at least two rows.
  """
  if unet2d.CLASSES not in state:
    raise errors.ConfigError(
      f"{path} has no {unet2d.CLASSES}, the table of classes of latent diffusion's ImageNet "
      'network; give cin256-v2 as --source, or, to import Stable Diffusion, a folder with unet/, '
      'vae/ and text_encoder/'
    )
  shape = np.shape(state[unet2d.CLASSES])
  if len(shape) != 2 or shape[0] < 2:
    raise errors.ConfigError(
      f'{path}: {unet2d.CLASSES} has shape {shape}, and its shape must be (classes + 1, width); '
      'download the weights of cin256-v2 again'
    )
  return shape[0] - 1
