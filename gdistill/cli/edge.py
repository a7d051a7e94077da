"""The edge of the program: arguments in, one clear line and an exit code out."""

import argparse
import ast
import contextlib
import importlib.util
import json
import os
import pathlib
import secrets
import shutil
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gdistill import errors
from gdistill.process import interrupt


class Parser(argparse.ArgumentParser):
  """argparse with one-line errors and the debug switch every command has."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, allow_abbrev=False, **kwargs)
    self.add_argument('--debug', action='store_true', help='show tracebacks of errors')

  def error(self, message: str):
    raise errors.ConfigError(f'{message}; see {self.prog} --help')


def call(command: Callable[[], int], debug: bool) -> int:
  """Runs a command; an error of ours becomes one line on stderr and its exit code."""
  try:
    return command()
  except errors.GdistillError as e:
    if debug:
      traceback.print_exc()
    print(f'gdistill: {e}', file=sys.stderr)
    if isinstance(e, errors.PeerError):  # nobody to leave, and asking JAX would wait for them
      _exit(e.exit_code)
    _leave_others(e.exit_code)
    return e.exit_code
  except BrokenPipeError:  # `| head` has seen enough; Python would flush once more at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except Exception:  # a fault of ours: its traceback, and no peer left waiting for this process
    traceback.print_exc()
    _leave_others(1)
    return 1
  except KeyboardInterrupt:
    print('gdistill: interrupted before anything was to be saved', file=sys.stderr)
    jax = sys.modules.get('jax')
    if (
      jax is not None and jax.distributed.is_initialized()
    ):  # or still joining: do not ask for more
      _exit(130)
    return 130


def _leave_others(code: int) -> None:
  """Ends one of several processes at once.

  JAX would wait at the exit for the others, who wait for this one inside a step: minutes later all
  would abort, and nobody would know why.
  """
  jax = sys.modules.get('jax')
  if jax is None or not jax.distributed.is_initialized() or jax.process_count() == 1:
    return
  if jax.process_index() == 0:
    time.sleep(5)  # the others' lifeline: whoever leaves with it for the same reason goes first
  _exit(code)


def leave(code: int) -> None:
  """Ends the program, at once where a compile is under way.

  It takes minutes, and an orderly end would take from under it what it works on.
  """
  if any(t.name == interrupt.COMPILING for t in threading.enumerate()):
    _exit(code)
  sys.exit(code)


def _exit(code: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
  """Arguments, or SystemExit(2) after one line.

  A shell leaves ~ as it is after --out=.
  """
  try:
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
      if isinstance(value, str) and (value == '~' or value.startswith('~/')):
        setattr(args, name, os.path.expanduser(value))
    return args
  except errors.ConfigError as e:
    print(f'gdistill: {e}', file=sys.stderr)
    raise SystemExit(2) from None


def add_processes(parser: Parser) -> None:
  """The flags of `parallel.start`."""
  parser.add_argument('--coordinator', help='HOST:PORT of process 0, for several processes')
  parser.add_argument('--num_processes', type=int, help='how many there are, in all')
  parser.add_argument('--process_id', type=int, help='which of them this is, from 0 on')


def check_new(out: Any) -> None:
  """ConfigError unless --out is a folder that is empty or does not exist."""
  from gdistill.workdir import storage

  storage.check_writable('--out', out)
  if storage.exists(out) and (not storage.path(out).is_dir() or storage.list_dir(out)):
    raise errors.ConfigError(f'--out={out} is not empty or no folder; name another folder')


def check_new_here(out: str) -> None:
  """`check_new` of a folder on a local disk."""
  if '://' in out:
    raise errors.ConfigError(f'--out={out} must be a local path; copy it from there')
  check_new(out)


@contextlib.contextmanager
def whole(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder beside `out` to write into, which is `out` once all is written and gone otherwise."""
  out = out.resolve()  # which may be a link to an empty folder
  temporary = out.parent / f'.tmp-{out.name}-{secrets.token_hex(4)}'
  try:
    temporary.mkdir(parents=True)
    yield temporary
    if out.exists():
      out.rmdir()  # it is empty
    temporary.rename(out)
  except OSError as e:
    named = str(e.filename or temporary)
    if not named.startswith((str(temporary), str(out))):
      raise errors.DataError(f'{named} cannot be read: {e.strerror}; mend that') from e
    raise errors.CheckpointError(f'{out} cannot be written: {e.strerror}; free space') from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def owned(workdir: Any, seconds: Any, stall_seconds: float) -> Iterator[Any]:
  """Holds a workdir for all processes; yields the interrupt, and accounts for the seconds.

  A watchdog ends what is stuck: `stall_seconds` without a step.
  """
  import jax

  from gdistill.devices import processes
  from gdistill.process import interrupt
  from gdistill.process import watchdog
  from gdistill.workdir import ledger

  writer = jax.process_index() == 0
  lock = ledger.Lock(workdir) if writer else contextlib.nullcontext()
  early = processes.HEARTBEAT / 2 if jax.process_count() > 1 else 0.0  # or the others end this one
  dog = watchdog.Watchdog(workdir, stall_seconds, jax.process_index(), early)
  stop = interrupt.Interrupt(lock.check if writer else lambda: None, dog)
  with stop, lock, dog:
    try:
      _check_shared(workdir, lock.token if writer else '')
      yield stop
    finally:
      if seconds.spent and writer and not lock.lost:
        _account(workdir, seconds)
    # A signal is noted here, too: process 0 hears the same one and ends all of them.
    processes.barrier('the report is written', hours=48)


def _account(workdir, seconds) -> None:
  """Notes where the time went; a full disk or a damaged note changes nothing of how it ended."""
  from gdistill.process import progress
  from gdistill.process import timing

  try:
    timing.account(workdir, seconds, write=True)
  except errors.GdistillError as e:
    progress.say(f'warning: where the seconds went was not noted: {e}')


_SHARED_WITHIN = 60  # seconds: for so long NFS believes that a file which was not there is not


def _check_shared(workdir, token: str) -> None:
  """Several processes write one workdir: each must see the lock that process 0 has just taken."""
  from gdistill.devices import processes
  from gdistill.workdir import ledger

  token, last = processes.of_first(token), time.monotonic() + _SHARED_WITHIN
  while (unseen := bool(token) and ledger.token(workdir) != token) and time.monotonic() < last:
    time.sleep(1)
  if processes.any_process(unseen):
    raise errors.ConfigError(
      f'--workdir={workdir} is not the same folder for all processes; name one that they share'
    )


def add_extractor(parser: Parser, otherwise: str = '') -> None:
  """The flags that `extractor` reads; `otherwise` is said beside the default."""
  parser.add_argument(
    '--extractor', choices=('inception', 'lite0', 'clip_b32', 'clip_l14'),
    help=f'feature network; default: inception, whose distance is FID{otherwise}',
  )  # fmt: skip
  parser.add_argument('--weights', help='its file; default: where gdistill convert puts it')
  parser.add_argument(
    '--resize',
    choices=('tf1', 'half_pixel'),
    help="inception's: as the reference implementations (default), or as pytorch-fid",
  )


def extractor(args: argparse.Namespace):
  """The feature network that the flags ask for."""
  from gdistill.evaluation.features import extractors

  name = args.extractor or 'inception'
  if args.resize and name != 'inception':
    raise errors.ConfigError(f'--resize={args.resize} is of inception; {name} has its own')
  options = {'resize': args.resize} if args.resize else {}
  return extractors.load(name, args.weights or '', **options)


def load_config(spec: str, overrides: Sequence[str]) -> dict:
  """The plain dict of `file.py[:argument]` or a resolved `config.json`, with overrides.

  A .py config is code and is executed; the JSON form, which every workdir holds, is not.
  `from configs import common` in a .py config reads the common.py of that config's own folder.
  Overrides are '--config.section.key=value' with Python literals, anything else is a string.
  """
  path, _, argument = spec.partition(':') if '.py:' in spec else (spec, '', '')
  if not os.path.isfile(path):
    raise errors.ConfigError(
      f'--config={spec} does not exist; configs/ has the ones that come with it'
    )
  config = _json_config(path) if path.endswith('.json') else _python_config(path, argument)
  override(config, overrides)
  return config


def override(config: dict, overrides: Sequence[str]) -> None:
  """Sets '--config.section.key=value' of each."""
  for one in overrides:
    _override(config, one)


def _json_config(path: str) -> dict:
  try:
    with open(path, encoding='utf-8') as f:
      return json.load(f)
  except (ValueError, OSError) as e:
    raise errors.ConfigError(f'--config={path} is not readable JSON: {errors.brief(e)}') from e


def _python_config(path: str, argument: str) -> dict:
  name, folder = os.path.basename(path), os.path.dirname(os.path.realpath(path))
  try:
    with _as_configs(folder):
      spec = importlib.util.spec_from_file_location('gdistill_config', path)
      if spec is None:
        raise errors.ConfigError(f'--config={path} must be a .py or .json file')
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
      if not hasattr(module, 'get_config'):
        raise errors.ConfigError(
          f'--config={path} has no function get_config, so it is not a config; '
          'name another file, for example configs/digits.py'
        )
      config = module.get_config(argument) if argument else module.get_config()
      return config.to_dict() if hasattr(config, 'to_dict') else dict(config)
  except errors.ConfigError:
    raise
  except SyntaxError as e:
    imported = e.filename is not None and e.filename != path
    at = f'{path} imports {e.filename},' if imported else path
    raise errors.ConfigError(f'--config={at} line {e.lineno}: {e.msg}; mend the file') from e
  except ValueError as e:  # what a config has to say of its variant
    raise errors.ConfigError(f'--config={path}: {e}') from e
  except Exception as e:  # the file is the user's code: it may raise anything
    if file := _missing(e):
      raise errors.ConfigError(
        f'--config={path} imports {file}, which {folder} does not have; '
        f"copy {file} there from gdistill's configs/"
      ) from e
    raise errors.ConfigError(
      f'--config={name} failed: {type(e).__name__}: {errors.brief(e)}'
    ) from e


@contextlib.contextmanager
def _as_configs(folder: str) -> Iterator[None]:
  """Makes `from configs import ...` read the files of `folder` until the context ends.

  sys.modules is restored at the end, so the next config finds the files of its own folder.
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
  """Returns the name of the file that an import from `configs` did not find, or ''."""
  if isinstance(e, ModuleNotFoundError) and (e.name or '').startswith('configs.'):
    return e.name.removeprefix('configs.') + '.py'  # import configs.common
  if isinstance(e, ImportError) and e.name == 'configs':  # from configs import common
    return str(e).split("'")[1] + '.py'  # the name stands only in the message before Python 3.12
  return ''


def _override(config: dict, override: str) -> None:
  key, equals, text = override.removeprefix('--config.').partition('=')
  if not override.startswith('--config.') or not equals or not key:
    raise errors.ConfigError(f'unknown argument {override}; overrides read --config.key=value')
  *sections, last = key.split('.')
  here: Any = config
  for section in sections:
    if not isinstance(here, dict) or section not in here:
      raise errors.ConfigError(f'unknown key {key} in {override}; no section {section!r}')
    here = here[section]
  if not isinstance(here, dict):
    raise errors.ConfigError(f'unknown key {key} in {override}')
  try:
    here[last] = ast.literal_eval(text)
  except Exception:  # anything literal_eval does not take is meant as a string
    here[last] = text
