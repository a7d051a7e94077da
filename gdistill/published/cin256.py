"""Latent diffusion's class-conditional ImageNet network."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import files
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.models import latent_unet
from gdistill.published import common
from gdistill.published import schedulers
from gdistill.published import stable_diffusion
from gdistill.recipe import settings as recipes

_LDM_NOISE = recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)


def read(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """Latent diffusion's class-conditional network, by its own names in one file or by diffusers'."""
  if path.is_dir() and (path / 'unet').is_dir():
    config, state = common.read_part(path, 'unet')
    beside = path / 'class_embedder' / common.WEIGHTS
    if unet2d.CLASSES not in state and beside.is_file():
      tables = list(common.read_state(beside).values())
      state |= {unet2d.CLASSES: tables[0]} if tables else {}
    noise, predict = schedulers.read_noise(path)
    with common.naming(path / 'unet' / 'config.json'):
      fields = unet2d.settings_from(config, _classes(state, path))
      settings = stable_diffusion.latent_settings(fields, common.sample_size(config, 64), predict)
      net = common.check_network(settings, noise)
    with common.naming(path / 'unet'):
      params = unet2d.params_from(state, net)
    where = next((path / n for n in ('vqvae', 'vae', 'autoencoder') if (path / n).is_dir()), path)
  else:
    state = files.weights(common.one_file(path))
    fields = latent_unet.LatentUNet(**latent_unet.CIN256)
    fields = {f.name: getattr(fields, f.name) for f in dataclasses.fields(fields)}
    fields['num_classes'] = _classes(state, path)
    settings, noise = stable_diffusion.latent_settings(fields, 64, 'eps'), _LDM_NOISE
    where = common.one_file(path)
    with common.naming(where):
      net = common.check_network(settings, noise)
      ours = {id(a) for a in unet2d.ldm_renamed(state, net).values()}
      common.check_finite(where, {name: a for name, a in state.items() if id(a) in ours})
      params = unet2d.ldm_params_from(state, net)
  about = {
    'digest': common.digest(state), 'null_rule': f'row {settings.num_classes} of the class table',
    'head_order': 'q, k, v apart', 'epsilon': settings.epsilon,
  }  # fmt: skip
  found = autoencoders.read(autoencoder or where)
  return common.Teacher(kind, settings, noise, params, 'trained', None, found, None, about)


def _classes(state: Mapping[str, np.ndarray], path: pathlib.Path) -> int:
  if unet2d.CLASSES not in state:
    raise errors.ConfigError(
      f'{path} has no {unet2d.CLASSES}, the table of classes, and is no class-conditional network '
      "of latent diffusion's; of Stable Diffusion name a folder as diffusers writes it"
    )
  shape = np.shape(state[unet2d.CLASSES])
  if len(shape) != 2 or shape[0] < 2:
    raise errors.ConfigError(
      f'{path}: {unet2d.CLASSES} is {shape} and must be (classes + 1, width)'
    )
  return shape[0] - 1
