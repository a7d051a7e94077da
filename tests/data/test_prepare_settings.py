"""Wrong flags, sources and folders are refused, and nothing is written."""

import json
import re
import shutil

import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import prepare_settings


@pytest.mark.parametrize('more, why', [
  ({'size': 8}, '--size=8 was 12'), ({'shard_size': 5}, '--shard_size=5 was 6'),
  ({'channels': 1}, '--channels=1 was 3'),
  ({'held_out_split': ''}, '--held_out_split= was validation'),
])  # fmt: skip
def test_other_settings_in_a_folder_that_was_begun_are_refused(
  folder_path, records_path, more, why
):
  before = labelled.contents(records_path)
  with pytest.raises(
    errors.ConfigError, match=f'begun with other settings: {why}; repeat the command'
  ):
    labelled.prepared(folder_path, records_path, **more)
  assert labelled.contents(records_path) == before


def test_another_source_is_refused(folder_path, records_path, tmp_path):
  before = labelled.contents(records_path)
  other = shutil.copytree(folder_path, tmp_path / 'other')
  with pytest.raises(errors.ConfigError, match='--source=other was'):
    labelled.prepared(other, records_path)
  same_name = shutil.copytree(folder_path, tmp_path / 'in' / folder_path.name)
  for split in labelled.COUNTS:
    (same_name / split / 'cat').rename(same_name / split / 'dog')
  with pytest.raises(errors.ConfigError, match='has other classes than'):
    labelled.prepared(same_name, records_path)
  assert labelled.contents(records_path) == before


def test_a_folder_with_other_things_in_it_is_refused(folder_path, tmp_path):
  (tmp_path / 'thesis.txt').write_text('x')
  with pytest.raises(errors.ConfigError, match=r'holds thesis\.txt and was not begun by'):
    labelled.prepared(folder_path, tmp_path)


def imagenet(path, classes=1000):
  for split in ('train', 'validation'):
    for k in range(classes):
      labelled.write(
        path / split / f'n{k:08d}' / '1.png', labelled.encode(np.full((1, 1, 3), 9, 'u1'))
      )
  return path


def test_an_incomplete_imagenet_is_refused(tmp_path):
  source = imagenet(tmp_path / 'in')
  with pytest.raises(
    errors.DataError, match=r'training set has 1,281,167 pictures, but --split=train has 1,000;'
  ):
    labelled.prepared(source, tmp_path / 'out', size=4)
  assert not list((tmp_path / 'out').iterdir())
  indices = labelled.prepared(
    source, tmp_path / 'out', size=1, shard_size=500, allow_incomplete=True
  )
  assert indices['train']['class_names'][999] == 'n00000999'


def test_the_count_of_imagenet_is_that_of_the_training_pictures_that_are_kept():
  names = [f'n{k:08d}' for k in range(1000)]
  settings = prepare_settings.Settings('x', 'y')
  prepare_settings.check_imagenet(settings, names, 1_281_167)
  prepare_settings.check_imagenet(settings, names[:999], 5)  # 999 classes: not ImageNet
  prepare_settings.check_imagenet(
    prepare_settings.Settings('tfds:imagenet2012_subset/1pct', 'y'), ['a'], 5
  )
  for name in ('tfds:imagenet2012', 'tfds:imagenet2012:5.1.0'):
    with pytest.raises(errors.DataError, match='is ImageNet'):
      prepare_settings.check_imagenet(prepare_settings.Settings(name, 'y'), ['a'], 1_281_166)


@pytest.mark.parametrize('flags, why', [
  (['--size=0'], '--size=0 must be from 1 to 4096'), (['--size=x'], 'invalid int value'),
  (['--channels=2'], r'--channels=2 must be 1 \(grey\) or 3'),
  (['--workers=0'], '--workers=0 must be'), (['--shard_size=0'], '--shard_size=0 must be'),
  (['--split=../x'], "--split='../x' names a folder"), (['--split=validation'], 'must differ'),
  (['--split='], "must differ from --split=''"), (['--sise=3'], 'unrecognized arguments'),
])  # fmt: skip
def test_wrong_flags_leave_with_2_and_touch_nothing(folder_path, tmp_path, capsys, flags, why):
  from gdistill.cli import command

  out = tmp_path / 'out'
  try:
    code = command.main(['prepare', f'--source={folder_path}', f'--out={out}', *flags])
  except SystemExit as e:
    code = e.code
  said = capsys.readouterr().err
  assert code == 2 and re.search(why, said) and said.count('\n') == 1
  assert not out.exists()


@pytest.mark.parametrize('flags, code, why', [
  (['--source=/does/not/exist'], 3, '--source=/does/not/exist does not exist; give the path'),
  (['--source=gs://bucket/x'], 2, 'must be a local path'),
  (['--source=tfds:no_such_set'], 3, '--source=tfds:no_such_set is no data set that'),
  (['--held_out_split=test', '--size=12'], 3, 'named test/<class>/.*holds train, validation; as'),
  (['--size=49'], 3, 'passed over: 20 pictures below a quarter .*; put larger pictures directly'),
])  # fmt: skip
def test_wrong_sources_leave_nothing_behind(folder_path, tmp_path, capsys, flags, code, why):
  from gdistill.cli import command

  out = tmp_path / 'out'
  own = [] if flags[0].startswith('--source=') else [f'--source={folder_path}']
  assert command.main(['prepare', *own, f'--out={out}', *flags]) == code
  said = capsys.readouterr().err
  assert re.search(why, said) and said.count('\n') == 1
  assert not out.exists()


def test_classes_at_the_top_of_the_source_are_advised_with_flags(folder_path, tmp_path, capsys):
  from gdistill.cli import command

  flags = [f'--source={folder_path}/train', f'--out={tmp_path}/out', '--size=12']
  assert command.main(['prepare', *flags]) == 3
  said = capsys.readouterr().err
  assert (
    "directly in it: set --split='' and --held_out_split='': see" in said and 'data.h' not in said
  )
  assert command.main(['prepare', *flags, '--split=', '--held_out_split=']) == 0


def test_other_classes_than_a_folder_was_begun_with_are_named(tmp_path):
  wanted = prepare_settings.Settings('x', str(tmp_path))
  prepare_settings.begin(wanted, ('cat', 'dog'))
  prepare_settings.begin(wanted, ('cat', 'dog'))
  line = "only --source has 'eel'; only --out has 'dog'; number 1 is 'eel' in --source and 'dog' in"
  with pytest.raises(errors.ConfigError, match=f'was begun with: {line} --out; set --out'):
    prepare_settings.begin(wanted, ('cat', 'eel'))
  old = json.loads((tmp_path / 'prepare.json').read_text())
  for names in (None, 5, [1]):
    (tmp_path / 'prepare.json').write_text(json.dumps({**old, 'class_names': names}))
    with pytest.raises(errors.ConfigError, match='was begun with; set --out'):
      prepare_settings.begin(wanted, ('cat', 'eel'))
