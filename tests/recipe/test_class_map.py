"""The file of data.classes: what is read, and each wrong map in one line."""

import codecs
import json

import pytest

from gdistill import errors
from gdistill.recipe import class_map

DATA, TEACHER = ('two', 'one', 'zero'), ('0', '1', '2')


def numbers(tmp_path, text, data=DATA, teacher=TEACHER, count=3):
  file = tmp_path / 'map'
  file.write_bytes(text if isinstance(text, bytes) else text.encode())
  return class_map.numbers(str(file), data, teacher, count)


@pytest.mark.parametrize(
  'text',
  [
    'two = 2\none = 1\nzero = 0\n',
    b'\xef\xbb\xbfzero=0\r\n\r\n# a remark\r\n  one  =  1\r\ntwo=2',
    'two = number:2\rone = name:1\rzero = 0\r',
    '{"two": "2", "one": 1, "zero": "name:0"}',
    codecs.BOM_UTF8 + b'\n {"zero": 0, "two": 2, "one": 1}',
  ],
)
def test_a_map_gives_the_teachers_number_of_each_class(tmp_path, text):
  assert numbers(tmp_path, text) == [2, 1, 0]


def test_names_with_signs_and_other_unicode_forms_are_names(tmp_path):
  text = 'a=b = x#1\n  n\u0303 = c, d\n'
  assert numbers(tmp_path, text, ('a=b', '\u00f1'), ('c, d', 'x#1'), 2) == [1, 0]
  text = json.dumps({'#1': ' x', '': 'y'})
  assert numbers(tmp_path, text, ('', '#1'), ('y', ' x'), 2) == [0, 1]
  # a line separator of Unicode ends no line
  assert numbers(tmp_path, 'a\u2028b = 0', ('a\u2028b',), ('0',), 1) == [0]


def test_a_teacher_of_numbers_only_is_named_by_number(tmp_path):
  assert numbers(tmp_path, 'two = 2\none = 1\nzero = number:0', teacher=()) == [2, 1, 0]
  with pytest.raises(errors.ConfigError, match="'cat', for 'two' of the data, is no class of the "):
    numbers(tmp_path, 'two = cat\none = 1\nzero = 0', teacher=())


def test_a_number_in_json_is_a_number_and_a_text_may_be_a_name(tmp_path):
  names = ('a', 'b'), ('1', '0')  # of the data, and of the teacher: its number 0 is called '1'
  assert numbers(tmp_path, '{"a": 0, "b": 1}', *names, 2) == [0, 1]
  assert numbers(tmp_path, '{"a": "name:0", "b": "name:1"}', *names, 2) == [1, 0]


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('two = 2\none = 1\n', "no line for the class 'zero' of the data; add a line \"zero = name"),
    ('two = 2\n', "no line for the class 'one' and 1 more of the data"),
    ('two = 2\none = 1\nzero = 0\nten = 0', "'ten' is no class of the data, whose .* 0 'two', 1 '"),
    ('two = 2\none = 1\nzero = nil', "'nil', for 'zero' of the data, is no class of the teacher, "),
    ('two = 2\none = 1\nzero = 3', "'3', for 'zero' of the data, is no class of the teacher"),
    ('two = 2\ntwo = 1\nzero = 0', "names the class 'two' of the data twice"),
    ('two = 2\none = 2\nzero = 0', "makes both 'two' and 'one' of the data the class '2'"),
    ('{"two": 2, "two": 1, "zero": 0}', "names the class 'two' of the data twice"),
    ('{"two": null, "one": 1, "zero": 0}', "'two' stands for None; give the name or the number"),
    ('{"two": 2.5}', "'two' stands for 2.5"),
    ('{"two": true}', "'two' stands for True"),
    ('{"two": {"a": 1}}', "'two' stands for an object"),
    ('["two", "one"]', 'must hold a JSON object .* and holds a list'),
    ('{"two": 2', 'begins like JSON and is none'),
    ('two = 2\none 1\n', "line 2: 'one 1' must be"),
    ('two = 2\n= 1\n', "line 2: '= 1' must be"),
    ('# x\n\na=b=c', "line 3: 'a=b=c' must be"),
    ('a = b = c', "line 1: 'a = b = c' must be"),
    ('\n# nothing\n', 'names no class; write a line'),
    ('{}', 'names no class'),
    ('two = 2'.encode('utf-16'), 'is not UTF-8 text'),
  ],
)
def test_a_wrong_map_is_refused_in_one_line(tmp_path, text, words):
  with pytest.raises(errors.ConfigError, match=f'^data.classes=.*map.*{words}') as e:
    numbers(tmp_path, text)
  assert '\n' not in str(e.value)


def test_a_name_that_may_mean_two_classes_is_printed_as_its_line_in_the_map(tmp_path):
  with pytest.raises(errors.ConfigError, match=r'/map: one = 1 can mean more than one class: '):
    numbers(tmp_path, 'one = 1\ntwo = 0\nzero = 2', teacher=('1', 'cat', 'dog'))


def test_a_class_of_the_teacher_without_data_is_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match="no line for the class '2' of the teacher"):
    numbers(tmp_path, 'one = 1\nzero = 0', data=('one', 'zero'))


def test_a_missing_map_or_a_folder_is_refused(tmp_path):
  for file in (tmp_path / 'none', tmp_path):
    with pytest.raises(errors.ConfigError, match=r'^data\.classes=.* cannot be read: .*; give the'):
      class_map.read(str(file))


def test_a_file_that_is_too_large_is_refused_and_never_cut(tmp_path, monkeypatch):
  text = 'é = 0\nü = 1\n'
  monkeypatch.setattr(class_map, '_LARGEST', len(text.encode()))
  assert numbers(tmp_path, text, ('é', 'ü'), ('0', '1'), 2) == [0, 1]
  for more in (' ', 'ß'):  # the limit is of bytes, and may fall within a character
    with pytest.raises(errors.ConfigError, match=r'map is larger than 14 bytes, so it is no map'):
      numbers(tmp_path, text + more, ('é', 'ü'), ('0', '1'), 2)
