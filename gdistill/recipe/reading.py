"""Turns a config into a checked Recipe, and a Recipe into plain JSON."""

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from gdistill import errors
from gdistill.recipe import checks as recipe_checks
from gdistill.recipe import settings as recipes

# Keys whose values are paths: a ~ at the beginning becomes the home directory, because a shell does
# not expand the ~ of --config.data.path=~/pictures.
_PATHS = (
  'initial', 'data.path', 'data.classes', 'latents.autoencoder', 'latents.text', 'latents.cache',
  'evaluation.weights',
)  # fmt: skip


def from_config(config: Mapping[str, Any]) -> recipes.Recipe:
  """Returns the checked Recipe of `config`, a ConfigDict or a plain dict.

  Raises ConfigError, which names the first key that is unknown, missing, of a wrong type or out of
  limits.
  """
  plain = config.to_dict() if hasattr(config, 'to_dict') else config
  recipe = unchecked(plain)
  recipe_checks.check_recipe(recipe)
  return recipe


def unchecked(config: Mapping[str, Any]) -> recipes.Recipe:
  """Returns the Recipe of `config`, a dict, whose values may be out of the limits of this version.

  A workdir of an earlier version may hold such a config. Raises ConfigError, which names the first
  key that is unknown, missing or of a wrong type.
  """
  return _build(recipes.Recipe, config, '')


def to_dict(recipe: recipes.Recipe) -> dict:
  """Returns every key of the recipe, defaults included, as nested dicts of plain JSON types."""
  return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _build(kind: type, values: Any, prefix: str) -> Any:
  """Returns an instance of the dataclass `kind` with the field values `values`.

  `prefix`, such as 'data.', is put before the names of the keys in error lines.
  """
  where = prefix[:-1] or 'config'
  if not isinstance(values, Mapping):
    raise errors.ConfigError(f'{where}={values!r} must be a section, which is a dict of keys')
  fields = {f.name: f for f in dataclasses.fields(kind)}
  hints = typing.get_type_hints(kind)
  for key in values:
    if key not in fields:
      raise errors.ConfigError(_unknown(key, prefix, fields))
  out = {}
  for name, field in fields.items():
    if name in values:
      if dataclasses.is_dataclass(hints[name]):
        out[name] = _build(hints[name], values[name], f'{prefix}{name}.')
      else:
        out[name] = _typed(hints[name], values[name], prefix + name)
    elif field.default is dataclasses.MISSING:
      raise errors.ConfigError(
        f'{prefix}{name} is missing; add this key to the config: docs/config.md lists all keys'
      )
  return kind(**out)


def _unknown(key: str, prefix: str, fields: Mapping[str, Any]) -> str:
  """Returns the error line for an unknown key.

  The error line suggests the sections that have a key of the same name, or else the most similar
  known key.
  """
  homes = [
    f'{f.name}.{key}'
    for f in dataclasses.fields(recipes.Recipe)
    if dataclasses.is_dataclass(f.type) and key in {g.name for g in dataclasses.fields(f.type)}
  ]
  if homes:
    return f'unknown key {prefix}{key}; did you mean {" or ".join(homes)}?'
  near = difflib.get_close_matches(str(key), fields, 1, 0.4)
  hint = (
    f'did you mean {prefix}{near[0]}?'
    if near
    else f'use one of the known keys: {", ".join(fields)}'
  )
  return f'unknown key {prefix}{key}; {hint}'


def _typed(hint: Any, value: Any, name: str) -> Any:
  """Converts `value` to the type `hint`; raises ConfigError if `value` does not fit the type."""
  origin = typing.get_origin(hint)
  if origin is Literal:
    choices = typing.get_args(hint)
    if value not in choices or isinstance(value, bool):
      raise errors.ConfigError(f'{name}={value!r} must be one of {", ".join(map(str, choices))}')
    return value
  if origin is types.UnionType:
    inner = next(a for a in typing.get_args(hint) if a is not type(None))
    return None if value is None else _typed(inner, value, name)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise errors.ConfigError(f'{name}={value!r} must be a list')
    inner = typing.get_args(hint)[0]
    return tuple(_typed(inner, v, f'{name}[{i}]') for i, v in enumerate(value))
  if hint is float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) < 1e300:  # also rejects nan, inf and huge integers
      raise errors.ConfigError(f'{name}={value!r} must be a finite number')
    return float(value)
  if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
    raise errors.ConfigError(f'{name}={value!r} must be a whole number')
  if hint in (bool, str) and not isinstance(value, hint):
    kind = 'True or False' if hint is bool else 'a string'
    raise errors.ConfigError(f'{name}={value!r} must be {kind}')
  return _path(value, name) if name in _PATHS and value else value


def _path(value: str, name: str) -> str:
  """Returns the path `value` of the key `name` with the home directory in the place of a ~."""
  try:
    os.fsencode(value)
  except UnicodeEncodeError as e:
    raise errors.ConfigError(
      f'{name}={value!a} has characters that {e.encoding}, the encoding of file names of this '
      'locale, does not have; set the environment variable PYTHONUTF8=1'
    ) from e
  return os.path.expanduser(value)
