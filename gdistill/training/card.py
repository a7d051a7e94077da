"""Makes card.json of a finished round: how to use the network, and how the network was trained."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax

from gdistill.recipe import reading
from gdistill.rounds import plan as plans
from gdistill.training import stage_setup
from gdistill.workdir import state as states
from gdistill.workdir import storage


def make_card(
  r: plans.Round,
  setup: stage_setup.StageSetup,
  state: states.TrainState,
  seconds: float,
  of_run: Mapping[str, Any],
) -> dict:
  """Returns the contents of round `r`'s card.json; `of_run` holds entries shared by all rounds."""
  teacher = r.stage == 'teacher'
  sampler = {'progressive': getattr(setup.settings, 'sampler', ''), 'encoder': 'deterministic'}
  return {
    'stage': r.stage,
    'num_steps': r.num_steps,
    'sampler': sampler.get(r.stage, 'any'),
    'takes_w': setup.takes_w,
    'guided': setup.guided,
    'p_uncond': setup.p_uncond,
    'null_label': -1,
    'w_min': setup.w_min,
    'w_max': setup.w_max,
    'clip_x_hat': not teacher and setup.settings.clip_x_hat,
    'predict': setup.model.predict,
    'model': reading.to_dict(setup.model),
    'noise': reading.to_dict(setup.noise),
    'teacher': str(storage.path(r.teacher)) if r.outside else r.teacher,
    'steps': r.steps,
    'lr': r.lr,
    'skipped': int(state.skipped),
    'parameters': sum(a.size for a in jax.tree.leaves(states.handed_on(state))),
    'seconds': round(seconds, 3),
    'versions': versions(),
    **of_run,
  }


def versions() -> dict[str, str]:
  """Returns the versions of Python, gdistill, JAX and related packages, and JAX's backend."""
  names = ('gdistill', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  found = {'python': platform.python_version(), 'backend': jax.default_backend()}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'not installed'
  return found
