"""Lists the array names in one of torch's files without unpickling: no code of the file is run."""

import io
import pathlib
import pickletools
import zipfile

_MOST = 64 * 2**20  # bytes read of a pickle; the names of the largest published network need 2 MB
_MARKS = ('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'UNICODE', 'BINSTRING',
          'SHORT_BINSTRING', 'STRING')  # fmt: skip
_LEGACY_PICKLES = 5  # a file of torch before 1.6 begins with five pickles; the names are in one


def names(file: pathlib.Path) -> set[str]:
  """Returns all strings in the pickle of `file`, among them the names of the arrays.

  Reads both of torch's formats: the zip archive, whose data.pkl is the pickle, and the format
  before torch 1.6, which begins with pickles. Returns what was found so far if `file` is damaged,
  and an empty set if `file` is none of torch's files.
  """
  found: set[str] = set()
  try:
    if zipfile.is_zipfile(file):
      with zipfile.ZipFile(file) as archive:
        inside = next(n for n in archive.namelist() if n.rpartition('/')[2] == 'data.pkl')
        with archive.open(inside) as stream:
          _collect(io.BytesIO(stream.read(_MOST)), found)
    else:
      with file.open('rb') as raw:
        stream = io.BytesIO(raw.read(_MOST))
      for _ in range(_LEGACY_PICKLES):
        _collect(stream, found)
  except Exception:  # damaged files raise errors of many classes, and the names are only a hint
    return found
  return found


def _collect(stream: io.BytesIO, found: set[str]) -> None:
  """Adds the strings of one pickle to `found`, and leaves `stream` at the end of the pickle."""
  for opcode, value, _ in pickletools.genops(stream):
    if opcode.name in _MARKS and isinstance(value, str):
      found.add(value)
