"""What earlier versions recorded of pictures: continued with the same bytes, or refused."""

import pathlib
import shutil

import labelled
import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.cli import config_file
from gdistill.data import earlier
from gdistill.data import folder
from gdistill.data import latent_cache
from gdistill.data import pipeline
from gdistill.data import source
from gdistill.evaluation.grid import run as grid_run
from gdistill.process import interrupt
from gdistill.process import timing
from gdistill.recipe import reading
from gdistill.training import assemble
from gdistill.training import run as training
from gdistill.training import same_data
from gdistill.workdir import ledger
from gdistill.workdir import storage

RELEASED = pathlib.Path(__file__).parents[1] / 'released' / 'prepared1'


def turned(path):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(labelled.pixels_of('train', 0, 0, (9, 8))).save(path, exif=exif)


@pytest.fixture
def at(tmp_path):
  for split in labelled.COUNTS:
    for name, pixels, _ in labelled.examples(split):
      labelled.write(tmp_path / name, labelled.encode(pixels))
  return tmp_path


def load(path, size=labelled.SIZE, **more):
  return folder.load(labelled.settings('folder', path, **more), (size, size, 3))


def by_length(path, split='train'):
  """Returns the fingerprint of earlier versions, by its definition: of names and lengths."""
  files = sorted((path / split).glob('*/*.png'))
  return source.fingerprint(f'{f.relative_to(path / split)} {f.stat().st_size}' for f in files)


def test_the_same_pictures_get_the_fingerprint_that_was_recorded(at):
  found = load(at)
  assert found[0].fingerprint != by_length(at) == found[0].before().fingerprint
  kept = earlier.as_recorded(found, by_length(at))
  assert [k.fingerprint for k in kept] == [by_length(at), by_length(at, 'validation')]
  assert [k.sampled for k in kept] == [f.fingerprint for f in found]
  np.testing.assert_array_equal(kept[0][3][0], found[0][3][0])
  assert earlier.as_recorded(found, 'another') == earlier.as_recorded(found, '') == found
  part = np.array([1, 4])
  fingerprints = [f.subset(part).fingerprint for f in (found[0].before(), kept[0])]
  assert fingerprints == [found[0].subset(part).before().fingerprint] * 2


def test_pictures_that_were_read_otherwise_are_not_continued(at):
  turned(at / 'train/bee/7.png')
  found = earlier.as_recorded(load(at), by_length(at))
  assert found[0].fingerprint != by_length(at)
  assert found[0].changed == (
    'earlier versions of gdistill read otherwise: 1 picture turned upright as their EXIF '
    'orientation says, such as train/bee/7.png'
  )


def test_turned_held_out_pictures_are_measured_anew_and_stop_no_run(at):
  turned(at / 'validation/bee/7.png')
  found = load(at)
  train, held = earlier.as_recorded(found, by_length(at))
  assert train.fingerprint == by_length(at) and held.fingerprint == found[1].fingerprint


def test_pictures_of_every_source_are_looked_at(at):
  turned(at / 'validation/bee/7.png')
  assert '1 picture turned upright' in earlier.otherwise(load(at))


def test_held_out_pictures_that_were_changed_since_are_looked_at_again(at, monkeypatch):
  found, seen = load(at), []
  monkeypatch.setattr(earlier, 'otherwise', lambda sources: seen.extend(sources) or '')
  earlier.as_recorded(found, by_length(at), [found[0].fingerprint, 'another'])
  assert seen == [found[1]]


def test_tiny_pictures_and_new_formats_are_why_a_fingerprint_differs(at):
  Image.fromarray(np.zeros((1, 1), np.uint8)).save(at / 'train/ape/tiny.png')
  found = load(at)[0]
  assert len(found) == sum(labelled.COUNTS['train'])
  assert 'ape/tiny.png' in found.changed and 'below a quarter of the side' in found.changed
  assert earlier.of_names(['a.JPG', 'b.bmp', 'c.gif'], []).startswith(
    'earlier versions of gdistill read otherwise: 2 pictures of formats'
  )


def test_a_picture_of_a_new_format_is_told_once(at):
  Image.new('RGB', (9, 8)).save(at / 'train/ape/new.bmp')
  assert earlier.otherwise([load(at)[0]]).count('new.bmp') == 1


def test_a_later_change_of_bytes_is_seen_by_what_was_recorded_since(at, monkeypatch):
  found = load(at)
  sampled = [f.fingerprint for f in found]
  monkeypatch.setattr(earlier, 'otherwise', None)  # nothing needs to be read
  kept = earlier.as_recorded(found, by_length(at), sampled)
  assert kept[0].fingerprint == by_length(at)
  file = at / 'train/ape/0.png'
  file.write_bytes(file.read_bytes()[:-5] + b'other')
  changed = earlier.as_recorded(load(at), by_length(at), sampled)[0]
  assert changed.fingerprint != by_length(at)
  assert changed.changed == 'the bytes of its pictures were changed since the last start'


@pytest.mark.parametrize('kind', ['GIF', 'BMP', 'TIFF', 'PPM'])
def test_a_picture_named_as_a_jpeg_that_was_taken_for_damaged_is_read_otherwise(at, kind):
  Image.new('RGB', (9, 8)).save(at / 'train/ape/new.jpg', kind)
  assert load(at)[0][4][0].shape == (labelled.SIZE, labelled.SIZE, 3)
  said = earlier.otherwise([load(at)[0]])
  assert said.endswith(': 1 picture of formats that were passed over and are now read, such as '
                       'train/ape/new.jpg')  # fmt: skip


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_pictures_of_the_old_formats_are_read_as_before(at, kind):
  Image.new('RGB', (9, 8)).save(at / 'train/ape/new.jpg', kind)
  (at / 'train/ape/damaged.jpg').write_bytes(b'GIF89a and no more')
  assert earlier.otherwise([load(at)[0]]) == ''


def run_on(at, workdir):
  given = {'name': 'folder', 'path': str(at), 'held_out': 0.0, 'held_out_split': 'validation'}
  config = config_file.load('configs/digits.py:tiny', [])
  config['data'].update(given)
  config['model'].update(num_classes=3, image_size=labelled.SIZE, image_channels=3)
  pipeline.load.cache_clear()  # a process reads its data once
  return assemble.Run(reading.from_config(config), workdir)


def check(run):
  same_data.check(run.workdir, run.examples, run.own_pictures[0])
  same_data.record_samples(run.workdir, *run.own_pictures)


def test_a_run_of_an_earlier_version_goes_on_and_says_so_once(at, tmp_path, capsys):
  workdir = storage.path(tmp_path / 'run')
  ledger.record(workdir, 'data', examples=20, fingerprint=by_length(at))
  check(run_on(at, workdir))
  assert 'an earlier version of gdistill began this run: its 20 pictures' in capsys.readouterr().err
  again = run_on(at, workdir)
  check(again)
  assert again.examples.fingerprint == by_length(at) and not capsys.readouterr().err
  file = at / 'train/ape/0.png'
  file.write_bytes(file.read_bytes()[:-5] + b'other')
  words = (
    r'not those this run began with.*bytes of its pictures.*; restore the first data or choose'
  )
  with pytest.raises(errors.DataError, match=words):
    check(run_on(at, workdir))


def test_a_run_on_turned_pictures_is_refused_with_an_example(at, tmp_path):
  workdir = storage.path(tmp_path / 'run')
  turned(at / 'train/bee/7.png')
  ledger.record(workdir, 'data', examples=21, fingerprint=by_length(at))
  words = (
    r'1 picture turned upright .*bee/7\.png; restore the first data, use the version of gdistill '
    'that began this run, or choose another workdir'
  )
  with pytest.raises(errors.DataError, match=words):
    check(run_on(at, workdir))


def without_a_newer_key(run):
  """Writes the config of a run as an earlier version did; returns it."""
  config = run.config
  del config['data']['classes']
  storage.write_json(run.workdir / 'config.json', config)
  return config


def test_a_refused_run_keeps_the_config_that_the_earlier_version_wrote(at, tmp_path):
  """That version refuses a workdir whose config.json has keys that it does not know."""
  workdir = storage.path(tmp_path / 'run')
  turned(at / 'train/bee/7.png')
  ledger.record(workdir, 'data', examples=21, fingerprint=by_length(at))
  run = run_on(at, workdir)
  config = without_a_newer_key(run)
  with pytest.raises(errors.DataError, match='not those this run began with'):
    training.train(run, interrupt.Interrupt(), timing.Seconds())
  assert storage.read_json(workdir / 'config.json') == config


def finished(at, workdir, monkeypatch):
  run = run_on(at, workdir)
  monkeypatch.setattr(training.finished_rounds, 'is_finished', lambda folder: True)
  for r in run.plan:
    ledger.record(workdir, 'round-finished', round=r.name)
  return run


def test_a_finished_run_of_an_earlier_version_reads_its_pictures_once(at, tmp_path, monkeypatch):
  workdir = storage.path(tmp_path / 'run')
  ledger.record(workdir, 'data', examples=20, fingerprint=by_length(at))
  training.train(finished(at, workdir, monkeypatch), interrupt.Interrupt(), timing.Seconds())
  monkeypatch.setattr(earlier, 'otherwise', None)  # the pictures are not read again
  same_data.check_for_evaluation(run_on(at, workdir))
  file = at / 'train/ape/0.png'
  file.write_bytes(file.read_bytes()[:-5] + b'other')
  with pytest.raises(errors.DataError, match=r'not those this run was trained on: .*bytes of its'):
    same_data.check_for_evaluation(run_on(at, workdir))


def test_a_finished_run_keeps_its_config_unless_more_than_defaults_changes(
  at, tmp_path, monkeypatch
):
  run = finished(at, storage.path(tmp_path / 'run'), monkeypatch)
  file, config = run.workdir / 'config.json', without_a_newer_key(run)
  training.train(run, interrupt.Interrupt(), timing.Seconds())
  assert storage.read_json(file) == config
  config['data']['prefetch'] += 1
  storage.write_json(file, config)
  training.train(run, interrupt.Interrupt(), timing.Seconds())
  assert storage.read_json(file) == run.config


def test_a_finished_run_on_turned_pictures_is_not_evaluated(at, tmp_path, monkeypatch):
  workdir = storage.path(tmp_path / 'run')
  monkeypatch.setattr(grid_run, '_check_finished', lambda run: None)
  turned(at / 'train/bee/7.png')
  same_data.check_for_evaluation(run_on(at, workdir))  # its ledger does not say the first data
  ledger.record(workdir, 'data', examples=21, fingerprint=by_length(at))
  with pytest.raises(errors.DataError, match=r'trained on: .*1 picture turned .*bee/7\.png; rest'):
    grid_run.evaluate(run_on(at, workdir), 'quick', interrupt.Interrupt(), timing.Seconds())


def test_a_new_run_is_evaluated_only_on_its_pictures(at, tmp_path):
  workdir = storage.path(tmp_path / 'run')
  check(run_on(at, workdir))
  same_data.check_for_evaluation(run_on(at, workdir))
  file = at / 'train/ape/0.png'
  file.write_bytes(file.read_bytes()[:-5] + b'other')
  with pytest.raises(errors.DataError, match='not those this run was trained on'):
    same_data.check_for_evaluation(run_on(at, workdir))


def test_a_new_run_notices_another_picture_of_the_same_length(at, tmp_path):
  workdir = storage.path(tmp_path / 'run')
  check(run_on(at, workdir))
  file = at / 'train/ape/0.png'
  file.write_bytes(file.read_bytes()[:-5] + b'other')
  with pytest.raises(errors.DataError, match='not those this run began with'):
    check(run_on(at, workdir))


def test_a_new_run_is_never_said_to_be_of_an_earlier_version(at, tmp_path):
  workdir = storage.path(tmp_path / 'run')
  Image.fromarray(np.zeros((1, 1), np.uint8)).save(at / 'train/ape/tiny.png')
  check(run_on(at, workdir))
  shutil.copy(at / 'train/ape/0.png', at / 'train/ape/more.png')
  for look in check, same_data.check_for_evaluation:
    with pytest.raises(errors.DataError, match=r'at first [^;:]+; restore'):
      look(run_on(at, workdir))


@pytest.mark.parametrize('made', [{}, {'class_names': []}])
def test_the_pictures_of_a_latent_run_without_its_cache(at, tmp_path, monkeypatch, made):
  workdir = storage.path(tmp_path / 'run')
  run = run_on(at, workdir)
  monkeypatch.setattr(type(run.recipe), 'latent', True)
  ledger.record(workdir, 'data', examples=20, fingerprint='of latents', **made)
  assert (run.own_pictures[0].fingerprint == by_length(at)) == (not made)


@pytest.mark.parametrize('made', [{}, {'class_names': []}])
def test_a_latent_run_on_turned_pictures_is_refused_before_it_encodes(
  at, tmp_path, monkeypatch, made
):
  """Only if an earlier version began it; else the error of the cache of latents is right."""
  workdir = storage.path(tmp_path / 'run')
  turned(at / 'train/bee/7.png')
  ledger.record(workdir, 'data', examples=21, fingerprint='of latents', **made)
  run = run_on(at, workdir)
  monkeypatch.setattr(type(run.recipe), 'latent', True)
  assert bool(run.own_pictures[0].changed) == (not made)  # read without an autoencoder
  monkeypatch.setattr(assemble.Run, 'autoencoder', True)

  def encode(run, stop):
    raise errors.DataError('encodes')

  monkeypatch.setattr(training, '_encode', encode)
  words = 'encodes' if made else 'turned upright .* use the version of gdistill that began this run'
  with pytest.raises(errors.DataError, match=words):
    training.train(run, interrupt.Interrupt(), timing.Seconds())


def prepared(path):
  flags = dict(size=8, shard_size=4, held_out_split='')
  return labelled.prepared(path / 'pictures', path / 'prepared', **flags)


def test_prepared_data_of_an_earlier_version_keep_every_byte(tmp_path):
  shutil.copytree(RELEASED / 'plain', tmp_path / 'plain')
  before = labelled.contents(tmp_path / 'plain/prepared')
  prepared(tmp_path / 'plain')
  assert labelled.contents(tmp_path / 'plain/prepared') == before
  (tmp_path / 'plain/prepared/train/00000.json').unlink()  # as if that run had been killed
  prepared(tmp_path / 'plain')
  assert labelled.contents(tmp_path / 'plain/prepared') == before


def test_a_prepare_of_an_earlier_version_on_turned_pictures_is_not_continued(tmp_path):
  shutil.copytree(RELEASED / 'turned', tmp_path / 'turned')
  before = labelled.contents(tmp_path / 'turned/prepared')
  (tmp_path / 'turned/prepared/train/00000.json').unlink()
  with pytest.raises(errors.ConfigError, match=r'1 picture turned .* train/bee/1\.png; set --out'):
    prepared(tmp_path / 'turned')
  left = labelled.contents(tmp_path / 'turned/prepared')
  assert left == {n: d for n, d in before.items() if n != 'train/00000.json'}


def test_the_pictures_of_a_cache_are_those_in_its_shards(tmp_path):
  assert latent_cache.recorded_examples(str(tmp_path / 'nothing')) == ''
  (tmp_path / 'latents-00000.json').write_text('{"examples": "0123456789abcdef"}')
  (tmp_path / 'texts-00000.json').write_text('{"examples": "another"}')
  assert latent_cache.recorded_examples(str(tmp_path)) == '0123456789abcdef'
