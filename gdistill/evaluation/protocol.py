"""The protocol of a row of metrics: how pictures were measured; must be equal within a table."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from gdistill import errors

# Keys of the protocol that must be equal in all rows of a table. Keys that are not in this list
# (sampler, num_steps, w, network_calls, ...) may differ, because a table compares their values.
SHARED = (
  'extractor',
  'extractor_digest',
  'resize',
  'normalisation',
  'images',
  'bank',  # number of pictures whose features precision, recall and KID use
  'reference_set',
  'reference_split',
  'reference_digest',
  'reference_images',
  'reference_bank',
  'reference_size',
)
# Keys of the protocol that must be equal in all rows that have a value for the key. A row may lack
# some of these values, because they are unknown for pictures that another program made, and the
# CLIP keys have no value without captions.
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
  """Returns {package: version} of the Python packages whose version can change a metric."""
  return {name: metadata.version(name) for name in _PACKAGES}


def versions_in_words() -> str:
  """Returns the package versions of `versions` as one line: 'gdistill 0.1.0, jax 0.10.2, ...'."""
  return ', '.join(f'{name} {version}' for name, version in versions().items())


def differences(rows: Iterable[Mapping[str, Any]]) -> dict[str, list]:
  """Returns {key: the different values} for every key of the protocol in which the rows differ.

  If a row has no 'extractor', its protocol is unknown, so the result then has the key 'extractor'.
  """
  rows, out = list(rows), {}
  for key in (*SHARED, *WHERE_KNOWN):
    values = {json.dumps(r.get(key), sort_keys=True): r.get(key) for r in rows}
    if key in WHERE_KNOWN:
      values.pop('null', None)
    unsaid = key == 'extractor' and None in values.values()
    if len(values) > 1 or unsaid:
      out[key] = list(values.values())
  return out


def check(rows: Sequence[Mapping[str, Any]], remedy: str = 'pass --mixed to print them') -> None:
  """Raises ConfigError if the rows of one table differ in a key of the protocol."""
  found = differences(rows)
  if found:
    text = '; '.join(f'{k}: {" against ".join(map(str, v))}' for k, v in found.items())
    raise errors.ConfigError(
      f'the rows of metrics were measured by different protocols ({text}), so the numbers do not '
      f'compare; '
      f'{remedy}'
    )


def digest(shared: Mapping[str, Any]) -> str:
  """Returns twelve hex digits of a hash over the keys of the protocol in the row `shared`."""
  text = json.dumps({k: shared.get(k) for k in (*SHARED, *WHERE_KNOWN)}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
