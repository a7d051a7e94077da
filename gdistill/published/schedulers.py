"""Converts diffusers' scheduler_config.json to a recipe's noise schedule, and back."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gdistill import errors
from gdistill.convert import folding
from gdistill.published import source_files
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks

DDPM_NOISE = recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02)
# Value of model.predict in a recipe -> value of prediction_type in diffusers' schedulers.
PREDICTION_TYPES = {'eps': 'epsilon', 'v': 'v_prediction', 'x': 'sample'}
_PREDICTS = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
# Classes of diffusers' schedulers whose config gdistill can read. Any of these classes will do,
# because only the betas and prediction_type describe the network; other fields choose a sampler.
_SCHEDULERS = (
  'DDIMScheduler', 'DDPMScheduler', 'PNDMScheduler', 'LMSDiscreteScheduler', 'LCMScheduler',
  'HeunDiscreteScheduler', 'EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler',
  'DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler', 'UniPCMultistepScheduler',
  'DEISMultistepScheduler',
)  # fmt: skip
# Value of beta_schedule in diffusers' schedulers -> value of noise.name in a recipe.
_BETAS = {
  'linear': 'linear_beta', 'scaled_linear': 'scaled_linear', 'squaredcos_cap_v2': 'squared_cosine'
}  # fmt: skip
_BETA_SCHEDULES = {ours: theirs for theirs, ours in _BETAS.items()}
# Values that diffusers assumes if scheduler_config.json lacks the field.
_DEFAULTS = {'beta_schedule': 'linear', 'prediction_type': 'epsilon'}
# Field of scheduler_config.json -> the only value that gdistill supports; a field that is null or
# absent is accepted too.
_FIXED = {
  'num_train_timesteps': 1000, 'trained_betas': None, 'rescale_betas_zero_snr': False,
  'use_flow_sigmas': False,
}  # fmt: skip


def read(folder: pathlib.Path) -> tuple[recipes.Noise, str]:
  """Returns (noise schedule, what the network predicts) from the folder scheduler/ in `folder`."""
  file = folder / 'scheduler' / 'scheduler_config.json'
  return noise_from(source_files.read_json(file), str(file))


def noise_from(
  config: Mapping[str, Any], where: str = 'scheduler_config.json'
) -> tuple[recipes.Noise, str]:
  """Returns (noise schedule, what the network predicts) from the config of a diffusers scheduler.

  Raises ConfigError with the name of the first field whose value gdistill does not support. `where`
  is the name of the config in error lines.
  """
  name = config.get('_class_name')
  if name not in _SCHEDULERS:
    raise errors.ConfigError(
      f'{where}: _class_name={name!r} is not a supported scheduler: _class_name must be one of '
      f'{", ".join(_SCHEDULERS)}; give another --source'
    )
  for field, value in _FIXED.items():
    if config.get(field, value) not in (value, None):
      raise errors.ConfigError(
        f'{where}: {field}={config[field]!r} must be {value!r}; gdistill cannot import a network '
        f'with another {field}; give another --source'
      )
  for field, table in (('beta_schedule', _BETAS), ('prediction_type', _PREDICTS)):
    value = config.get(field, _DEFAULTS[field])
    if value not in list(table):  # `value in table` would raise for an unhashable `value`
      raise errors.ConfigError(
        f'{where}: {field}={value!r} must be one of {", ".join(table)}; gdistill cannot import a '
        f'network with another {field}; give another --source'
      )
  found = {**_DEFAULTS, **config}
  start, end = config.get('beta_start', 1e-4), config.get('beta_end', 0.02)
  for field, value in (('beta_start', start), ('beta_end', end)):
    if not (folding.is_share(value) and value > 0):
      raise errors.ConfigError(
        f'{where}: {field}={value!r} must be a number between 0 and 1; correct the file, or '
        'download the file again'
      )
  noise = recipes.Noise(
    _BETAS[found['beta_schedule']], beta_start=float(start), beta_end=float(end)
  )
  return noise, _PREDICTS[found['prediction_type']]


def config_from(noise: recipes.Noise, predict: str, clip_sample: bool) -> dict[str, Any]:
  """Returns the config of a DDIMScheduler whose N sampling steps are at t = i/N (trailing spacing).

  A noise schedule that has no name in diffusers is written as a thousand betas
  1 - abar_i / abar_{i-1} with abar_i = sigmoid(logsnr((i + 1) / 1000)), i = 0 to 999. `predict` is
  what the network predicts: 'eps', 'v' or 'x'. If `clip_sample` is True, the scheduler clips x_hat
  to [-1, 1].
  """
  betas: dict[str, Any]
  if noise.name == 'squared_cosine':  # diffusers computes these betas from the name alone
    betas = {'beta_schedule': _BETA_SCHEDULES[noise.name], 'trained_betas': None}
  elif noise.name in _BETA_SCHEDULES:
    betas = {
      'beta_schedule': _BETA_SCHEDULES[noise.name], 'beta_start': noise.beta_start,
      'beta_end': noise.beta_end, 'trained_betas': None,
    }  # fmt: skip
  else:
    t = np.arange(1, 1001, dtype=np.float32) / 1000
    abar = np.asarray(jax.nn.sigmoid(networks.noise(noise)(t)), np.float64)
    before = np.concatenate([[1.0], abar[:-1]])
    betas = {'trained_betas': (1.0 - abar / before).tolist()}
  return {
    '_class_name': 'DDIMScheduler', **betas,
    'num_train_timesteps': 1000, 'timestep_spacing': 'trailing', 'steps_offset': 1,
    'set_alpha_to_one': True, 'prediction_type': PREDICTION_TYPES[predict],
    'clip_sample': clip_sample, 'clip_sample_range': 1.0, 'rescale_betas_zero_snr': False,
    'thresholding': False,
  }  # fmt: skip
