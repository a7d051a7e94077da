"""Helpers of the converters: fold batch norms into convolutions, check arrays and settings."""

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

import numpy as np

from gdistill import errors


def conv(
  state: MutableMapping[str, np.ndarray], conv: str, norm: str, epsilon: float, of: str
) -> dict:
  """Returns {'kernel', 'bias'} of a convolution without bias, with its batch norm folded in.

  The folded layer computes gamma (y - mean) / sqrt(var + epsilon) + beta for the layer's input h
  and y = conv(h). Folding is computed in float64, and the returned arrays are float32. The arrays
  of the convolution and of the batch norm are removed from `state`. The kernel is [O, I, H, W] in
  `state` (torch), and [H, W, I, O] in the returned dict (Flax). `of` names the network in errors.
  """
  kernel = taken(state, f'{conv}.weight', of)
  gamma, beta, mean, var = (
    taken(state, f'{norm}.{name}', of) for name in ('weight', 'bias', 'running_mean', 'running_var')
  )
  state.pop(f'{norm}.num_batches_tracked', None)
  factor = gamma / np.sqrt(var + epsilon)
  return {
    'kernel': (kernel * factor[:, None, None, None]).transpose(2, 3, 1, 0).astype(np.float32),
    'bias': (beta - mean * factor).astype(np.float32),
  }


def taken(state: MutableMapping[str, np.ndarray], name: str, of: str) -> np.ndarray:
  """Removes the array `name` from `state` and returns the array in float64.

  Raises ConfigError if `state` has no array `name`; `of` names the network in that error.
  """
  if name not in state:
    raise errors.ConfigError(
      f'{name!r} is missing: these are not weights of {of}; use a file with the weights of {of}'
    )
  return np.asarray(state.pop(name), np.float64)


def stored(layer: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns {'weight': shape, 'bias': shape} that torch gives to the arrays of a Flax layer.

  The shape of 'weight' is [O, I, H, W], [O, I] or [O]; the shape of 'bias' is [O].
  """
  shapes = {name: tuple(a.shape) for name, a in layer.items()}
  if 'kernel' in shapes:
    kernel = shapes['kernel']
    # Flax's shape -> torch's shape: [H, W, I, O] -> [O, I, H, W], [I, O] -> [O, I].
    shapes['kernel'] = (*kernel[:-3:-1], *kernel[:-2])
  return {'bias' if name == 'bias' else 'weight': shape for name, shape in shapes.items()}


def check(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises ConfigError with a list of all arrays in which `found` and `wanted` differ.

  `found` is {name: shape} of the arrays in a file, and `wanted` is {name: shape} of the arrays of
  the network.
  """
  problems = {
    'missing': [f'{n} {wanted[n]}'.rstrip() for n in wanted if n not in found],
    'not expected': [f'{n} {found[n]}' for n in found if n not in wanted],
    'of another shape': [
      f'{n} {found[n]} for {wanted[n]}' for n in wanted if n in found and found[n] != wanted[n]
    ],
  }
  lines = [
    f'{len(names)} {what}: {", ".join(names[:10])}{", ..." if len(names) > 10 else ""}'
    for what, names in problems.items()
    if names
  ]
  if lines:
    raise errors.ConfigError(
      'the weights are those of another network; use the weights of the network that the settings '
      f'describe: {"; ".join(lines)}'
    )


def refuse_others(
  config: Mapping[str, Any], fixed: Mapping[str, Any], aside: Collection[str]
) -> None:
  """Raises ConfigError for the first field of config.json with an unsupported value.

  Fields in `fixed` must have the value in `fixed`; false and null count as equal. Fields in `aside`
  may have any value. Fields that are neither in `fixed` nor in `aside` must be false or null.
  """
  for field, value in config.items():
    if field.startswith('_') or field in aside:
      continue
    value, only = same(value), fixed.get(field)
    if value != only and (value or only):
      refuse(field, value, repr(only) if field in fixed else 'absent')


def same(value: Any) -> Any:
  """Returns the first entry if `value` is a list of equal entries, and otherwise `value` itself."""
  alike = isinstance(value, (list, tuple)) and value and list(value) == [value[0]] * len(value)
  return value[0] if alike else value


def is_count(value: Any) -> bool:
  """Returns whether `value` is a whole number of at least 1."""
  return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def are_counts(value: Any) -> bool:
  """Returns whether `value` is a list, not empty, of whole numbers of at least 1."""
  return isinstance(value, (list, tuple)) and bool(value) and all(map(is_count, value))


def is_share(value: Any) -> bool:
  """Returns whether `value` is a number of at least 0 and below 1."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def refuse(field: str, value: Any, remedy: str) -> None:
  """Raises ConfigError, which says that `field` is `value` and must be `remedy`."""
  raise errors.ConfigError(
    f'{field} is {value!r}: it must be {remedy}; choose another network, as this one cannot be '
    'converted'
  )
