"""Tests of how a command ends: exit codes, and processes that others wait for."""

import io
import json
import os
import subprocess
import sys
import threading
import types

import labelled
import pytest

from gdistill import errors
from gdistill.cli import exit_codes
from gdistill.process import interrupt


def test_who_cannot_join_the_others_leaves_without_asking_jax_for_them(monkeypatch, capsys):
  def ask():
    raise AssertionError('this would wait for the processes that did not come')

  def leave(code):
    raise SystemExit(code)

  def lonely():
    raise errors.PeerError('nobody came; start all again')

  monkeypatch.setattr(exit_codes, '_exit_now', leave)
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
  monkeypatch.setattr('jax.process_count', ask)
  with pytest.raises(SystemExit) as left:
    exit_codes.call(lonely, debug=False)
  assert (
    left.value.code == 134 and capsys.readouterr().err == 'gdistill: nobody came; start all again\n'
  )


@pytest.mark.parametrize(
  ('error', 'code'),
  [(KeyboardInterrupt(), 130), (ZeroDivisionError(), 1), (errors.DataError(''), 3)],
)
def test_one_of_several_processes_leaves_at_once_whatever_happened(monkeypatch, error, code):
  def command():
    raise error

  def leave(code):
    raise SystemExit(code)

  monkeypatch.setattr(exit_codes, '_exit_now', leave)
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr('jax.process_index', lambda: 1)
  with pytest.raises(SystemExit) as left:
    exit_codes.call(command, debug=False)
  assert left.value.code == code


def test_a_name_that_cannot_be_written_is_one_line(capsys):
  def command():
    'caf\udce9'.encode()

  assert exit_codes.call(command, debug=False) == 3
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith(r"gdistill: 'caf\udce9' has characters that utf-8 does not have; rename")


def test_an_interrupt_of_a_command_alone_is_one_line_and_130(capsys):
  def command():
    raise KeyboardInterrupt

  assert exit_codes.call(command, debug=False) == 130
  assert capsys.readouterr().err.count('\n') == 1


def test_process_0_gives_the_others_time_to_leave_with_their_own_code(monkeypatch):
  def command():
    raise errors.DataError('')

  paused = []
  monkeypatch.setattr(exit_codes, 'time', types.SimpleNamespace(sleep=paused.append))
  monkeypatch.setattr(exit_codes, '_exit_now', lambda code: None)
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
  monkeypatch.setattr('jax.process_count', lambda: 2)
  for index, pauses in ((1, []), (0, [5])):
    monkeypatch.setattr('jax.process_index', lambda index=index: index)
    exit_codes.call(command, debug=False)
    assert paused == pauses


@pytest.mark.parametrize('rows', [1, 10**6])
def test_a_reader_that_ended_is_no_error_and_nothing_is_printed(rows):
  program = (
    'import sys\n'
    'from gdistill.cli import exit_codes\n'
    'def command():\n'
    '  sys.stdin.read()\n'
    f'  for _ in range({rows}):\n'
    "    print('a row of a table')\n"
    '  return 0\n'
    'exit_codes.exit_process(exit_codes.call(command, debug=False))\n'
  )
  given = [sys.executable, '-c', program]
  pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
  buffered = {**os.environ, 'PYTHONUNBUFFERED': ''}
  with subprocess.Popen(given, env=buffered, **pipes) as running:
    running.stdout.close()  # as `head` does
    running.stdin.close()
    said = running.stderr.read()
  assert (running.returncode, said) == (141, b'')


def test_python_is_not_shut_down_while_a_thread_compiles(monkeypatch):
  class Left(BaseException):
    pass

  def leave(code):
    raise Left(code)

  done = threading.Event()
  monkeypatch.setattr(exit_codes, '_exit_now', leave)
  threading.Thread(target=done.wait, name=interrupt.COMPILING, daemon=True).start()
  try:
    with pytest.raises(Left):
      exit_codes.exit_process(42)
  finally:
    done.set()


def test_a_path_whose_bytes_are_no_utf_8_is_printed_with_escapes(monkeypatch):
  out = io.TextIOWrapper(io.BytesIO(), 'utf-8', 'strict')
  monkeypatch.setattr(sys, 'stdout', out)
  exit_codes.use_utf8()
  print('caf\udce9', flush=True)
  assert out.buffer.getvalue() == b'caf\\udce9\n'


class Started(BaseException):
  pass


def test_in_the_locale_c_the_program_starts_again_in_utf_8_and_only_once(monkeypatch):
  def start(*given):
    raise Started(given)

  monkeypatch.setattr(os, 'execv', start)
  monkeypatch.delenv('PYTHONUTF8', raising=False)
  exit_codes.use_utf8()  # the tests run in UTF-8
  monkeypatch.setattr(sys, 'getfilesystemencoding', lambda: 'ANSI_X3.4-1968')
  monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'gdistill.main', '--config=a'])
  with pytest.raises(Started) as e:
    exit_codes.use_utf8()
  program = [sys.executable, '-m', 'gdistill.main', '--config=a']
  assert e.value.args[0] == (sys.executable, program) and os.environ['PYTHONUTF8'] == '1'
  exit_codes.use_utf8()


@pytest.mark.full
def test_names_of_every_language_are_read_written_and_printed_in_the_locale_c(tmp_path):
  for split in ('train', 'validation'):
    picture = tmp_path / 'été' / split / '猫' / 'ü.png'
    labelled.write(picture, labelled.encode(labelled.pixels_of('train', 0, 0)))
  program = 'from gdistill.cli import command; command.program()'
  flags = ['prepare', f'--source={tmp_path}/été', f'--out={tmp_path}/naïf', '--size=8']
  done = subprocess.run(
    [sys.executable, '-c', program, *flags], capture_output=True, check=True,
    env={**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0'},
  )  # fmt: skip
  assert f'{tmp_path}/naïf/train: 1 pictures' in done.stdout.decode()
  index = json.loads((tmp_path / 'naïf' / 'train' / 'index.json').read_bytes())
  assert index['class_names'] == ['猫']
