"""Runs a command and ends the program: a GdistillError becomes one line and an exit code."""

import codecs
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from gdistill import errors
from gdistill.process import interrupt


def call(command: Callable[[], int], debug: bool) -> int:
  """Runs a command and returns its exit code; a GdistillError becomes one line on stderr.

  If `debug` is True, the traceback of a GdistillError is printed on stderr too.
  """
  try:
    code = command()
    if sys.stdout is not None:
      sys.stdout.flush()  # a short text fails only here if the reader of stdout has ended
    return code
  except errors.GdistillError as e:
    if debug:
      traceback.print_exc()
    print(f'gdistill: {e}', file=sys.stderr)
    if isinstance(e, errors.PeerError):
      # _exit_now is called directly: _exit_from_group calls jax.process_count(), which would wait
      # for processes that have died.
      _exit_now(e.exit_code)
    _exit_from_group(e.exit_code)
    return e.exit_code
  except UnicodeEncodeError as e:
    if debug:
      traceback.print_exc()
    print(
      f'gdistill: {e.object[:200]!a} has characters that {e.encoding} does not have; rename the '
      'file or the class, or set the environment variable PYTHONUTF8=1 if the locale is not UTF-8',
      file=sys.stderr,
    )
    _exit_from_group(errors.DataError.exit_code)
    return errors.DataError.exit_code
  except BrokenPipeError:
    # The reader of stdout, such as `head`, has ended. stdout becomes /dev/null, because Python
    # flushes stdout at exit, and a flush into a closed pipe would fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except Exception:  # a bug in gdistill: print the traceback for a bug report
    traceback.print_exc()
    _exit_from_group(1)
    return 1
  except KeyboardInterrupt:
    print('gdistill: interrupted before there was anything to save', file=sys.stderr)
    jax = sys.modules.get('jax')
    # _exit_now is called directly: this process may still be connecting to the other processes, and
    # _exit_from_group calls jax.process_count(), which would wait for the other processes.
    if jax is not None and jax.distributed.is_initialized():
      _exit_now(130)
    return 130


def _exit_from_group(code: int) -> None:
  """Exits immediately with `code` if the run has several processes; otherwise does nothing.

  A normal exit of one process waits inside JAX for the other processes, which wait for this process
  inside a training step. The waiting processes would abort after some minutes, with no error that
  tells why this process exited.
  """
  jax = sys.modules.get('jax')
  if jax is None or not jax.distributed.is_initialized() or jax.process_count() == 1:
    return
  if jax.process_index() == 0:
    # Process 0 hosts JAX's coordination service, and the exit of process 0 aborts all other
    # processes. The pause lets processes that failed for the same reason exit with their own code
    # first.
    time.sleep(5)
  _exit_now(code)


def use_utf8() -> None:
  """Makes this program name files and print text in UTF-8; call this function first of all.

  In the locale C, Python may take ASCII as the encoding of file names, and could then neither open
  nor print a name with other characters. The encoding is fixed when Python starts, so the program
  replaces itself by the same program in Python's UTF-8 mode.
  """
  ascii_names = codecs.lookup(sys.getfilesystemencoding()).name == 'ascii'
  # If PYTHONUTF8 is 1 already, another start would not help: the options of Python forbid UTF-8.
  if ascii_names and sys.executable and os.environ.get('PYTHONUTF8') != '1':
    os.environ['PYTHONUTF8'] = '1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell wanted
  if sys.stdout.errors == 'strict':
    sys.stdout.reconfigure(errors='backslashreplace')  # a path may have bytes that are no UTF-8


def exit_process(code: int) -> None:
  """Exits the program with `code`, skipping Python's shutdown if a thread is still compiling.

  Python's shutdown would destroy objects that a compile, which takes minutes, still uses.
  """
  if any(t.name == interrupt.COMPILING for t in threading.enumerate()):
    _exit_now(code)
  sys.exit(code)


def _exit_now(code: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
