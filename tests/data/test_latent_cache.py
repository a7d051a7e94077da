"""The cache of latents is shared by processes, resumed, checked, and never mixed with another."""

import dataclasses
import json
import os
import shutil
import subprocess

import encoded
import pytest

from gdistill import errors
from gdistill.data import caption_files
from gdistill.data import latent_cache
from gdistill.data import latents

ALL = {*(f'latents-0000{k}.array_record' for k in range(3)), 'texts-00000.array_record'}


def test_several_processes_end_with_the_digest_of_one(cache, tmp_path):
  jobs = [encoded.job(tmp_path, process=p, processes=3) for p in range(3)]
  for one in reversed(jobs):
    with pytest.raises(errors.DataError, match=r'is missing; .* with one cache folder that all'):
      jobs[0].finish()
    assert not one.finished
    one.work(encoded.look, lambda done: None)
  assert jobs[0].finish()['digest'] == cache[1]['digest']
  assert sum(j.total for j in jobs) == encoded.COUNT + 4
  assert all(j.finished and j.done == j.total for j in jobs)


class Killed(BaseException):
  pass


@pytest.mark.parametrize('after', range(7))
def test_stopped_anywhere_it_goes_on_and_ends_with_the_same_digest(cache, tmp_path, after):
  left = [after]

  def stop():
    left[0] -= 1
    if left[0] < 0:
      raise Killed

  with pytest.raises(Killed):
    encoded.made(tmp_path, look=stop)
  assert not list(tmp_path.glob('.tmp-*')) and not (tmp_path / 'index.json').exists()
  before = encoded.aged(tmp_path)
  assert len(before) == (0, 0, 1, 1, 2, 3, 3)[after]  # shards of two batches; the third of one
  index, _ = encoded.made(tmp_path)
  assert index['digest'] == cache[1]['digest']
  assert before | encoded.made_since(tmp_path) == ALL and not before & encoded.made_since(tmp_path)


@pytest.mark.parametrize('at', range(1, 11))
def test_killed_between_any_two_writes_it_ends_with_the_same_digest(
  cache, tmp_path, monkeypatch, at
):
  """Every file is published by os.replace; the process dies before or after one of the calls."""
  replace, left = os.replace, [at // 2]

  def dying(source, target):
    left[0] -= 1
    if left[0] < 0:
      if at % 2:
        replace(source, target)
      raise Killed
    replace(source, target)

  monkeypatch.setattr(latent_cache.files.os, 'replace', dying)
  with pytest.raises(Killed):
    encoded.made(tmp_path)
  monkeypatch.setattr(latent_cache.files.os, 'replace', replace)
  (tmp_path / '.tmp-prepare-0123').write_bytes(b'left by a killed process')
  one = encoded.job(tmp_path)
  one.check()
  one.clean()
  before = {f for f in encoded.aged(tmp_path) if (tmp_path / f).with_suffix('.json').exists()}
  one.work(encoded.look, lambda done: None)
  assert one.finish()['digest'] == cache[1]['digest']
  assert encoded.made_since(tmp_path) == ALL - before
  assert not list(tmp_path.glob('.tmp-*'))


def test_what_is_whole_is_not_made_again(cache):
  out, index = cache
  assert encoded.aged(out) == ALL
  again, count = encoded.made(out)
  assert count == 0 and again == index and not encoded.made_since(out)


def test_a_damaged_shard_alone_is_made_again(cache, damaged_cache):
  encoded.aged(damaged_cache)
  index, count = encoded.made(damaged_cache)
  assert index['digest'] == cache[1]['digest'] and count == 4
  assert encoded.made_since(damaged_cache) == {'latents-00001.array_record'}
  latents.load(str(damaged_cache), encoded.SHAPE)


def test_while_a_shard_is_made_again_there_is_no_index(damaged_cache):
  def stop():
    raise Killed

  with pytest.raises(Killed):
    encoded.made(damaged_cache, look=stop)
  assert not (damaged_cache / 'index.json').exists() and not encoded.job(damaged_cache).finished


@pytest.mark.parametrize('name', ['latents-00002.array_record', 'texts-00000.array_record'])
def test_a_missing_or_cut_shard_is_found_and_made_again(cache, tmp_path, name):
  encoded.made(tmp_path)
  for damage, words in (
    (lambda f: f.write_bytes(f.read_bytes()[:-9]), 'bytes, not'), (os.unlink, 'cannot be read'),
  ):  # fmt: skip
    damage(tmp_path / name)
    with pytest.raises(errors.DataError, match=rf'{name} (has|cannot).*copy the file again') as e:
      latents.load(str(tmp_path), encoded.SHAPE)
    assert words in str(e.value)
    one = encoded.job(tmp_path)
    assert not one.finished and one.done < one.total
    assert encoded.made(tmp_path)[0]['digest'] == cache[1]['digest']


def test_a_damaged_index_or_words_of_a_shard_are_written_again(cache, tmp_path):
  encoded.made(tmp_path)
  encoded.aged(tmp_path)
  (tmp_path / 'index.json').write_text('{')
  with pytest.raises(errors.DataError, match=r'index\.json is damaged.*repeat `gdistill encode`'):
    latents.load(str(tmp_path), encoded.SHAPE)
  assert not encoded.job(tmp_path).finished
  assert encoded.made(tmp_path)[0]['digest'] == cache[1]['digest'] and not encoded.made_since(
    tmp_path
  )
  (tmp_path / 'index.json').write_text(json.dumps({**cache[1], 'count': encoded.COUNT + 1}))
  assert not encoded.job(tmp_path).finished
  assert (
    encoded.made(tmp_path)[0] == cache[1]
    and encoded.job(tmp_path).finished
    and not encoded.made_since(tmp_path)
  )
  (tmp_path / 'latents-00000.json').write_text('[]')
  assert encoded.made(tmp_path)[0]['digest'] == cache[1]['digest']
  assert encoded.made_since(tmp_path) == {'latents-00000.array_record'}


def test_when_no_picture_can_be_read_there_is_no_index(tmp_path):
  with pytest.raises(
    errors.DataError, match=r'^no picture can be encoded: .*set latents.skip_corrupt=False'
  ):
    encoded.made(
      tmp_path, examples=encoded.with_damage(set(range(encoded.COUNT))), skip_corrupt=True
    )
  assert not (tmp_path / 'index.json').exists()


@pytest.mark.parametrize(
  'name', ['lost+found', '.DS_Store', '.snapshot', 'latents-100000.array_record']
)
def test_what_a_disk_has_and_a_hundred_thousandth_shard_are_no_strangers(tmp_path, name):
  (tmp_path / name).mkdir()
  encoded.job(tmp_path).check()


OTHERS = {
  'encoder': (
    dict(encoder=dataclasses.replace(encoded.ENCODER, digest='encoder-2')),
    r"another autoencoder \(encoder-1\) than this run's \(encoder-2\)",
  ),
  'text_encoder': (
    dict(texts=dataclasses.replace(encoded.TEXTS, digest='texts-2')),
    r"another text encoder \(texts-1\) than this run's \(texts-2\)",
  ),
  'no_text': (dict(texts=None), r"another text encoder \(texts-1\) than this run's \(none\)"),
  'captions': (
    dict(captions=encoded.CAPTIONS[::-1]),
    r"other captions \([0-9a-f]{16}\) than this run's",
  ),
  'pictures': (
    dict(examples=encoded.pictures(encoded.PIXELS[::-1])),
    r"other pictures \([0-9a-f]{16}\) than this run's",
  ),
  'size': (
    dict(examples=encoded.pictures(encoded.PIXELS[:, :2])),
    r"pictures of another size \(\[4, 6, 3\]\) than this run's \(\[2, 6, 3\]\)",
  ),
  'shape': (
    dict(encoder=dataclasses.replace(encoded.ENCODER, shape=(3, 2, 5))),
    r"another shape \(\[2, 3, 5\]\) than this run's \(\[3, 2, 5\]\)",
  ),
  'shard_size': (dict(shard_size=5), r"another latents\.shard_size \(4\) than this run's \(5\)"),
  'masks': (
    dict(encoder=dataclasses.replace(encoded.ENCODER, masks=2)),
    r"another number of masks \(0\) than this run's \(2\)",
  ),
}


@pytest.mark.parametrize('kind', OTHERS)
@pytest.mark.parametrize('finished', [True, False])
def test_latents_of_anything_else_are_refused_with_both_digests_and_left_alone(
  tmp_path, kind, finished
):
  encoded.made(tmp_path)
  if not finished:  # as after a kill
    (tmp_path / 'index.json').unlink()
    (tmp_path / 'latents-00000.array_record').unlink()
  before = {f: f.read_bytes() for f in tmp_path.iterdir()}
  given, words = OTHERS[kind]
  with pytest.raises(
    errors.DataError, match=words + '.*; set latents.cache to another folder, or remove'
  ):
    encoded.job(tmp_path, **given).check()
  assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_folder_of_anything_else_is_refused(tmp_path):
  encoded.job(tmp_path / 'nothing').check()
  (tmp_path / 'a.png').write_bytes(b'')
  with pytest.raises(
    errors.DataError, match=r'holds a\.png, which does not belong to a cache of latents; set'
  ):
    encoded.job(tmp_path).check()
  (tmp_path / 'a.png').rename(tmp_path / 'index.json')
  (tmp_path / 'index.json').write_text(json.dumps({'format': 'gdistill-records'}))
  with pytest.raises(errors.DataError, match="is of format 'gdistill-records' and not"):
    encoded.job(tmp_path).check()
  with pytest.raises(errors.DataError, match=r'index\.json is damaged: .*gdistill-records'):
    latents.load(str(tmp_path), encoded.SHAPE)
  with pytest.raises(errors.DataError, match=r'to the end, and check latents\.cache'):
    latents.load(str(tmp_path / 'nothing'), encoded.SHAPE)


def test_a_class_whose_pictures_are_all_left_out_is_refused_each_time(tmp_path):
  apes = {i for i in range(encoded.COUNT) if encoded.LABELS[i] == 0}
  given = {'examples': encoded.with_damage(apes | {1}), 'skip_corrupt': True}
  for _ in range(2):
    with pytest.raises(errors.DataError, match="skip_corrupt=True leaves out all pictures of the c"
                       "lass 'ape', so training would miss"):  # fmt: skip
      encoded.made(tmp_path, **given)
  assert not (tmp_path / 'index.json').exists()
  left = encoded.with_damage(apes - {min(apes)} | {1})
  index, _ = encoded.made(tmp_path / 'some', examples=left, skip_corrupt=True)
  assert index['left_out'] == len(apes)


def test_errors_of_the_encoder_are_not_taken_for_a_full_disk(tmp_path):
  def encode(pixels):
    raise RuntimeError('out of memory')

  with pytest.raises(RuntimeError, match=r'^out of memory$'):
    encoded.made(tmp_path, encoder=dataclasses.replace(encoded.ENCODER, encode=encode))


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(cache, tmp_path):
  if os.geteuid():
    pytest.skip('a small disk is only mounted by root')
  small = tmp_path / 'small'
  small.mkdir()
  mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=250k', 'tmpfs', small], check=False)
  if mounted.returncode:
    pytest.skip('a small disk is only mounted by root')
  try:
    with pytest.raises(errors.DataError, match=r'small.* cannot be written: .*No space left.*free'):
      encoded.made(small)
    assert not (small / 'index.json').exists() and not list(small.glob('.tmp-*'))
    subprocess.run(['mount', '-o', 'remount,size=10m', small], check=True)
    assert encoded.made(small)[0]['digest'] == cache[1]['digest']
  finally:
    subprocess.run(['umount', small], check=True)


def test_a_cache_of_captions_of_one_line_is_refused_with_the_reason(tmp_path):
  """An earlier version has made the cache; the captions are now read whole, and so differ."""
  encoded.made(tmp_path)
  tally = caption_files.Tally()
  longer = [
    tally.caption(c.replace('e 3', 'e\n3'), f'{i}.png') for i, c in enumerate(encoded.CAPTIONS)
  ]
  assert longer == encoded.CAPTIONS
  longer = [c.replace('e 3', 'e 3, whole') for c in longer]

  class Read:
    changed = tally.changed

  examples = dataclasses.replace(encoded.pictures(), read=Read())
  with pytest.raises(
    errors.DataError,
    match=r'other captions .*: if an earlier version of gdistill made these latents, the '
    r'reason may be that earlier versions of gdistill read only the first line of a caption, '
    r"and 2 captions are longer \(the first is '3.png'\); set latents.cache to another folder",
  ):
    encoded.job(tmp_path, captions=longer, examples=examples).check()


def test_a_cache_that_lists_other_classes_says_which(cache, tmp_path):
  shutil.copytree(cache[0], tmp_path / 'c')
  file = tmp_path / 'c' / 'index.json'
  index = json.loads(file.read_text())
  file.write_text(json.dumps({**index, 'class_names': [*index['class_names'][:-1], 'emu']}))
  with pytest.raises(errors.DataError, match=r"index.json lists other classes .* cache has 'emu';"):
    encoded.job(tmp_path / 'c').check()


def test_latents_get_the_numbers_and_names_of_a_map(cache):
  found = latents.load(str(cache[0]), encoded.SHAPE)
  names, count = found.class_names, len(found.class_names)
  turned = found.renumbered([*range(1, count), 0], [f'x{k}' for k in range(count)])
  index = list(range(len(found)))
  before, after = found.gather(index), turned.gather(index)
  assert after['label'].tolist() == [(k + 1) % count for k in before['label']]
  assert (after['latents'] == before['latents']).all() and turned.class_names[0] == 'x0'
  assert turned.fingerprint != found.fingerprint
  same = found.renumbered(range(count), [n.upper() for n in names])
  assert same.fingerprint == found.fingerprint and same.class_names[0] == names[0].upper()
