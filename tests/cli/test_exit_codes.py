"""Tests of how a command ends: exit codes, and processes that others wait for."""

import pytest

from gdistill import errors
from gdistill.cli import exit_codes


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
