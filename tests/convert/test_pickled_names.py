"""The names in torch's files are read without running what the files say."""

import os
import pickle
import zipfile

import pytest

from gdistill.convert import pickled_names


class Bad:
  """An object whose unpickling makes a folder."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.fixture(params=[0, 2, 4])
def content(request, tmp_path):
  state = {'state_dict': {'a.weight': 1, 'b.bias': 2}, 'bad': Bad(tmp_path / 'made')}
  return pickle.dumps(state, request.param)


def test_names_are_found_in_both_formats_and_nothing_is_run(content, tmp_path):
  with zipfile.ZipFile(tmp_path / 'new.ckpt', 'w') as archive:
    archive.writestr('model/.format_version', b'1')
    archive.writestr('model/data.pkl', content)
    archive.writestr('model/data/0', b'c.weight')
  begins = b''.join(pickle.dumps(head, 2) for head in (0x1950A86A20F9469CFC6C, 1001, {'x': 1}))
  (tmp_path / 'old.pt').write_bytes(begins + content + pickle.dumps(['0'], 2) + bytes(range(256)))
  for name in ('new.ckpt', 'old.pt'):
    assert {'a.weight', 'b.bias'} <= pickled_names.names(tmp_path / name)
    assert 'c.weight' not in pickled_names.names(tmp_path / name)
  assert not (tmp_path / 'made').exists()


def test_damaged_files_give_what_was_found_so_far(content, tmp_path):
  (tmp_path / 'whole.ckpt').write_bytes(content)
  whole = pickled_names.names(tmp_path / 'whole.ckpt')
  found = 0
  for cut in range(0, len(content), 7):
    with zipfile.ZipFile(tmp_path / 'a.ckpt', 'w') as archive:
      archive.writestr('model/data.pkl', content[:cut])
    (tmp_path / 'b.ckpt').write_bytes(content[:cut])
    new, old = (pickled_names.names(tmp_path / f'{name}.ckpt') for name in 'ab')
    assert found <= len(new) and new == old and new <= whole
    found = len(new)
  assert found >= 2  # only the last bytes are missing
  (tmp_path / 'c.ckpt').write_bytes(b'PK\x03\x04 and nothing')
  assert pickled_names.names(tmp_path / 'c.ckpt') == set()
  assert pickled_names.names(tmp_path / 'nowhere') == set()
