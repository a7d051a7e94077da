"""Reads a config (a Python file with get_config, or JSON) and applies command-line overrides."""

import ast
import contextlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from gdistill import errors


def load(spec: str, overrides: Sequence[str]) -> dict:
  """Returns the config `spec` as a plain dict with the overrides applied.

  `spec` is file.py, file.py:variant or a JSON file. A .py config is executed as code; a JSON
  config, such as config.json of a workdir, is only parsed. `from configs import common` in a .py
  config reads the common.py of that config's own folder. An override is
  '--config.section.key=value', whose value is a Python literal or else a string. Raises ConfigError
  that names the wrong file, line or key of the config.
  """
  path, _, argument = spec.partition(':') if '.py:' in spec else (spec, '', '')
  if not os.path.isfile(path):
    raise errors.ConfigError(
      f'--config={spec} does not exist; give the path of a config, such as configs/digits.py'
    )
  config = _json_config(path) if path.endswith('.json') else _python_config(path, argument)
  override(config, overrides)
  return config


def override(config: dict, overrides: Sequence[str]) -> None:
  """Sets in `config` the value of each override '--config.section.key=value'."""
  for text in overrides:
    _override(config, text)


def _json_config(path: str) -> dict:
  try:
    with open(path, 'rb') as f:
      return json.load(f)  # json decodes UTF-8, with a byte-order mark too, and UTF-16
  except (ValueError, OSError, RecursionError) as e:
    raise errors.ConfigError(
      f'--config={path} is not readable JSON: {errors.brief(e)}; correct the file'
    ) from e


def _python_config(path: str, argument: str) -> dict:
  name, folder = os.path.basename(path), os.path.dirname(os.path.realpath(path))
  try:
    with _as_configs(folder):
      spec = importlib.util.spec_from_file_location('gdistill_config', path)
      if spec is None:
        raise errors.ConfigError(
          f'--config={path} must be a .py or .json file; give the path of such a file'
        )
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
      if not hasattr(module, 'get_config'):
        raise errors.ConfigError(
          f'--config={path} has no function get_config, so it is not a config; '
          'give the path of a config, such as configs/digits.py'
        )
      config = module.get_config(argument) if argument else module.get_config()
      return config.to_dict() if hasattr(config, 'to_dict') else dict(config)
  except errors.ConfigError:
    raise
  except SyntaxError as e:
    imported = e.filename is not None and e.filename != path
    at = f'{path} imports {e.filename},' if imported else path
    raise errors.ConfigError(f'--config={at} line {e.lineno}: {e.msg}; correct the file') from e
  except ValueError as e:  # a config raises ValueError for a variant that the config does not have
    raise errors.ConfigError(f'--config={path}: {e}') from e
  except Exception as e:  # get_config is the user's code and may raise any exception
    if file := _missing(e):
      raise errors.ConfigError(
        f'--config={path} imports {file}, which {folder} does not have; '
        f"copy {file} there from gdistill's configs/"
      ) from e
    raise errors.ConfigError(
      f'--config={name} failed: {type(e).__name__}: {errors.brief(e)}; correct the file'
    ) from e


@contextlib.contextmanager
def _as_configs(folder: str) -> Iterator[None]:
  """Makes `from configs import ...` read the files of `folder` until the context ends.

  When the context ends, sys.modules is restored, so that the next config can import the files of
  the next config's own folder.
  """

  def imported():
    return {k: v for k, v in sys.modules.items() if k.partition('.')[0] == 'configs'}

  before = imported()
  for name in before:
    del sys.modules[name]
  sys.modules['configs'] = types.ModuleType('configs')
  sys.modules['configs'].__path__ = [folder]
  try:
    yield
  finally:
    for name in imported():
      del sys.modules[name]
    sys.modules.update(before)


def _missing(e: Exception) -> str:
  """Returns the file, such as common.py, that a failed import from `configs` lacks, else ''."""
  if isinstance(e, ModuleNotFoundError) and (e.name or '').startswith('configs.'):
    return e.name.removeprefix('configs.') + '.py'  # `import configs.common` raised `e`
  if isinstance(e, ImportError) and e.name == 'configs':
    # `from configs import common` raised `e`; before Python 3.12, only the message of `e` names the
    # missing module.
    return str(e).split("'")[1] + '.py'
  return ''


def _override(config: dict, override: str) -> None:
  key, equals, text = override.removeprefix('--config.').partition('=')
  if not override.startswith('--config.') or not equals or not key:
    raise errors.ConfigError(
      f'unknown argument {override}; to override a key of the config, write '
      '--config.section.key=value'
    )
  *sections, last = key.split('.')
  here: Any = config
  for section in sections:
    if not isinstance(here, dict) or section not in here:
      raise errors.ConfigError(
        f'unknown key {key} in {override}: the config has no section {section!r}; '
        'docs/config.md lists all keys'
      )
    here = here[section]
  if not isinstance(here, dict):
    raise errors.ConfigError(
      f'unknown key {key} in {override}: {".".join(sections) or "the config"} has no keys; '
      'docs/config.md lists all keys'
    )
  try:
    here[last] = ast.literal_eval(text)
  except Exception:  # `text` is no Python literal, so the value is a string
    here[last] = text
