"""The memory of looks at large folders: a file is opened again only after it was changed."""

import os

import labelled
import pytest

from gdistill.data import folder
from gdistill.data import headers
from gdistill.data import looked

OLD = 10**18  # a time in ns, in the year 2001


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
  monkeypatch.setattr(looked, 'MANY', 3)
  monkeypatch.setenv('GDISTILL_LOOKED', str(tmp_path / 'memory'))
  return tmp_path / 'memory'


def found(name):
  return headers.Look(name.encode().ljust(16, b'\0'), len(name), 7)


def looks(files, where='/pictures/train', one=found):
  """Returns the looks, and the names of the files that were looked at."""
  opened = []

  def look(name):
    opened.append(name)
    return one(name)

  return looked.looks(where, files, look), sorted(opened)


def files(**changed):
  times = {'ccc': OLD - 5, **changed}  # where all ctimes are equal, there is no ctime
  return [(name, 100, times.get(name, OLD), OLD) for name in ('ccc', 'a', 'bb')]


def test_a_file_is_looked_at_once_until_its_time_size_or_name_changes():
  expected = [found(name) for name in ('ccc', 'a', 'bb')]
  assert looks(files()) == (expected, ['a', 'bb', 'ccc'])
  assert looks(files()) == (expected, [])
  assert looks(files()[::-1]) == (expected[::-1], [])
  assert looks(files(bb=OLD + 1)) == (expected, ['bb'])
  assert looks(files(bb=OLD + 1)) == (expected, [])
  longer = [('ccc', 101, OLD - 5, OLD), *files(bb=OLD + 1)[1:]]
  assert looks(longer) == (expected, ['ccc'])
  renamed = [*longer[:2], ('dd', 100, OLD + 1, OLD)]
  assert looks(renamed) == ([*expected[:2], found('dd')], ['dd'])
  modified = [*longer[:2], ('bb', 100, OLD + 1, OLD + 2)]
  assert looks(modified) == (expected, ['bb'])


def test_other_folders_and_small_folders_share_no_memory():
  looks(files())
  assert looks(files(), where='/pictures/test')[1] == ['a', 'bb', 'ccc']
  assert looks(files()[:2])[1] == ['a', 'ccc']


def test_a_file_changed_just_now_and_an_unreadable_file_are_looked_at_again(monkeypatch):
  monkeypatch.setattr(looked.time, 'time_ns', lambda: OLD + 3 * 10**9)
  times = {'a': OLD + 2 * 10**9, 'bb': OLD + 10**9 - 1}
  lost = lambda name: headers.UNREADABLE if name == 'ccc' else found(name)
  first = looks(files(**times), one=lost)
  assert first == ([headers.UNREADABLE, found('a'), found('bb')], ['a', 'bb', 'ccc'])
  assert looks(files(**times)) == ([found('ccc'), *first[0][1:]], ['a', 'ccc'])


@pytest.mark.parametrize('ctime', [0, OLD])
def test_without_a_ctime_of_each_file_all_are_looked_at_again(ctime):
  same = [(name, 100, ctime, OLD + k) for k, name in enumerate('abc')]
  assert looks(same)[1] == looks(same)[1] == ['a', 'b', 'c']


def test_a_damaged_header_with_huge_sides_is_remembered():
  huge = lambda name: headers.Look(bytes(16), 2**32 - 1, 7)
  first, second = looks(files(), one=huge), looks(files(), one=huge)
  assert first[0] == second[0] == [headers.Look(bytes(16), 2**31 - 1, 7)] * 3
  assert second[1] == []


def test_a_damaged_memory_is_not_believed(memory):
  looks(files())
  (file,) = memory.iterdir()
  good = file.read_bytes()
  for bad in (b'', good[:-1], good[:40], bytes([good[0] ^ 1]) + good[1:], good[:-9] + bytes(9)):
    file.write_bytes(bad)
    assert looks(files()) == ([found(n) for n in ('ccc', 'a', 'bb')], ['a', 'bb', 'ccc'])
  assert file.read_bytes() == good


def test_without_a_home_nothing_is_written(memory, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for place in ('~nobody-has-this-name/looked', 'gs://bucket/looked'):
    monkeypatch.setenv('GDISTILL_LOOKED', place)
    assert looks(files())[1] == looks(files())[1] == ['a', 'bb', 'ccc']
  assert not list(tmp_path.iterdir())


def test_the_pictures_of_captions_are_remembered_too(tmp_path, monkeypatch):
  names = []
  for name, pixels, _ in labelled.examples('train'):
    labelled.write(tmp_path / 'set' / name, labelled.encode(pixels))
    names.append(str(tmp_path / 'set' / name))
  monkeypatch.setattr(looked, '_FRESH', -(10**18))
  first = looked.of_files(str(tmp_path / 'set'), names)
  assert first == [headers.of_file(n) for n in names]
  monkeypatch.setattr(headers, 'of_file', lambda *a: 1 / 0)
  assert looked.of_files(str(tmp_path / 'set'), names) == first


def test_a_memory_that_cannot_be_written_changes_nothing(memory):
  memory.write_text('a file where the folder should be')
  for _ in range(2):
    assert looks(files()) == ([found(n) for n in ('ccc', 'a', 'bb')], ['a', 'bb', 'ccc'])


def test_a_remembered_folder_has_the_same_fingerprint_until_bytes_change(tmp_path, monkeypatch):
  path = tmp_path / 'set'
  for name, pixels, _ in (*labelled.examples('train'), *labelled.examples('validation')):
    labelled.write(path / name, labelled.encode(pixels))
  settings = labelled.settings('folder', path)

  def load():
    opened = []
    monkeypatch.setattr(headers, 'of_file', lambda *a: opened.append(a[0]) or of_file(*a))
    return [data.fingerprint for data in folder.load(settings, labelled.SHAPE)], len(opened)

  of_file = headers.of_file
  monkeypatch.setattr(looked, '_FRESH', -(10**18))
  monkeypatch.setattr(looked, 'MANY', 10**6)
  plain, count = load()
  monkeypatch.setattr(looked, 'MANY', 1)
  assert load() == (plain, count) and load() == (plain, 0)
  file = sorted(path.glob('train/*/*.png'))[0]
  stat, data = file.stat(), bytearray(file.read_bytes())
  data[-20] ^= 1
  file.write_bytes(data)
  os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync --times does
  changed, opened = load()
  assert changed[0] != plain[0] and changed[1] == plain[1] and opened == 1
