"""Tests of the folder that --out names: all of it is written, or nothing."""

import errno

import numpy as np
import published
import pytest

from gdistill import errors
from gdistill.cli import command
from gdistill.cli import out_folder
from gdistill.convert import files
from gdistill.recipe import settings as recipes
from gdistill.workdir import storage


def test_a_folder_is_whole_or_not_there_and_what_failed_is_named(tmp_path):
  out = tmp_path / 'out'
  with (
    pytest.raises(errors.DataError, match=r'^/source/file cannot be read: Input'),
    out_folder.atomic(out),
  ):
    raise OSError(errno.EIO, 'Input/output error', '/source/file')
  with (
    pytest.raises(errors.CheckpointError, match=r'out cannot be written: No space .*; free disk'),
    out_folder.atomic(out) as temporary,
  ):
    (temporary / 'half').write_text('x')
    raise OSError(errno.ENOSPC, 'No space left on device', str(temporary / 'half'))
  with (
    pytest.raises(errors.CheckpointError, match='Permission denied; fix the permissions of'),
    out_folder.atomic(out),
  ):
    raise PermissionError(errno.EACCES, 'Permission denied', str(out))
  assert not list(tmp_path.iterdir())
  with out_folder.atomic(out) as temporary:
    (temporary / 'file').write_text('x')
  assert [p.name for p in out.iterdir()] == ['file']


def test_of_two_commands_for_one_new_folder_the_second_is_refused(tmp_path):
  out, line = tmp_path / 'out', r'^--out=.*/out is in use by host .*, pid \d+, .* another --out$'
  with out_folder.atomic(out) as first:
    (first / 'file').write_text('of the first')
    for other in (out_folder.atomic, out_folder.claimed_file):
      with pytest.raises(errors.ConfigError, match=line), other(out):
        pass
    assert not out.exists()
  assert [p.name for p in tmp_path.iterdir()] == ['out']
  assert (out / 'file').read_text() == 'of the first'
  with pytest.raises(errors.ConfigError, match='is not empty; name a new'), out_folder.atomic(out):
    pass
  assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_what_a_killed_command_left_beside_is_deleted_by_the_next(tmp_path):
  left = tmp_path / '.tmp-out.new' / 'new'
  left.mkdir(parents=True)
  (left / 'half').write_text('x')
  (left.parent / 'lock.json').write_text('{"token": "a", "heartbeat": 0}')
  (left.parent / '.tmp-0123').write_text('{"tok')
  with out_folder.atomic(tmp_path / 'out') as temporary:
    assert not list(temporary.iterdir())
  assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_a_folder_that_was_filled_meanwhile_is_not_touched(tmp_path):
  out = tmp_path / 'out'
  with (
    pytest.raises(errors.ConfigError, match='was written by another program while this command'),
    out_folder.atomic(out) as temporary,
  ):
    (temporary / 'ours').write_text('x')
    out.mkdir()
    (out / 'theirs').write_text('x')
  assert [p.name for p in out.iterdir()] == ['theirs'] and len(list(tmp_path.iterdir())) == 1


def test_a_name_of_the_greatest_length_and_a_link_are_written(tmp_path):
  (tmp_path / 'real').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'real')
  for name in ('x' * 255, 'link'):
    with out_folder.atomic(tmp_path / name) as temporary:
      (temporary / 'file').write_text('x')
    assert (tmp_path / name / 'file').exists()
  assert (tmp_path / 'link').is_symlink() and len(list(tmp_path.iterdir())) == 3


def test_a_held_folder_is_checked_twice_and_removed_if_nothing_was_written(tmp_path):
  out, seen = tmp_path / 'out', []
  check = lambda: seen.append(sorted(p.name for p in tmp_path.rglob('*')))
  with out_folder.held(str(out), check):
    out_folder.check_new(out, but_for_a_lock=True)
    with pytest.raises(errors.ConfigError, match='is not empty'), out_folder.atomic(out):
      pass
    with pytest.raises(errors.ConfigError, match='is in use by'), out_folder.held(out, check):
      pass
  assert seen == [[], ['lock.json', 'out'], ['lock.json', 'out']]
  for make in (lambda out: out_folder.held(out, lambda: None), out_folder.atomic):
    with pytest.raises(ZeroDivisionError), make(tmp_path / 'a' / 'b' / 'out'):
      raise ZeroDivisionError
  assert not list(tmp_path.iterdir())  # nor the folders above
  with out_folder.held(out, lambda: None):
    (out / 'file').write_text('x')
  assert [p.name for p in out.iterdir()] == ['file']


def test_a_lock_beside_other_files_or_of_another_program_is_no_empty_folder(tmp_path):
  for name, files_there in (
    ('ours', {'lock.json': '{"token": "a"}', 'mine.png': 'x'}), ('theirs', {'lock.json': '{}'}),
  ):  # fmt: skip
    for file, text in files_there.items():
      storage.write_bytes(tmp_path / name / file, text.encode())
    with pytest.raises(errors.ConfigError, match='is not empty; name a new'):
      out_folder.check_new(tmp_path / name, but_for_a_lock=True)
  storage.remove(tmp_path / 'ours' / 'mine.png')
  out_folder.check_new(tmp_path / 'ours', but_for_a_lock=True)


def test_a_held_folder_loses_what_a_killed_command_left_and_nothing_else(tmp_path):
  for name in ('.tmp-0123456789abcdef', 'a/.tmp-fedcba9876543210', '.tmp-mine', 'a.png'):
    storage.write_bytes(tmp_path / 'out' / name, b'x')
  with out_folder.held(tmp_path / 'out', lambda: None):
    pass
  left = {str(p.relative_to(tmp_path / 'out')) for p in tmp_path.rglob('*') if p.is_file()}
  assert left == {'.tmp-mine', 'a.png'}


def test_a_file_below_a_file_is_refused_before_it_is_claimed(tmp_path):
  (tmp_path / 'a').write_text('x')
  with (
    pytest.raises(errors.ConfigError, match='/a is not a folder; choose another --out'),
    out_folder.claimed_file(tmp_path / 'a' / 'b.npz'),
  ):
    pass


@pytest.mark.parametrize('name', ['import', 'export', 'convert'])
def test_each_command_that_writes_beside_refuses_to_be_the_second(name, tmp_path, capsys):
  published.finished(tmp_path / 'round', recipes.Model(**published.PIXEL), recipes.Noise('cosine'))
  (tmp_path / 'a.ckpt').write_bytes(b'')
  out = tmp_path / ('out.safetensors' if name == 'convert' else 'out')
  given = {
    'import': [f'--source={tmp_path}/a.safetensors'], 'export': [f'--folder={tmp_path}/round'],
    'convert': ['checkpoint', f'--source={tmp_path}/a.ckpt'],
  }  # fmt: skip
  with out_folder.claimed(out):
    assert command.main([name, *given[name], f'--out={out}']) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'gdistill: --out={out} is in use by host ') and said.count('\n') == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.ckpt', 'round']


def test_a_claimed_file_is_written_as_ever(tmp_path):
  out = tmp_path / 'a.safetensors'
  with out_folder.claimed_file(out):
    files.write(out, {'w': np.ones(3, np.float32)})
    storage.write_bytes(tmp_path / 'b.npz', b'b')
  np.testing.assert_array_equal(files.read(out)['w'], np.ones(3))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.safetensors', 'b.npz']
