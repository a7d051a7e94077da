"""A caption is a whole text on one line; a table whose rows do not fit its header is refused."""

import json
import re

import pytest

from gdistill import errors
from gdistill.data import caption_files

# Marks that str.splitlines takes for ends of lines, and a text file does not.
MARKS = '\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029'


@pytest.mark.parametrize('text, caption', [
  ('A red car.\nParked in front of a house.\n', 'A red car. Parked in front of a house.'),
  ('a\r\nb\rc\n\n \t\n d \r\n', 'a b c d'),
  ('\ufeff\n\n  \n\ufeff a  cat', 'a  cat'),
  ('\r\n\r\n', ''),
  ('\ufeff', ''),
  *((f'a cat{mark}on a mat\n', f'a cat{mark}on a mat') for mark in MARKS),
])  # fmt: skip
def test_a_caption_is_the_whole_text_with_spaces_for_the_ends_of_lines(text, caption):
  assert caption_files.one_line(text) == caption
  assert caption_files.one_line(caption) == caption


def test_captions_of_several_lines_are_counted_and_so_are_those_that_were_cut():
  tally = caption_files.Tally()
  for number, text in enumerate(['one', 'two\n\n', '', 'a\nb', 'c\x0bd', '\ne\r\nf']):
    tally.caption(text, f'{number}.png')
  assert tally.notes('set') == (
    "set: 2 of 5 captions have several lines, and all lines of a text are read as one caption (the "
    "first is '3.png')",
  )  # fmt: skip
  assert tally.changed == (
    'earlier versions of gdistill read only the first line of a caption, and 3 captions are longer '
    "(the first is '3.png')"
  )
  tally = caption_files.Tally()
  assert tally.caption('\ufeff\n one  line \n', 'a') == 'one  line'
  assert tally.notes('set') == () and caption_files.Tally().changed == ''


@pytest.mark.parametrize('data', ['a cat'.encode('utf-16'), 'a cat'.encode('utf-16-le'), b'\xe9t'])
def test_a_text_that_is_not_utf_8_is_no_caption(tmp_path, data):
  (tmp_path / 'a.txt').write_bytes(data)
  with pytest.raises(ValueError, match=r'null characters|decode'):
    caption_files.text_of(str(tmp_path / 'a.txt'))


def read(path, name, text):
  (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return caption_files.table(str(path / name), caption_files.Tally())


@pytest.mark.parametrize('text', [
  'file_name,text\na.png,a cat\nb.png,"a dog, ""big"""\n',
  '\ufeff\r\n\r\nfile_name , text\r\na.png,a cat\r\n\r\nb.png,"a dog, ""big"""',
  'text,file_name,width\n"a\n cat",a.png,3\n,,\n"a dog, ""big""",./b.png,4\n,,\n',
])  # fmt: skip
def test_a_csv_table_is_read_as_a_spreadsheet_writes_it(tmp_path, text):
  assert read(tmp_path, 'captions.csv', text) == {'a.png': 'a cat', 'b.png': 'a dog, "big"'}


def test_a_table_of_json_lines_may_have_marks_blank_lines_and_texts_of_several_lines(tmp_path):
  rows = [json.dumps({'file_name': n, 'text': t}) for n, t in [('a', '\ufeffx\ny'), ('b', 'z\x85')]]
  assert read(tmp_path, 'metadata.jsonl', '\ufeff\n\n\ufeff' + '\n \n\ufeff'.join(rows)) == {
    'a': 'x y', 'b': 'z',
  }  # fmt: skip


@pytest.mark.parametrize('name, text, why', [
  ('a.csv', 'file_name,text\na,x\nb,a dog, big\n', 'row 3 has 3 cells, and the header has 2 col'),
  ('a.csv', 'file_name,text,n\na,x,1\n\nb,y\n', 'row 4 has 2 cells, and the header has 3 columns'),
  ('a.csv', '\nfile_name,text\n"a\nb",x\nc\n', 'row 4 has 1 cells, and the header has 2 columns'),
  ('a.csv', 'file_name,text\na,x\nb,"y\nc,z\n', 'row 3: unexpected end of data'),
  ('a.csv', 'file_name,text\na,"x"y\n', 'row 2: '),
  ('a.csv', 'a.png,a cat\n', r"row 1 is the header and .*; it has 'a.png', 'a cat'"),
  ('a.csv', 'file_name;text\na;x\n', r"row 1 is the header and .*; it has 'file_name;text'"),
  ('a.csv', 'file_name,text,text\na,x,y\n', "row 1 is the header and must have each .* once"),
  ('a.csv', b'file_name,text\na,\xe9\n', "utf-8.*save it as UTF-8"),
  ('a.csv', 'file_name,text\na,x\n./a,y\n', "row 3 names 'a' again"),
  ('a.jsonl', '{"file_name": "a", "text": "x"}\n\n{"file_name": "b"}', 'row 3 has no file_name'),
  ('a.jsonl', '{"file_name": "a", "text": ["x"]}', 'row 1 has no file_name and text'),
  ('a.jsonl', '\n{"file_name": "a",\n"text": "x"}', 'row 2 is no JSON: '),
  ('a.jsonl', '[' * 100_000, 'row 1 is no JSON: '),
])  # fmt: skip
def test_a_row_that_does_not_fit_is_named_with_its_number(tmp_path, name, text, why):
  with pytest.raises(errors.DataError, match=f'{re.escape(name)} cannot be read .*{why}') as e:
    read(tmp_path, name, text)
  assert '\n' not in str(e.value) and e.value.exit_code == 3
