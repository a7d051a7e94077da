"""Which recipes are the same run: digests, and the settings that may change between two starts."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gdistill.recipe import reading
from gdistill.recipe import settings as recipes

# What may change between two starts of one run. Nothing here reaches the parameters, but for the
# mesh and remat, which decide their last bits.
MAY_CHANGE = (
  'train.checkpoint_every',
  'train.max_to_keep',
  'train.log_every',
  'train.remat',
  'train.stall_seconds',
  'data.path',
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
  'encoder',  # adds rounds behind all others, or leaves them out
)


def digest(recipe: recipes.Recipe) -> str:
  """A hash of everything that must not change between two starts of a run."""
  fields = {k: v for k, v in flat(reading.to_dict(recipe)).items() if not _may_change(k)}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def digest_together(recipe: recipes.Recipe) -> str:
  """A hash of everything that must be the same in all processes of one start: but for how each
  reads its data, all of it.
  """
  own = {f'data.{name}' for name in ('path', 'workers', 'threads', 'prefetch')}
  own |= {f'latents.{name}' for name in ('autoencoder', 'text', 'cache')}
  fields = {k: v for k, v in flat(reading.to_dict(recipe)).items() if k not in own}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """'field: old -> new' for each field that differs and may not."""
  a, b = flat(old), flat(new)
  keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and not _may_change(k)]
  return [f'{k}: {a.get(k)!r} -> {b.get(k)!r}' for k in keys]


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}."""
  out = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      out |= flat(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out


def _may_change(key: str) -> bool:
  return any(key == name or key.startswith(name + '.') for name in MAY_CHANGE)
