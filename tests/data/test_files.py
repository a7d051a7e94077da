"""Files appear whole or not at all, and an error says what to do about its cause."""

import errno
import os

import pytest

from gdistill import errors
from gdistill.data import files


def test_a_file_is_written_whole_and_replaces_the_one_before(tmp_path):
  for data in (b'first', b'second'):
    files.write(str(tmp_path / 'a'), data)
    assert (tmp_path / 'a').read_bytes() == data and os.listdir(tmp_path) == ['a']


def test_a_write_that_fails_leaves_the_file_before_and_nothing_else(tmp_path, monkeypatch):
  files.write(str(tmp_path / 'a'), b'first')

  def full(fd):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', full)
  with pytest.raises(
    errors.DataError, match=r'a cannot be written: No space left .*; free disk space$'
  ):
    files.write(str(tmp_path / 'a'), b'second')
  assert (tmp_path / 'a').read_bytes() == b'first' and os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize(('error', 'words'), [
  (OSError(errno.EDQUOT, 'Disk quota exceeded'), 'Disk quota exceeded; free disk space'),
  (RuntimeError('write(): No space left on device'), 'left on device; free disk space'),
  (OSError(errno.EACCES, 'Permission denied'), 'Permission denied; fix the permissions of the'),
  (RuntimeError('open() failed'), 'open() failed; check the path, its permissions'),
])  # fmt: skip
def test_the_advice_fits_the_cause(error, words):
  assert words in str(files.unwritable('at', error))
