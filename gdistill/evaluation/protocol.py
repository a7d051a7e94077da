"""How a figure was made, in the row that holds it; figures made differently share no table."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from gdistill import errors

# What must agree between figures that are compared. What else a row says (sampler, num_steps, w,
# network_calls, checkpoint, seconds) is what a table compares.
SHARED = (
  'extractor',
  'extractor_digest',
  'resize',
  'normalisation',
  'images',
  'bank',  # pictures whose features have neighbours
  'reference_set',
  'reference_split',
  'reference_digest',
  'reference_images',
  'reference_bank',
  'reference_size',
)
# What must agree where it is known: not of somebody else's pictures, nor without captions.
WHERE_KNOWN = (
  'rounding',
  'labels',
  'clipping',
  'pictures_resize',
  'reference_resize',
  'clip',
  'clip_digest',
)
_PACKAGES = ('gdistill', 'jax', 'jaxlib', 'flax', 'numpy')


def versions() -> dict[str, str]:
  """Of the packages that figures depend on."""
  return {name: metadata.version(name) for name in _PACKAGES}


def versions_in_words() -> str:
  """'gdistill 0.1.0, jax 0.10.2, ...'."""
  return ', '.join(f'{name} {version}' for name, version in versions().items())


def differences(rows: Iterable[Mapping[str, Any]]) -> dict[str, list]:
  """{key: its values} of the shared keys in which rows differ; a row without protocol differs."""
  rows, out = list(rows), {}
  for key in (*SHARED, *WHERE_KNOWN):
    values = {json.dumps(r.get(key), sort_keys=True): r.get(key) for r in rows}
    if key in WHERE_KNOWN:
      values.pop('null', None)
    unsaid = key == 'extractor' and None in values.values()
    if len(values) > 1 or unsaid:
      out[key] = list(values.values())
  return out


def check(rows: Sequence[Mapping[str, Any]], remedy: str = 'ask for them by --mixed') -> None:
  """ConfigError where figures in one table were made under different protocols."""
  found = differences(rows)
  if found:
    text = '; '.join(f'{k}: {" against ".join(map(str, v))}' for k, v in found.items())
    raise errors.ConfigError(
      f'these figures were made under different protocols ({text}): they do not compare; {remedy}'
    )


def digest(shared: Mapping[str, Any]) -> str:
  """Twelve hex digits naming a protocol: the shared keys of a row."""
  text = json.dumps({k: shared.get(k) for k in (*SHARED, *WHERE_KNOWN)}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
