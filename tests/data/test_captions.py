"""Captions from files, tables and TFDS; captions of classes; damage is named."""

import io
import json
import os
import pickle
import re

import labelled
import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from gdistill import errors
from gdistill.data import captions
from gdistill.data import source

SIZE = labelled.SIZE
WORDS = {'a.png': 'a cat', 'deep/b.jpg.png': 'été 🐈', 'deep/c.PNG': 'a dog'}


def put(file, text):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(text, encoding='utf-8')


@pytest.fixture
def pictures(tmp_path):
  path = tmp_path / 'set'
  for n, name in enumerate(WORDS):
    labelled.write(path / name, labelled.encode(labelled.pixels_of('train', 0, n)))
  return path


def beside(path):
  for name, words in WORDS.items():
    put((path / name).with_suffix('.txt'), f'\ufeff\n {words} \n\n')


def jsonl(path):
  rows = [{'file_name': f'./{n}', 'text': w, 'more': 1} for n, w in reversed(WORDS.items())]
  put(path / 'metadata.jsonl', '\n'.join(map(json.dumps, rows)) + '\n\n')


def table(path, name='captions.csv'):
  rows = [f'"{w}",{n}' for n, w in WORDS.items()]
  put(path / name, '\r\n'.join(['\ufefftext,file_name', *rows]))


def load(path, kind='folder', **more):
  return captions.split(str(path), kind, SIZE, **more)


@pytest.mark.parametrize('form', [beside, jsonl, table, lambda p: table(p, 'metadata.csv')])
def test_a_folder_has_its_captions_beside_or_in_a_table(pictures, form):
  form(pictures)
  found = load(pictures)
  assert (len(found), found.shape, found.read.notes) == (3, (SIZE, SIZE, 3), ())
  assert [found.read.caption(i) for i in range(3)] == list(WORDS.values())
  for i in range(3):
    pixels, label = found[i]
    np.testing.assert_array_equal(pixels, labelled.pixels_of('train', 0, i))
    assert label == 0
  again = pickle.loads(pickle.dumps(found.read))  # noqa: S301 - a worker's copy
  assert again.caption(1) == 'été 🐈'


def test_pictures_become_square_and_of_one_size(tmp_path):
  pixels = np.zeros((40, 24, 3), np.uint8)
  pixels[8:32] = 200
  labelled.write(tmp_path / 'a.png', labelled.encode(pixels))
  put(tmp_path / 'a.txt', 'x')
  np.testing.assert_array_equal(load(tmp_path)[0][0], np.full(labelled.SHAPE, 200, np.uint8))


def test_what_lacks_a_caption_or_a_picture_is_left_out_with_one_line(pictures):
  jsonl(pictures)
  with open(pictures / 'metadata.jsonl', 'a') as f:
    f.write(json.dumps({'file_name': '../../etc/passwd.png', 'text': 'x'}))
  labelled.write(pictures / 'z.png', labelled.encode(labelled.pixels_of('train', 0, 9)))
  found = load(pictures)
  assert len(found) == 3
  assert found.read.notes == (
    f'data.path={pictures}: 1 picture without a caption and 1 caption without a picture are left '
    "out, the first of them 'z.png' and '../../etc/passwd.png'",
  )


def test_a_table_whose_rows_name_no_picture_is_told_from_a_missing_table(pictures):
  put(pictures / 'captions.csv', 'file_name,text\nx,cap 0\na,cap 1\n')
  words = (
    r"^data.path=.*/set: captions.csv has 2 rows, and none names a picture \(such as row 'a' "
    r"beside picture 'a.png'\); write the names of the files as file_name, with their suffix"
  )
  with pytest.raises(errors.DataError, match=words):
    load(pictures)
  put(pictures / 'captions.csv', 'file_name,text\na.png,\n')
  with pytest.raises(errors.DataError, match='none of 3 pictures has a caption'):
    load(pictures)


def test_a_name_in_another_unicode_form_is_told_apart(tmp_path):
  """A Mac may write the name of a file as 'e' and U+0301, and the table as one character."""
  labelled.write(tmp_path / 'e\u0301.png', labelled.encode(labelled.pixels_of('train', 0, 0)))
  put(tmp_path / 'captions.csv', 'file_name,text\n\xe9.png,a cat\n')
  words = (
    r'1 file name in the table differs from names of pictures only in their Unicode form, such as '
    r"'.xe9.png' and 'e.u0301.png'; write them as the files are named"
  )
  with pytest.raises(errors.DataError, match=rf'none of 1 picture has a caption; .*{words}'):
    load(tmp_path)
  labelled.write(tmp_path / 'b.png', labelled.encode(labelled.pixels_of('train', 0, 1)))
  put(tmp_path / 'captions.csv', 'file_name,text\n\xe9.png,a cat\nb.png,a dog\n')
  [alike, left_out] = load(tmp_path).read.notes
  assert re.search(words, alike) and '1 picture without a caption and 1 caption ' in left_out


def test_a_folder_without_captions_is_refused(pictures):
  with pytest.raises(errors.DataError, match=r'none of 3 pictures has a caption; put <name>.txt'):
    load(pictures)
  with pytest.raises(errors.DataError, match=r'no/such is neither a folder'):
    load('/no/such')
  np.savez(pictures / 'a.npz', np.zeros((2, 3, 3, 3), np.uint8))
  with pytest.raises(errors.DataError, match=r'a.npz is no folder of pictures'):
    load(pictures / 'a.npz')


@pytest.mark.parametrize('name, content, why', [
  ('a.txt', b'\xe9', 'a.txt cannot be read .*save it as UTF-8'),
  ('metadata.jsonl', b'{"file_name": "a.png"}', 'metadata.jsonl cannot be read .row 1 has no file'),
  ('metadata.jsonl', b'\n[1]', 'row 2 has no file_name and text'),
  ('metadata.jsonl', b'{', 'metadata.jsonl cannot be read'),
  ('captions.csv', b'name,text\na.png,x', "row 1 is the header .* it has 'name', 'text'"),
  ('captions.csv', b'file_name,text\na.png,x\n./a.png,y', "row 3 names 'a.png' again"),
])  # fmt: skip
def test_a_damaged_caption_is_named(pictures, name, content, why):
  labelled.write(pictures / name, content)
  with pytest.raises(errors.DataError, match=why):
    load(pictures)


LINES = ('one\ntwo', 'a\x0bcat', 'plain')
WHOLE = ['one two', 'a\x0bcat', 'plain']
SEVERAL = '1 of 3 captions have several lines, and all lines of a text are read as one caption '
CUT = 'read only the first line of a caption, and 2 captions are longer (the first is '


def several_beside(path):
  for name, words in zip(WORDS, LINES, strict=True):
    put((path / name).with_suffix('.txt'), words)


def several_in_lines(path):
  rows = [{'file_name': n, 'text': w} for n, w in zip(WORDS, LINES, strict=True)]
  put(path / 'metadata.jsonl', '\n'.join(map(json.dumps, rows)))


def several_in_cells(path):
  put(path / 'captions.csv', 'file_name,text\n' + '\n'.join(
    f'{n},"{w}"' for n, w in zip(WORDS, LINES, strict=True)))  # fmt: skip


@pytest.mark.parametrize('form', [several_beside, several_in_lines, several_in_cells])
def test_all_lines_of_a_caption_are_kept_and_told(pictures, form):
  form(pictures)
  found = load(pictures)
  assert captions.of_source(found, '') == WHOLE
  assert found.read.notes == (f"data.path={pictures}: {SEVERAL}(the first is 'a.png')",)
  assert found.changed == f"earlier versions of gdistill {CUT}'a.png')"
  assert found.subset(np.array([2, 0])).changed == found.changed


def test_the_fingerprint_of_captions_of_one_line_is_that_of_earlier_versions(pictures):
  beside(pictures)
  found = load(pictures)
  parts = [f'{n} {os.path.getsize(pictures / n)} {w}' for n, w in WORDS.items()]
  assert found.before().fingerprint == source.fingerprint(parts) and found.changed == ''
  put(pictures / 'a.txt', 'a cat\non a mat')
  assert load(pictures).fingerprint != found.fingerprint


def test_files_of_captions_that_a_table_hides_are_told(pictures):
  beside(pictures)
  table(pictures)
  assert load(pictures).read.notes == (
    f'data.path={pictures}: all captions are read from captions.csv, so 3 other files of captions '
    "are not read, the first of them 'a.txt'",
  )
  jsonl(pictures)
  [note] = load(pictures).read.notes
  assert (
    "from metadata.jsonl, so 4 other files of captions are not read, the first of them 'c" in note
  )


def test_a_picture_that_goes_away_or_breaks_is_named(pictures):
  beside(pictures)
  found = load(pictures)
  (pictures / 'a.png').write_bytes(b'no')
  with pytest.raises(errors.DataError, match=r'a.png is no readable picture'):
    found[0]
  (pictures / 'a.png').unlink()
  with pytest.raises(errors.DataError, match=r'a.png cannot be read: No such file'):
    found[0]


def test_the_fingerprint_is_of_names_and_captions_not_of_the_place(pictures, tmp_path):
  beside(pictures)
  first = load(pictures).fingerprint
  moved = tmp_path / 'elsewhere'
  os.rename(pictures, moved)
  assert load(moved).fingerprint == first
  put(moved / 'a.txt', 'a cow')
  assert load(moved).fingerprint != first


@pytest.mark.parametrize('name, words', [
  ('great_white_shark', 'great white shark'),
  ('tench, Tinca tinca', 'tench'),
  ('drake', 'drake'),
  (' black__grouse ,x', 'black grouse'),
])  # fmt: skip
def test_names_of_classes_are_put_in_words(name, words):
  assert captions.in_words(name) == words


@pytest.mark.parametrize('template', ['a photo', 'a {} of a {}', ''])
def test_a_template_without_its_place_is_refused(template):
  with pytest.raises(errors.ConfigError, match=re.escape(f'{template=} must contain {{}} once')):
    captions.of_names(labelled.CLASSES, template)


def numbered(path, count):
  for i in range(count):
    labelled.write(path / f'{i}.png', labelled.encode(labelled.pixels_of('train', 0, i)))
    put(path / f'{i}.txt', f'picture {i}')
  return load(path)


def test_what_is_held_out_is_a_fixed_draw_and_keeps_its_captions_and_notes(tmp_path):
  found = numbered(tmp_path, 10)
  parts = source.held_out(found, 0.4)
  index = np.random.default_rng(0).permutation(10)  # the draw must never change
  for part, expected in zip(parts, (sorted(index[4:]), sorted(index[:4])), strict=True):
    assert [part.read.caption(i) for i in range(len(part))] == [f'picture {k}' for k in expected]
    assert part.read.notes == found.read.notes
    for i, k in enumerate(expected):
      np.testing.assert_array_equal(part[i][0], labelled.pixels_of('train', 0, k))
  assert len({found.fingerprint, *(part.fingerprint for part in parts)}) == 3


def test_a_share_of_all_is_held_out(pictures):
  beside(pictures)
  kept, held = source.held_out(load(pictures), 1 / 3)
  assert (len(kept), len(held)) == (2, 1)
  found = [d.read.caption(i) for d in (kept, held) for i in range(len(d))]
  assert sorted(found) == sorted(WORDS.values())
  everything = source.held_out(kept, 0.0)
  assert everything[0] is kept and len(everything[1]) == 0


def test_no_picture_is_decoded_for_labels(pictures):
  beside(pictures)
  found = load(pictures)
  for name in WORDS:
    (pictures / name).unlink()
  assert source.labels(found).tolist() == [0, 0, 0]


def test_examples_have_their_own_captions_or_those_of_their_classes(pictures):
  beside(pictures)
  assert captions.of_source(load(pictures), 'a {}') == list(WORDS.values())
  labels = np.array([2, 0, 2])
  classes = source.in_memory(np.zeros((3, 2, 2, 3), np.uint8), labels, ('ape', 'bee', 'big_cat, x'))
  assert captions.of_source(classes, 'a {}') == ['a big cat', 'a ape', 'a big cat']
  assert captions.held_out(classes, 9) == []


def test_captions_held_out_are_distinct_and_always_of_the_same_examples(tmp_path):
  found = numbered(tmp_path, 10)
  assert captions.held_out(found, 10) == [f'picture {i}' for i in range(10)]
  few = captions.held_out(found, 4)
  assert few == captions.held_out(load(tmp_path), 4) == [f'picture {i}' for i in found.indices(4)]
  put(tmp_path / '3.txt', 'picture 0')
  assert len(captions.held_out(load(tmp_path), 10)) == 9


TEXT = tensorflow_datasets.features.Text
LIST = tensorflow_datasets.features.Sequence


def write_tfds(path, features, examples):
  """Writes a prepared set with these features under the name of cifar10; returns its name."""
  from array_record.python import array_record_module

  builder = tensorflow_datasets.builder('cifar10', data_dir=str(path), file_format='array_record')
  features = tensorflow_datasets.features.FeaturesDict(features)
  builder.info._features = features
  os.makedirs(builder.data_dir)
  file = os.path.join(builder.data_dir, 'cifar10-train.array_record-00000-of-00001')
  writer = array_record_module.ArrayRecordWriter(file, 'group_size:1')
  for example in examples:
    writer.write(features.serialize_example(features.encode_example(example)))
  writer.close()
  template = tensorflow_datasets.core.ShardedFileTemplate(
    data_dir=builder.data_dir, dataset_name='cifar10', split='train',
    filetype_suffix='array_record',
  )  # fmt: skip
  split = tensorflow_datasets.core.SplitInfo(
    name='train', shard_lengths=[len(examples)], num_bytes=1, filename_template=template
  )
  builder.info.set_splits(tensorflow_datasets.core.SplitDict([split]))
  builder.info.write_to_directory(builder.data_dir)
  return f'cifar10:{builder.version}'


@pytest.mark.parametrize('feature, kind, values', [
  ('caption', TEXT(), ['a cat', 'été']),
  ('text', TEXT(), ['a cat', 'été']),
  ('captions', LIST(TEXT()), [['a cat', 'no'], ['', 'été']]),
  ('captions', LIST({'text': TEXT()}), [[{'text': 'a cat'}, {'text': 'no'}], [{'text': 'été'}]]),
])  # fmt: skip
def test_the_first_caption_of_tfds_is_taken(tmp_path, feature, kind, values):
  image = tensorflow_datasets.features.Image(shape=(None, None, 3))
  examples = [
    {'image': io.BytesIO(labelled.encode(labelled.pixels_of('train', 0, n))), feature: value}
    for n, value in enumerate(values)
  ]
  name = write_tfds(tmp_path, {'image': image, feature: kind}, examples)
  found = load(name, 'tfds', data_dir=str(tmp_path))
  assert [found.read.caption(i) for i in range(2)] == ['a cat', 'été']
  for i in range(2):
    np.testing.assert_array_equal(found[i][0], labelled.pixels_of('train', 0, i))


def test_captions_of_tfds_are_whole_texts_and_counted_once_when_they_are_read(tmp_path):
  image = tensorflow_datasets.features.Image(shape=(None, None, 3))
  examples = [
    {'image': io.BytesIO(labelled.encode(labelled.pixels_of('train', 0, 0))), 'text': text}
    for text in LINES
  ]
  name = write_tfds(tmp_path, {'image': image, 'text': TEXT()}, examples)
  found = load(name, 'tfds', data_dir=str(tmp_path))
  assert found.read.notes == () and found.changed == ''
  for _ in range(2):
    assert captions.of_source(found, '') == WHOLE
  [note] = found.read.notes
  assert note.endswith(f"train: {SEVERAL}(the first is 'example 0')")
  assert found.changed == f"earlier versions of gdistill {CUT}'example 0')"
  assert pickle.loads(pickle.dumps(found.read)).caption(0) == WHOLE[0]  # noqa: S301


def test_an_example_of_tfds_without_text_is_named(tmp_path):
  image = tensorflow_datasets.features.Image(shape=(None, None, 3))
  example = {'image': io.BytesIO(labelled.encode(labelled.pixels_of('train', 0, 0))), 'text': ' '}
  name = write_tfds(tmp_path, {'image': image, 'text': TEXT()}, [example])
  with pytest.raises(
    errors.DataError, match=r"^example 0 of cifar10/.* train has no text in 'text"
  ):
    load(name, 'tfds', data_dir=str(tmp_path))[0]


def test_captions_of_tfds_without_pictures_are_refused(tmp_path):
  name = write_tfds(tmp_path, {'text': TEXT()}, [{'text': 'x'}])
  with pytest.raises(
    errors.DataError, match=r"has the features text; captioned pictures need 'image' and 'text'"
  ):
    load(name, 'tfds', data_dir=str(tmp_path))


def test_classes_of_tfds_are_no_captions(tfds_path):
  words = r"^cifar10 has classes but no captions; set data\.name='tfds', and set latents\.template"
  with pytest.raises(errors.DataError, match=words):
    load('cifar10', 'tfds', name='validation', data_dir=str(tfds_path))


def test_half_a_character_in_a_caption_stops_nothing(tmp_path):
  """JSON may hold half of a surrogate pair if a caption was cut within a character."""
  labelled.write(tmp_path / 'a.png', labelled.encode(labelled.pixels_of('train', 0, 0)))
  put(tmp_path / 'metadata.jsonl', r'{"file_name": "a.png", "text": "cat \ud83d"}')
  found = load(tmp_path)
  assert found.read.caption(0) == 'cat ?' and len(found.fingerprint) == 16


@pytest.mark.parametrize('name, split', [('no_such_set', 'train'), ('cifar10', 'tes')])
def test_an_unknown_set_or_split_of_tfds_is_refused(tfds_path, name, split):
  with pytest.raises(errors.DataError, match=f'data.dataset={name}'):
    load(name, 'tfds', name=split, data_dir=str(tfds_path))


def test_what_is_passed_over_is_told_and_captions_are_not(tmp_path):
  for name in ('a.png', 'sub/b.bmp'):
    file = tmp_path / name
    labelled.write(file, labelled.encode(labelled.pixels_of('train', 0, 0), name[-3:].upper()))
    file.with_suffix('.txt').write_text('words')
  for name in ('c.heic', 'README.md', 'sub/lonely.txt', '.DS_Store'):
    labelled.write(tmp_path / name, b'x')
  found = captions.split(str(tmp_path), 'folder', SIZE)
  assert len(found) == 2 and found.read.notes == (
    f'data.path={tmp_path}: passed over 1 picture of a format that is not read (such as c.heic), '
    '2 files without the suffix of a picture (such as README.md)',
  )


def test_tiny_pictures_are_left_out_and_told(pictures):
  beside(pictures)
  labelled.write(pictures / 'tiny.png', labelled.encode(np.zeros((1, 1, 3), np.uint8)))
  put(pictures / 'tiny.txt', 'a dot')
  found = load(pictures)
  assert len(found) == 3 and 'tiny.png' in found.changed
  assert any('tiny.png' in note for note in found.read.notes)


def test_another_picture_of_the_same_length_is_other_data(pictures):
  beside(pictures)
  before, [file, *_] = load(pictures), sorted(pictures.rglob('*.png'))
  other = labelled.encode(labelled.pixels_of('train', 2, 2))
  file.write_bytes(other + bytes(file.stat().st_size - len(other)))
  assert load(pictures).fingerprint != before.fingerprint
  assert load(pictures).before().fingerprint == before.before().fingerprint


def test_captioned_pictures_stand_upright(pictures):
  exif = Image.Exif()
  exif[0x0112] = 3
  pixels = labelled.pixels_of('train', 0, 0)
  [name, *_] = WORDS
  Image.fromarray(pixels).save(pictures / name, exif=exif)
  beside(pictures)
  np.testing.assert_array_equal(load(pictures)[0][0], pixels[::-1, ::-1])
