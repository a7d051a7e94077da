"""The card.json that a finished round gets."""

import importlib.metadata
import platform

import jax

from gdistill.frozen import encode
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import state as states
from gdistill.workdir import storage


def make_card(recipe, r, state, examples, seconds) -> dict:
  """What a reader of the folder must know, and what it is good to know."""
  params = states.handed_on(state)
  plain = reading.to_dict(recipe)
  teacher = r.stage == 'teacher'
  samplers = {'progressive': recipe.progressive.sampler, 'encoder': 'deterministic'}
  return {
    'stage': r.stage,
    'num_steps': r.num_steps,
    'sampler': samplers.get(r.stage, 'any'),
    'takes_w': recipe.takes_w and not teacher,
    'guided': teacher or recipe.naive,
    'p_uncond': recipe.teacher.p_uncond if teacher or recipe.naive else 0.0,
    'null_label': -1,
    'w_min': recipe.guidance.w_min,
    'w_max': recipe.guidance.w_max,
    'clip_x_hat': not teacher and recipe.settings(r.stage).clip_x_hat,
    'predict': recipe.model.predict,
    'model': plain['model'],
    'noise': plain['noise'],
    'class_names': list(examples.class_names),
    'latents': encode.about(recipe),
    'data': {'examples': len(examples), 'fingerprint': examples.fingerprint},
    'teacher': str(storage.path(r.teacher)) if r.outside else r.teacher,
    'licence': finished_rounds.read_card(recipe.initial).get('licence') if recipe.initial else None,
    'steps': r.steps,
    'lr': r.lr,
    'skipped': int(state.skipped),
    'seed': recipe.seed,
    'parameters': sum(a.size for a in jax.tree.leaves(params)),
    'seconds': round(seconds, 3),
    'config': plain,
    'config_digest': identity.digest(recipe),
    'versions': versions(),
  }


def versions() -> dict[str, str]:
  names = ('gdistill', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  found = {'python': platform.python_version(), 'backend': jax.default_backend()}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'not installed'
  return found
