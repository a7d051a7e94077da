"""Reads a DiT or SiT of any size as a teacher, from the authors' file or a folder of diffusers."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.convert import folding
from gdistill.published import model_settings
from gdistill.published import schedulers
from gdistill.published import source_files
from gdistill.published import teacher
from gdistill.recipe import settings as recipes

_XL_WIDTH, _XL_HEADS = 1152, 16  # DiT-XL has 16 attention heads of 72 channels
_HEAD_DIM = 64  # channels of each attention head in DiTs smaller than DiT-XL


def read(
  path: pathlib.Path, kind: str, *, null: str, autoencoder: str, text: str
) -> teacher.Teacher:
  """Returns the DiT or SiT at `path` as a teacher.

  The width and the depth of the network follow from the arrays of the network. `kind` is 'dit' or
  'sit'. If `autoencoder` is '', the autoencoder is read from the subfolder vae/ of the diffusers
  folder. `null` and `text` are not used, because DiT and SiT have a null condition of their own and
  take no text. Raises ConfigError if `autoencoder` is '' and no subfolder vae/ is found.
  """
  component = path / 'transformer'
  file = source_files.weights_file(component if component.is_dir() else path)
  pipeline = file.parent.parent if file.parent.name == 'transformer' else file.parent
  state = source_files.read_weights(file)
  with source_files.errors_begin_with(path):
    params = dit.params_from(state)
  original = dit.is_original(state)
  # A folder beside a single file with the authors' array names may belong to another network, so
  # such a folder is not read.
  trusted = path.is_dir() or not original
  parts = {p.name for p in pipeline.iterdir() if p.is_dir()} if trusted else set()
  image_size, heads = _image_size_and_heads(file, state, params)
  noise, predict = _noise(pipeline, parts, kind)
  settings = _settings(params, image_size, heads, predict, kind, original)
  with source_files.errors_begin_with(path):
    model_settings.build(settings, noise)
  where = autoencoder or (str(pipeline / 'vae') if 'vae' in parts else '')
  if not where:
    raise errors.ConfigError(
      f"--source={path} holds no autoencoder; give the path of Stable Diffusion's autoencoder "
      '(sd-vae-ft-ema) as --autoencoder'
    )
  about = {
    'digest': source_files.digest(state),
    'null_rule': f'row {settings.num_classes} of the label table',
    'head_order': 'q, k, v in thirds',
    'epsilon': 1e-6,
  }
  frozen = autoencoders.read(where)
  return teacher.Teacher(kind, settings, noise, params, 'trained', about, autoencoder=frozen)


def _image_size_and_heads(
  file: pathlib.Path, state: Mapping[str, np.ndarray], params: Mapping[str, Any]
) -> tuple[int, int]:
  """Returns (side of the latents, number of attention heads) of a DiT or SiT.

  The side of the latents follows from the number of position embeddings in the arrays `state`; if
  `state` has no position embeddings, sample_size in config.json beside `file` is the side. If the
  arrays have the authors' names, the number of heads follows from the width of the network. If the
  arrays have diffusers' names, config.json gives the number of heads.
  """
  patch, _, _, width = params['patch']['kernel'].shape
  heads = _XL_HEADS if width == _XL_WIDTH else width // _HEAD_DIM
  if 'pos_embed' in state:
    return round(state['pos_embed'].shape[1] ** 0.5) * patch, heads
  config_file = file.with_name('config.json')
  config = source_files.read_json(config_file)
  with source_files.errors_begin_with(config_file):
    image_size = model_settings.image_size(config, 32)
    if image_size % patch:
      folding.refuse('sample_size', image_size, f'a multiple of patch_size={patch}')
    if not dit.is_original(state):
      heads = dit.heads_from(config, params)
  return image_size, heads


def _noise(pipeline: pathlib.Path, parts: Collection[str], kind: str) -> tuple[recipes.Noise, str]:
  """Returns (noise schedule, what the network predicts) of the DiT or SiT in a diffusers folder.

  The noise schedule is read from the subfolder scheduler/ of the diffusers folder `pipeline`.
  Without a subfolder scheduler/, a DiT gets DDPM's linear betas and the prediction 'eps', and a SiT
  gets the schedule 'cosine' and the prediction 'flow'. `parts` holds the names of all subfolders of
  `pipeline`, such as 'scheduler'. Raises ConfigError for a SiT with a subfolder scheduler/, because
  a SiT takes no integer timesteps.
  """
  if 'scheduler' not in parts:
    return (recipes.Noise('cosine'), 'flow') if kind == 'sit' else (schedulers.DDPM_NOISE, 'eps')
  if kind == 'sit':
    raise errors.ConfigError(
      f'--kind=sit: the folder {pipeline}/scheduler belongs to a DiT, because a SiT takes no '
      'integer timesteps and has no scheduler; use --kind=dit'
    )
  return schedulers.read(pipeline)


def _settings(
  params: Mapping[str, Any], image_size: int, heads: int, predict: str, kind: str, original: bool
) -> recipes.Model:
  """Returns the section `model` of a recipe for the DiT or SiT with the parameters `params`."""
  patch, _, channels, width = params['patch']['kernel'].shape
  out_channels = params['final']['bias'].shape[0] // patch**2
  return recipes.Model(
    image_size=image_size, image_channels=channels,
    num_classes=len(params['label']['embedding']) - 1, channels=width, multipliers=(1,),
    num_blocks=sum(name.startswith('block') for name in params), attention_resolutions=(),
    emb_channels=width, heads=heads, head_dim=None, groups=1,
    dropout=0.0, w_features=256, w_scale=1000.0, dtype='float32',
    predict=predict, network='dit', patch=patch,
    time='linear' if kind == 'sit' else 'index',
    freq_shift=0.0 if original else 1.0,  # the authors' DiT shifts by 0, and diffusers' DiT by 1
    cos_first=True, learned_sigma=out_channels == 2 * channels,
  )  # fmt: skip
