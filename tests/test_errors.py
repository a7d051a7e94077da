"""Tests of the advice at the end of an error line about a failed write: it fits the cause."""

import errno
import os

import pytest

from gdistill import errors


def caused(number):
  """Returns an error without errno whose cause has the errno."""
  error = RuntimeError('write() failed')
  error.__cause__ = OSError(number, os.strerror(number))
  return error


@pytest.mark.parametrize(('number', 'words'), [
  (errno.ENOSPC, 'free disk space'),
  (errno.EDQUOT, 'free disk space'),
  (errno.EACCES, 'fix the permissions of the folder'),
  (errno.EPERM, 'fix the permissions of the folder'),
  (errno.EROFS, 'fix the permissions of the folder'),
  (errno.EIO, 'check the path, its permissions and the storage'),
])  # fmt: skip
def test_the_advice_fits_the_cause(number, words):
  quoted = RuntimeError(f'write(): {os.strerror(number)} [file.cc:7]')  # as C++ libraries quote it
  for error in (OSError(number, os.strerror(number)), caused(number), quoted):
    assert errors.write_advice(error) == words
    assert errors.is_full(error) == (words == 'free disk space')
