"""The protocol of a figure, stored in the figure's row; a table holds figures of one protocol."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from gdistill import errors

# Keys that must agree between the rows of a table. The other keys of a row (sampler, num_steps, w,
# network_calls, checkpoint, seconds) may differ: a table compares rows by them.
SHARED = (
  'extractor',
  'extractor_digest',
  'resize',
  'normalisation',
  'images',
  'bank',  # number of pictures whose features are kept for precision, recall and KID
  'reference_set',
  'reference_split',
  'reference_digest',
  'reference_images',
  'reference_bank',
  'reference_size',
)
# Keys that must agree between rows in which they are known. They are unknown for pictures that
# another program made, and the keys of CLIP are unknown without captions.
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
  """Returns {package: version} of the packages that figures depend on."""
  return {name: metadata.version(name) for name in _PACKAGES}


def versions_in_words() -> str:
  """Returns the versions as one line: 'gdistill 0.1.0, jax 0.10.2, ...'."""
  return ', '.join(f'{name} {version}' for name, version in versions().items())


def differences(rows: Iterable[Mapping[str, Any]]) -> dict[str, list]:
  """Returns {key: its values} of the protocol's keys in which rows differ.

  A row without an extractor has no protocol, and so differs from every row.
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
  """Raises ConfigError if the figures of one table were made under different protocols."""
  found = differences(rows)
  if found:
    text = '; '.join(f'{k}: {" against ".join(map(str, v))}' for k, v in found.items())
    raise errors.ConfigError(
      f'these figures were made under different protocols ({text}), so they are not comparable; '
      f'{remedy}'
    )


def digest(shared: Mapping[str, Any]) -> str:
  """Returns twelve hex digits of a hash of a row's protocol."""
  text = json.dumps({k: shared.get(k) for k in (*SHARED, *WHERE_KNOWN)}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
