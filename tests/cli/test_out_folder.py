"""Tests of the folder that --out names: all of it is written, or nothing."""

import errno

import pytest

from gdistill import errors
from gdistill.cli import out_folder


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
