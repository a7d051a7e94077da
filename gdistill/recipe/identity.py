"""Decides whether two recipes belong to one run, by comparing the keys that must not change."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gdistill.recipe import reading
from gdistill.recipe import settings as recipes

# Keys and sections of a config that may change when a run is resumed, because these keys do not
# affect the trained parameters, or affect only the parameters' last bits (mesh and train.remat).
MAY_CHANGE = (
  'train.checkpoint_every',
  'train.max_to_keep',
  'train.log_every',
  'train.remat',
  'train.stall_seconds',
  'data.path',
  'data.classes',  # what the map says is in the fingerprint of the examples
  'latents.autoencoder',
  'latents.text',
  'latents.cache',
  'latents.batch_size',
  'latents.skip_corrupt',
  'data.workers',
  'data.threads',
  'data.prefetch',
  'mesh',
  'evaluation',
  'encoder',  # may change, because the rounds of the encoder come after all other rounds
)


def digest(recipe: recipes.Recipe) -> str:
  """Returns a hash of all keys that must not change between two starts of a run."""
  fields = {k: v for k, v in flat(reading.to_dict(recipe)).items() if not may_change(k)}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def digest_together(recipe: recipes.Recipe) -> str:
  """Returns a hash of all keys that must be the same in all processes of a run.

  The hash leaves out the keys that say where and how each process reads its own data.
  """
  own = {f'data.{name}' for name in ('path', 'classes', 'workers', 'threads', 'prefetch')}
  own |= {f'latents.{name}' for name in ('autoencoder', 'text', 'cache')}
  fields = {k: v for k, v in flat(reading.to_dict(recipe)).items() if k not in own}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns 'key: old -> new' for each key that must not change but differs in two configs."""
  a, b = flat(old), flat(new)
  keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and not may_change(k)]
  return [f'{k}: {a.get(k)!r} -> {b.get(k)!r}' for k in keys]


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens nested dicts: {'a': {'b': 1}} -> {'a.b': 1}."""
  out = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      out |= flat(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out


def may_change(key: str) -> bool:
  """Returns whether a key, such as 'data.path', may change between two starts of one run."""
  return any(key == name or key.startswith(name + '.') for name in MAY_CHANGE)
