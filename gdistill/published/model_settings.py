"""Converts a published network's settings to a recipe's section `model`, and builds the network."""

from collections.abc import Mapping
from typing import Any

from gdistill import errors
from gdistill.convert import folding
from gdistill.recipe import checks as recipe_checks
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks


def of_latent_unet(fields: Mapping[str, Any], image_size: int, predict: str) -> recipes.Model:
  """Returns the section `model` of a recipe for a LatentUNet with the given `fields`.

  `image_size` is the side of the latents. Raises ConfigError if the section `model` cannot describe
  the network; the error names the field of diffusers' config.json that does not fit.
  """
  channels, heads = fields['channels'], fields['heads']
  if any(c % channels[0] for c in channels):
    raise errors.ConfigError(
      f'block_out_channels={list(channels)} must all be multiples of the first, {channels[0]}; '
      'gdistill cannot import other widths; give another --source'
    )
  if image_size % 2 ** (len(channels) - 1):
    raise errors.ConfigError(
      f'sample_size={image_size} must be divisible by {2 ** (len(channels) - 1)}: {len(channels)} '
      f'levels halve the sides {len(channels) - 1} times; correct sample_size in this file'
    )
  dims = {c // h for c, h in zip(channels, heads, strict=True)}
  if len(set(heads)) > 1 and len(dims) > 1:
    raise errors.ConfigError(
      f'attention_head_dim={list(heads)} must give all levels the same number of heads, or heads '
      'of the same width; gdistill cannot import other heads; give another --source'
    )
  attends = tuple(image_size >> i for i, on in enumerate(fields['attention']) if on)
  return recipes.Model(
    image_size=image_size,
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


def image_size(config: Mapping[str, Any], default: int) -> int:
  """Returns sample_size of diffusers' config.json: the side of the square images or latents.

  Returns `default` if `config` has no sample_size. Raises ConfigError if sample_size is neither a
  whole number nor a list of two equal whole numbers.
  """
  size = config.get('sample_size')
  size = default if size is None else size
  side = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
  if not folding.is_count(side):
    raise errors.ConfigError(
      f'sample_size={size!r} must be a whole number of at least 1, or a list of two equal whole '
      'numbers; correct sample_size in this file'
    )
  return side


def build(settings: recipes.Model, noise: recipes.Noise) -> networks.Network:
  """Returns the network that `settings` describes, without an input for w.

  Raises ConfigError if a value of `settings` or `noise` is not allowed in a recipe.
  """
  recipe_checks.check_model(settings)
  recipe_checks.check_noise(noise)
  recipe_checks.check_predict(settings, noise)
  return networks.build(settings, False, noise_settings=noise)
