"""diffusers' scheduler configs as a noise schedule."""

import pathlib
from collections.abc import Mapping
from typing import Any

from gdistill import errors
from gdistill.convert import folding
from gdistill.published import common
from gdistill.recipe import settings as recipes

# Samplers whose folders say nothing of a network but its betas and what it predicts.
_SCHEDULERS = (
  'DDIMScheduler', 'DDPMScheduler', 'PNDMScheduler', 'LMSDiscreteScheduler', 'LCMScheduler',
  'HeunDiscreteScheduler', 'EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler',
  'DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler', 'UniPCMultistepScheduler',
  'DEISMultistepScheduler',
)  # fmt: skip
_BETAS = {
  'linear': 'linear_beta', 'scaled_linear': 'scaled_linear', 'squaredcos_cap_v2': 'squared_cosine'
}  # fmt: skip
_PREDICTS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x'}


def noise_from(
  config: Mapping[str, Any], where: str = 'scheduler_config.json'
) -> tuple[recipes.Noise, str]:
  """(noise, predict) of diffusers' scheduler; ConfigError names what there is no place for."""
  name = config.get('_class_name')
  if name not in _SCHEDULERS:
    raise errors.ConfigError(
      f'{where}: _class_name={name!r} is a scheduler of an unknown kind; known are '
      f'{", ".join(_SCHEDULERS)}'
    )
  only = {
    'num_train_timesteps': 1000, 'trained_betas': None, 'rescale_betas_zero_snr': False,
    'use_flow_sigmas': False,
  }  # fmt: skip
  for field, value in only.items():
    if config.get(field, value) not in (value, None):
      raise errors.ConfigError(f'{where}: {field}={config[field]!r} must be {value!r}')
  for field, table in (('beta_schedule', _BETAS), ('prediction_type', _PREDICTS)):
    value = config.get(field, {'beta_schedule': 'linear', 'prediction_type': 'epsilon'}[field])
    if value not in list(table):
      raise errors.ConfigError(f'{where}: {field}={value!r} must be one of {", ".join(table)}')
  betas = _BETAS[config.get('beta_schedule', 'linear')]
  start, end = config.get('beta_start', 1e-4), config.get('beta_end', 0.02)
  for field, value in (('beta_start', start), ('beta_end', end)):
    if not (folding.is_share(value) and value > 0):
      raise errors.ConfigError(f'{where}: {field}={value!r} must be a number between 0 and 1')
  noise = recipes.Noise(betas, beta_start=float(start), beta_end=float(end))
  return noise, _PREDICTS[config.get('prediction_type', 'epsilon')]


def read_noise(path: pathlib.Path) -> tuple[recipes.Noise, str]:
  """noise_from the scheduler/ of a folder."""
  file = path / 'scheduler' / 'scheduler_config.json'
  return noise_from(common.read_json(file), str(file))
