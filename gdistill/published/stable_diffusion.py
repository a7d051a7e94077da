"""Stable Diffusion from a folder in diffusers' layout."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.convert import text as texts
from gdistill.published import common
from gdistill.published import schedulers
from gdistill.recipe import settings as recipes


def latent_settings(fields: Mapping[str, Any], size: int, predict: str) -> recipes.Model:
  """The recipe's section of a LatentUNet's fields; ConfigError where it has no place for them."""
  channels, heads = fields['channels'], fields['heads']
  if any(c % channels[0] for c in channels):
    raise errors.ConfigError(
      f'block_out_channels={list(channels)} are not multiples of the first of them'
    )
  if size % 2 ** (len(channels) - 1):
    raise errors.ConfigError(
      f'sample_size={size} must be divisible by {2 ** (len(channels) - 1)}: {len(channels)} levels '
      f'halve it {len(channels) - 1} times'
    )
  dims = {c // h for c, h in zip(channels, heads, strict=True)}
  if len(set(heads)) > 1 and len(dims) > 1:
    raise errors.ConfigError(f'attention_head_dim={list(heads)} is neither one number of heads nor '
                             'one size of head for all levels')  # fmt: skip
  attends = tuple(size >> i for i, on in enumerate(fields['attention']) if on)
  return recipes.Model(
    image_size=size,
    image_channels=fields['out_channels'],
    num_classes=fields['num_classes'] or 1,
    channels=channels[0],
    multipliers=tuple(c // channels[0] for c in channels),
    num_blocks=fields['num_blocks'],
    attention_resolutions=attends,
    emb_channels=fields['emb_channels'] or 4 * channels[0],
    heads=heads[0] if len(set(heads)) == 1 else None,
    head_dim=None if len(set(heads)) == 1 else dims.pop(),
    groups=fields['groups'],
    dropout=fields['dropout'],
    w_features=fields['w_features'] or 256,
    w_scale=1000.0,
    dtype='float32',
    predict=predict,
    network='latent_unet',
    context=fields['context'],
    context_dim=fields['context_dim'],
    context_length=fields.get('context_length', 77) if fields['context'] == 'text' else 0,
    transformer_depth=fields['transformer_depth'],
    linear_projection=fields['linear_projection'],
    extra_channels=fields['extra_channels'],
    time='index',
    epsilon=fields['epsilon'],
    freq_shift=0.0,
    cos_first=True,
  )


def read(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """A folder of diffusers': unet, vae, text_encoder, tokenizer, scheduler."""
  config, state = common.read_part(path, 'unet')
  noise, predict = schedulers.read_noise(path)
  if config.get('time_cond_proj_dim'):
    raise errors.ConfigError(
      f'{path}/unet: time_cond_proj_dim={config["time_cond_proj_dim"]}: it takes w already, so it '
      'is a student and no teacher; of students those can be read that gdistill exported, with the '
      'folder gdistill/ beside'
    )
  where = path / 'unet' / 'config.json'
  with common.naming(where):
    fields = unet2d.settings_from(config)
  encoder = texts.read(text or str(path))
  fields['context_length'] = encoder.length
  if encoder.width != fields['context_dim']:
    raise errors.ConfigError(
      f'{path}/unet attends to {fields["context_dim"]} channels, and the text encoder has '
      f'{encoder.width}; name its own with --text'
    )
  with common.naming(where):
    settings = latent_settings(fields, common.sample_size(config, 64), predict)
    net = common.check_network(settings, noise)
  with common.naming(path / 'unet'):
    params = unet2d.params_from(state, net)
  ids, mask, _ = encoder.tokens([''])
  params['null_text'] = np.asarray(encoder.encode(encoder.params, ids, mask)[0], np.float32)
  found = autoencoders.read(autoencoder or path / 'vae')
  about = {
    'digest': common.digest(state),
    'null_rule': "the text ''",
    'head_order': 'q, k, v apart',
  }
  return common.Teacher(
    kind, settings, noise, params, 'trained', None, found, encoder,
    {**about, 'epsilon': settings.epsilon},
  )  # fmt: skip
