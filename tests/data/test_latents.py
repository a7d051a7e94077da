"""What was encoded is read back bit for bit, shared out, resumed, checked, and never mixed."""

import dataclasses
import json
import os
import pickle
import subprocess

import ml_dtypes
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import latents
from gdistill.data import source

COUNT, SHAPE = 11, (2, 3, 5)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (COUNT, 4, 6, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3
CAPTIONS = [f'picture {i % 4}' for i in range(COUNT)]  # four of them, some many times
MATRIX = RNG.normal(size=(4 * 6 * 3, 2 * 3 * 5)).astype(np.float32)


def posterior(pixels):
  """A function of every pixel, whose mean and deviation no bfloat16 holds exactly."""
  mean = (pixels.reshape(len(pixels), -1) / np.float32(255) @ MATRIX).reshape(-1, *SHAPE)
  return mean, np.exp(mean / 9)


def embeddings(captions):
  """Seeded by the words; as many tokens count as the last character says."""
  rows = [np.random.default_rng(list(c.encode())).normal(size=(5, 7)) for c in captions]
  counts = [int(c[-1]) + 1 if c else 1 for c in captions]
  return np.stack(rows).astype(np.float32), np.arange(5) < np.array(counts)[:, None]


def pictures(pixels=PIXELS, labels=LABELS):
  return source.in_memory(pixels, labels, ('ape', 'bee', 'cat'))


ALL = {*(f'latents-0000{k}.array_record' for k in range(3)), 'texts-00000.array_record'}
ENCODER = latents.Encoder(posterior, SHAPE, True, 'encoder-1')
TEXTS = latents.Texts(embeddings, 5, 7, 'texts-1')


def job(out, encoder=ENCODER, texts=TEXTS, captions=None, examples=None, **settings):
  settings = latents.Settings(str(out), **{'batch_size': 3, 'shard_size': 4, **settings})
  given = captions if captions is not None else (CAPTIONS if texts else ())
  return latents.Job(settings, examples or pictures(), encoder, texts, given)


def look():
  pass


def made(out, look=look, **given):
  one = job(out, **given)
  one.check()
  _, count = one.work(look, lambda done: None)
  return one.finish(), count


def bf16(x):
  return np.asarray(x).astype(ml_dtypes.bfloat16)


def aged(out):
  """The names of the shards, which seem to be of 1970 after this."""
  for file in out.glob('*.array_record'):
    os.utime(file, (1, 1))
  return {f.name for f in out.glob('*.array_record')}


def made_since(out):
  """The shards that were made after `aged`."""
  return {f.name for f in out.glob('*.array_record') if f.stat().st_mtime > 1}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  out = tmp_path_factory.mktemp('latents') / 'made' / 'deep'
  index, _ = made(out)
  return out, index


@pytest.mark.parametrize('memory', [2**29, 0])
def test_both_flips_and_the_captions_embeddings_come_back_in_bfloat16(whole, monkeypatch, memory):
  monkeypatch.setattr(latents, '_IN_MEMORY', memory)
  found = latents.load(str(whole[0]), SHAPE)
  assert (len(found), found.shape, found.class_names) == (COUNT, SHAPE, ('ape', 'bee', 'cat'))
  assert found.in_memory == bool(memory) and found.views == (2, 2)
  batch = found.gather(np.arange(COUNT))
  for flip, pixels in enumerate((PIXELS, PIXELS[:, :, ::-1])):
    # in batches of three, as they were encoded: a matrix product's last bits depend on its rows
    padded = np.concatenate([pixels, pixels[-2:], pixels[-2:-1]])[:12]
    for part in range(2):
      expected = np.concatenate([posterior(padded[i : i + 3])[part] for i in range(0, 12, 3)])
      same(batch['latents'][:, flip, part], bf16(expected[:COUNT]))
  np.testing.assert_array_equal(batch['label'], LABELS)
  hidden, mask = embeddings(CAPTIONS)
  same(batch['text'], bf16(hidden))
  np.testing.assert_array_equal(batch['text_mask'], mask)
  assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == {
    k: (shape, np.dtype(kind)) for k, (shape, kind) in found.fields.items()
  }


def same(found, expected):
  """Up to a unit in the last place of bfloat16, where float32 was rounded from another side."""
  assert found.dtype == expected.dtype and found.shape == expected.shape
  a, b = (x.astype(np.float32) for x in (found, expected))
  odd = a != b
  assert odd.mean() < 0.02
  np.testing.assert_allclose(a, b, rtol=2**-7)


def test_a_batch_is_its_examples_and_a_worker_reads_the_same(whole, monkeypatch):
  monkeypatch.setattr(latents, '_IN_MEMORY', 0)
  found = latents.load(str(whole[0]), SHAPE)
  index = np.array([7, 0, 10, 7])
  batch = found.gather(index)
  for place, i in enumerate(index):
    equal(found.gather([i]), {k: v[place : place + 1] for k, v in batch.items()})
  worker = pickle.loads(pickle.dumps(found))  # noqa: S301 - as workers get it
  equal(worker.gather(index), batch)
  assert worker.fingerprint == found.fingerprint == whole[1]['digest'][:16]


def equal(found, expected):
  assert found.keys() == expected.keys()
  for key in expected:
    np.testing.assert_array_equal(found[key], expected[key], key)


def test_captions_are_embedded_once_each_and_a_deterministic_encoder_keeps_no_deviation(tmp_path):
  seen = []

  def counted(captions):
    seen.extend(captions)
    return embeddings(captions)

  texts = dataclasses.replace(TEXTS, encode=counted)
  index, count = made(tmp_path, texts=texts, encoder=dataclasses.replace(ENCODER, posterior=False))
  assert sorted(filter(None, seen)) == sorted(set(CAPTIONS)) and count == COUNT
  assert [s['count'] for s in index['text_shards']] == [4]
  found = latents.load(str(tmp_path), SHAPE)
  assert found.gather([0, 1])['latents'].shape == (2, 2, 1, *SHAPE)


def test_without_captions_there_is_no_text(tmp_path):
  index, _ = made(tmp_path, texts=None)
  assert index['text'] is None and index['text_shards'] == []
  assert latents.load(str(tmp_path), SHAPE).gather([1]).keys() == {'latents', 'label'}


def test_masked_latents_are_those_of_their_picture_flip_and_number(tmp_path, monkeypatch):
  def masked(pixels, numbers):  # a mask of ones, and the number beside the picture's mean
    latent = posterior(pixels)[0] + numbers[:, None, None, None].astype(np.float32)
    return np.concatenate([np.ones((*latent.shape[:3], 1), np.float32), latent], -1)

  index, _ = made(tmp_path, encoder=dataclasses.replace(ENCODER, masks=2, masked=masked))
  assert index['masks'] == 2
  monkeypatch.setattr(latents, '_IN_MEMORY', 0)
  found = latents.load(str(tmp_path), SHAPE)
  batch = found.gather(np.arange(COUNT)[::-1])
  assert batch['masked'].shape[1:] == found.fields['masked'][0] == (2, 2, 2, 3, 6)
  for flip, pixels in enumerate((PIXELS, PIXELS[:, :, ::-1])):
    for k in range(2):
      numbers = (np.arange(COUNT) * 2 + flip) * 2 + k
      same(batch['masked'][::-1, flip, k], bf16(masked(pixels, numbers)))
  with pytest.raises(errors.DataError, match=r'number of masks \(2\) than this one \(none\)'):
    job(tmp_path).check()


def test_several_processes_end_with_the_digest_of_one(whole, tmp_path):
  jobs = [job(tmp_path, process=p, processes=3) for p in range(3)]
  for one in reversed(jobs):
    with pytest.raises(errors.DataError, match=r'is missing; .* with one disk for all'):
      jobs[0].finish()
    assert not one.finished
    one.work(look, lambda done: None)
  assert jobs[0].finish()['digest'] == whole[1]['digest']
  assert sum(j.total for j in jobs) == COUNT + 4
  assert all(j.finished and j.done == j.total for j in jobs)


class Killed(BaseException):
  pass


@pytest.mark.parametrize('after', range(7))
def test_stopped_anywhere_it_goes_on_and_ends_with_the_same_digest(whole, tmp_path, after):
  left = [after]

  def stop():
    left[0] -= 1
    if left[0] < 0:
      raise Killed

  with pytest.raises(Killed):
    made(tmp_path, look=stop)
  assert not list(tmp_path.glob('.tmp-*')) and not (tmp_path / 'index.json').exists()
  before = aged(tmp_path)
  assert len(before) == (0, 0, 1, 1, 2, 3, 3)[after]  # two batches a shard, one of the third
  index, _ = made(tmp_path)
  assert index['digest'] == whole[1]['digest']
  assert before | made_since(tmp_path) == ALL and not before & made_since(tmp_path)


@pytest.mark.parametrize('at', range(1, 11))
def test_killed_between_any_two_writes_it_ends_with_the_same_digest(
  whole, tmp_path, monkeypatch, at
):
  """Every file gets its name by os.replace: the process ends before or after the at-th of them."""
  replace, left = os.replace, [at // 2]

  def dying(source, target):
    left[0] -= 1
    if left[0] < 0:
      if at % 2:
        replace(source, target)
      raise Killed
    replace(source, target)

  monkeypatch.setattr(latents.files.os, 'replace', dying)
  with pytest.raises(Killed):
    made(tmp_path)
  monkeypatch.setattr(latents.files.os, 'replace', replace)
  (tmp_path / '.tmp-prepare-0123').write_bytes(b'of who was killed')
  one = job(tmp_path)
  one.check()
  one.clean()
  before = {f for f in aged(tmp_path) if (tmp_path / f).with_suffix('.json').exists()}
  one.work(look, lambda done: None)
  assert one.finish()['digest'] == whole[1]['digest']
  assert made_since(tmp_path) == ALL - before
  assert not list(tmp_path.glob('.tmp-*'))


def test_what_is_whole_is_not_made_again(whole):
  out, index = whole
  assert aged(out) == ALL
  again, count = made(out)
  assert count == 0 and again == index and not made_since(out)


@pytest.fixture
def damaged(tmp_path):
  """A bit of the latents of example 5, which is record 1 of shard 1, is another."""
  made(tmp_path)
  file = tmp_path / 'latents-00001.array_record'
  batch = np.stack([PIXELS[[4, 5, 6]], PIXELS[[4, 5, 6], :, ::-1]])
  views = [np.stack(posterior(p), 1)[1] for p in batch]
  data, place = bytearray(file.read_bytes()), -1
  place = data.find(bf16(np.stack(views)).tobytes()[:16])
  assert place > 0
  data[place + 5] ^= 8
  file.write_bytes(data)
  return tmp_path


def test_a_damaged_shard_is_named_when_read(damaged, monkeypatch):
  words = r'record 1 of .*latents-00001\.array_record cannot be read: .*; copy the file again, or '
  with pytest.raises(errors.DataError, match=words + 'remove it and repeat `gdistill encode`'):
    latents.load(str(damaged), SHAPE)
  monkeypatch.setattr(latents, '_IN_MEMORY', 0)
  found = latents.load(str(damaged), SHAPE)
  found.gather([4, 6])
  with pytest.raises(errors.DataError, match=words):
    found.gather([4, 5])


def test_a_damaged_shard_alone_is_made_again(whole, damaged):
  aged(damaged)
  index, count = made(damaged)
  assert index['digest'] == whole[1]['digest'] and count == 4
  assert made_since(damaged) == {'latents-00001.array_record'}
  latents.load(str(damaged), SHAPE)


def test_while_a_shard_is_made_again_there_is_no_index(damaged):
  def stop():
    raise Killed

  with pytest.raises(Killed):
    made(damaged, look=stop)
  assert not (damaged / 'index.json').exists() and not job(damaged).finished


def test_a_damaged_embedding_and_a_shard_in_anothers_place_are_named(tmp_path):
  made(tmp_path)
  file = tmp_path / 'texts-00000.array_record'
  hidden, _ = embeddings(['picture 2'])
  data = bytearray(file.read_bytes())
  data[data.index(bf16(hidden[0]).tobytes()) + 3] ^= 1
  file.write_bytes(data)
  with pytest.raises(errors.DataError, match=r'record 2 of .*texts-00000\.array_record cannot be'):
    latents.load(str(tmp_path), SHAPE)
  one, two = (tmp_path / f'latents-0000{k}.array_record' for k in (0, 1))
  one.write_bytes(two.read_bytes())
  with pytest.raises(errors.DataError, match=r'record 0 of .* it is record 0 of shard 1'):
    latents.load(str(tmp_path), SHAPE)


@pytest.mark.parametrize('name', ['latents-00002.array_record', 'texts-00000.array_record'])
def test_a_missing_or_cut_shard_is_found_and_made_again(whole, tmp_path, name):
  made(tmp_path)
  for damage, words in (
    (lambda f: f.write_bytes(f.read_bytes()[:-9]), 'bytes, not'), (os.unlink, 'cannot be read'),
  ):  # fmt: skip
    damage(tmp_path / name)
    with pytest.raises(errors.DataError, match=rf'{name} (has|cannot).*copy it again') as e:
      latents.load(str(tmp_path), SHAPE)
    assert words in str(e.value)
    one = job(tmp_path)
    assert not one.finished and one.done < one.total
    assert made(tmp_path)[0]['digest'] == whole[1]['digest']


def test_a_damaged_index_or_words_of_a_shard_are_written_again(whole, tmp_path):
  made(tmp_path)
  aged(tmp_path)
  (tmp_path / 'index.json').write_text('{')
  with pytest.raises(errors.DataError, match=r'index\.json is damaged.*repeat `gdistill encode`'):
    latents.load(str(tmp_path), SHAPE)
  assert not job(tmp_path).finished
  assert made(tmp_path)[0]['digest'] == whole[1]['digest'] and not made_since(tmp_path)
  (tmp_path / 'index.json').write_text(json.dumps({**whole[1], 'count': COUNT + 1}))
  assert not job(tmp_path).finished
  assert made(tmp_path)[0] == whole[1] and job(tmp_path).finished and not made_since(tmp_path)
  (tmp_path / 'latents-00000.json').write_text('[]')
  assert made(tmp_path)[0]['digest'] == whole[1]['digest']
  assert made_since(tmp_path) == {'latents-00000.array_record'}


def with_damage(at):
  """The pictures, of which those at `at` cannot be read."""

  def read(i):
    if i in at:
      raise errors.DataError(f'{i}.png is truncated; mend or remove it')
    return PIXELS[i], int(LABELS[i])

  return source.Source(read, COUNT, PIXELS.shape[1:], ('ape', 'bee', 'cat'), 'some')


def test_a_picture_that_cannot_be_read_stops_it_or_is_left_out_and_what_is_made_stays(tmp_path):
  bad = with_damage({5, 10})
  words = r'^5\.png is truncated; .* stays if you set latents\.skip_corrupt=True'
  with pytest.raises(errors.DataError, match=words):
    made(tmp_path, examples=bad)
  assert aged(tmp_path) == {'latents-00000.array_record'}
  index, count = made(tmp_path, examples=bad, skip_corrupt=True)
  assert count == 7 and 'latents-00000.array_record' not in made_since(tmp_path)
  assert [s['count'] for s in index['shards']] == [4, 3, 2]
  assert (index['count'], index['left_out']) == (9, 2)
  kept = [i for i in range(COUNT) if i not in (5, 10)]
  found = latents.load(str(tmp_path), SHAPE)
  batch = found.gather(np.arange(9))
  assert len(found) == 9
  np.testing.assert_array_equal(batch['label'], LABELS[kept])
  same(batch['latents'][:, 0, 0], bf16(posterior(PIXELS[kept])[0]))
  same(batch['text'], bf16(embeddings([CAPTIONS[i] for i in kept])[0]))
  assert made(tmp_path, examples=bad)[1] == 0  # nor does it stop once it is made


def test_when_no_picture_can_be_read_there_is_no_index(tmp_path):
  with pytest.raises(errors.DataError, match=r'^no picture can be read'):
    made(tmp_path, examples=with_damage(set(range(COUNT))), skip_corrupt=True)
  assert not (tmp_path / 'index.json').exists()


@pytest.mark.parametrize(
  'name', ['lost+found', '.DS_Store', '.snapshot', 'latents-100000.array_record']
)
def test_what_a_disk_has_and_a_hundred_thousandth_shard_are_no_strangers(tmp_path, name):
  (tmp_path / name).mkdir()
  job(tmp_path).check()


OTHERS = {
  'encoder': (
    dict(encoder=dataclasses.replace(ENCODER, digest='encoder-2')),
    r'another autoencoder \(encoder-1\) than this one \(encoder-2\)',
  ),
  'text_encoder': (
    dict(texts=dataclasses.replace(TEXTS, digest='texts-2')),
    r'another text encoder \(texts-1\) than this one \(texts-2\)',
  ),
  'no_text': (dict(texts=None), r'another text encoder \(texts-1\) than this one \(none\)'),
  'captions': (dict(captions=CAPTIONS[::-1]), r'other captions \([0-9a-f]{16}\) than this one'),
  'pictures': (dict(examples=pictures(PIXELS[::-1])), r'other pictures \([0-9a-f]{16}\) than this'),
  'size': (
    dict(examples=pictures(PIXELS[:, :2])),
    r'pictures of another size \(\[4, 6, 3\]\) than this one \(\[2, 6, 3\]\)',
  ),
  'shape': (
    dict(encoder=dataclasses.replace(ENCODER, shape=(3, 2, 5))),
    r'another shape \(\[2, 3, 5\]\) than this one \(\[3, 2, 5\]\)',
  ),
  'shard_size': (dict(shard_size=5), r'another latents\.shard_size \(4\) than this one \(5\)'),
  'masks': (
    dict(encoder=dataclasses.replace(ENCODER, masks=2)),
    r'another number of masks \(0\) than this one \(2\)',
  ),
}


@pytest.mark.parametrize('kind', OTHERS)
@pytest.mark.parametrize('finished', [True, False])
def test_latents_of_anything_else_are_refused_with_both_digests_and_left_alone(
  tmp_path, kind, finished
):
  made(tmp_path)
  if not finished:  # what a kill left
    (tmp_path / 'index.json').unlink()
    (tmp_path / 'latents-00000.array_record').unlink()
  before = {f: f.read_bytes() for f in tmp_path.iterdir()}
  given, words = OTHERS[kind]
  with pytest.raises(errors.DataError, match=words + '.*; name another latents.cache, or remove'):
    job(tmp_path, **given).check()
  assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_folder_of_anything_else_is_refused(tmp_path):
  job(tmp_path / 'nothing').check()
  (tmp_path / 'a.png').write_bytes(b'')
  with pytest.raises(errors.DataError, match=r'holds a\.png, which is nothing of latents; name'):
    job(tmp_path).check()
  (tmp_path / 'a.png').rename(tmp_path / 'index.json')
  (tmp_path / 'index.json').write_text(json.dumps({'format': 'gdistill-records'}))
  with pytest.raises(errors.DataError, match="is of format 'gdistill-records' and not"):
    job(tmp_path).check()
  with pytest.raises(errors.DataError, match=r'index\.json is damaged: .*gdistill-records'):
    latents.load(str(tmp_path), SHAPE)
  with pytest.raises(errors.DataError, match=r'until it is done, and check latents\.cache'):
    latents.load(str(tmp_path / 'nothing'), SHAPE)


def test_latents_of_another_shape_are_refused_with_the_right_one(whole):
  words = r'\[2, 3, 5\], the model draws \[8, 8, 4\]; set model\.image_size=2 .*image_channels=5'
  with pytest.raises(errors.DataError, match=words):
    latents.load(str(whole[0]), (8, 8, 4))


@pytest.mark.parametrize('value', [np.nan, np.inf, 3.4e38])
def test_latents_that_are_not_finite_are_refused_by_their_pictures(tmp_path, value):
  def encode(pixels):
    mean, std = posterior(pixels)
    mean[(pixels == PIXELS[8]).all((1, 2, 3))] = value
    return mean, std

  with pytest.raises(errors.DataError, match='examples 8 to 10 are not finite; check the auto'):
    made(tmp_path, encoder=dataclasses.replace(ENCODER, encode=encode))
  assert aged(tmp_path) == {'latents-00000.array_record', 'latents-00001.array_record'}


def test_errors_of_the_encoder_are_not_taken_for_a_full_disk(tmp_path):
  def encode(pixels):
    raise RuntimeError('out of memory')

  with pytest.raises(RuntimeError, match=r'^out of memory$'):
    made(tmp_path, encoder=dataclasses.replace(ENCODER, encode=encode))


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(whole, tmp_path):
  if os.geteuid():
    pytest.skip('a small disk is only mounted by root')
  small = tmp_path / 'small'
  small.mkdir()
  mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=250k', 'tmpfs', small], check=False)
  if mounted.returncode:
    pytest.skip('a small disk is only mounted by root')
  try:
    with pytest.raises(errors.DataError, match=r'small.* cannot be written: .*No space left.*free'):
      made(small)
    assert not (small / 'index.json').exists() and not list(small.glob('.tmp-*'))
    subprocess.run(['mount', '-o', 'remount,size=10m', small], check=True)
    assert made(small)[0]['digest'] == whole[1]['digest']
  finally:
    subprocess.run(['umount', small], check=True)
