"""Tests of encoding once: the cache holds what a run's frozen networks compute, and no other's."""

import dataclasses

import encoding
import jax
import labelled
import latent_runs
import ml_dtypes
import numpy as np
import published
import pytest

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.data import captions
from gdistill.data import latents
from gdistill.frozen import encode
from gdistill.frozen import networks as frozen_networks
from gdistill.training import assemble
from gdistill.workdir import ledger
from gdistill.workdir import storage

PHOTOS, TEXT, _, SD = latent_runs.KINDS


@pytest.mark.parametrize('name', [PHOTOS, SD])
def test_the_cache_holds_what_the_autoencoder_makes_of_both_flips(given, tmp_path, name):
  recipe = latent_runs.recipe(name, given)
  done = encoding.run(recipe, tmp_path / 'cache')
  train, _ = assemble.Run(recipe).pictures
  shape = (8, 8, recipe.model.image_channels)
  found = latents.load(str(tmp_path / 'cache'), shape)
  assert done.encoded == len(train) == len(found) and done.seconds > 0
  own = latent_runs.autoencoder(latent_runs.KINDS[name][0])
  batch = found.gather(range(len(found)))
  pixels, labels = train.some(1000)
  np.testing.assert_array_equal(batch['label'], labels)
  images = np.stack([pixels, pixels[:, :, ::-1]], 1).astype(np.float32) / 127.5 - 1.0
  flat = images.reshape(-1, *images.shape[2:])
  parts = [np.asarray(p).reshape(len(found), 2, 8, 8, -1)
           for p in jax.jit(own.encode)(own.params, flat)]  # fmt: skip
  posterior = own.kind == 'kl'
  assert found.views == (2, 2 if posterior else 1) and batch['latents'].dtype == ml_dtypes.bfloat16
  for part, expected in enumerate(parts[: 1 + posterior]):
    stored = batch['latents'][:, :, part].astype(np.float32)
    np.testing.assert_allclose(stored, expected, rtol=2**-7, atol=1e-5)
  assert parts[0].std() > 0.1 and (not posterior or (parts[1] > 1e-3).all())


def test_captions_are_those_of_the_pictures_and_embedded_by_the_text_encoder(given, tmp_path):
  recipe = latent_runs.recipe(SD, given)
  done = encoding.run(recipe, tmp_path)
  assert sum(s['count'] for s in done.index['text_shards']) == 7
  train, _ = assemble.Run(recipe).pictures
  batch = latents.load(str(tmp_path), (8, 8, recipe.model.image_channels)).gather(range(len(train)))
  words = [train.read.caption(i) for i in range(len(train))]
  assert len(set(words)) == 7
  text = frozen_networks.text_encoder(str(given / 'text'), 9)
  hidden = jax.jit(text.encode)(text.params, *text.tokens(words)[:2])
  np.testing.assert_allclose(batch['text'].astype(np.float32), hidden, rtol=2**-7, atol=1e-5)
  assert batch['text_mask'].all()  # CLIP attends to its padding tokens


def test_pictures_of_classes_have_the_captions_of_their_classes(given):
  recipe = latent_runs.recipe(TEXT, given)
  train, _ = assemble.Run(recipe).pictures
  words = {label: f'the {name}' for label, name in enumerate(('big cat', 'dog', 'eel'))}
  found = captions.of_source(train, recipe.latents.template)
  assert found == [words[k] for k in train.read.labels]


def test_a_cache_of_latents_of_another_size_is_refused_and_stays(given, tmp_path):
  recipe = latent_runs.recipe(PHOTOS, given)
  index = encoding.run(recipe, tmp_path / 'cache').index
  larger = dict(image_size=16, attention_resolutions=(16,))
  with pytest.raises(errors.DataError, match=r'holds latents of pictures of another size \(\[16'):
    encoding.run(latent_runs.recipe(PHOTOS, given, model=larger), tmp_path / 'cache', verify=True)
  assert encoding.run(recipe, tmp_path / 'cache', verify=True).index == index


def test_a_cache_of_another_autoencoder_is_refused_and_both_are_named(given, tmp_path):
  recipe = latent_runs.recipe(PHOTOS, given)
  encoding.run(recipe, tmp_path / 'cache')
  before = {f: f.stat().st_mtime_ns for f in (tmp_path / 'cache').iterdir()}
  digests = [
    frozen_networks.encoder_digest(latent_runs.autoencoder('tiny', seed=seed)) for seed in range(2)
  ]
  autoencoders.write(tmp_path / 'other', latent_runs.autoencoder('tiny', seed=1))
  another = latent_runs.recipe(PHOTOS, given, latents={'autoencoder': str(tmp_path / 'other')})
  words = rf"of another autoencoder \({digests[0]}\) than this run's \({digests[1]}\)"
  for verify in (False, True):
    with pytest.raises(errors.DataError, match=words):
      encoding.run(another, tmp_path / 'cache', verify=verify)
  assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'cache').iterdir()} == before


def test_a_whole_cache_is_read_without_a_lock_or_a_write_and_verified_when_asked(
  given, tmp_path, monkeypatch
):
  recipe = latent_runs.recipe(PHOTOS, given)
  first = encoding.run(recipe, tmp_path)
  shard = tmp_path / 'latents-00000.array_record'
  data = bytearray(shard.read_bytes())
  data[-9] ^= 1
  shard.write_bytes(data)
  with monkeypatch.context() as m:
    m.setattr(ledger, 'Lock', None)
    assert encoding.run(recipe, tmp_path) == encode.Done(first.index)
  again = encoding.run(recipe, tmp_path, verify=True)
  assert again.encoded == 8 and again.index == first.index
  assert encoding.run(recipe, tmp_path, verify=True).encoded == 0
  assert {f.name.partition('.')[2] for f in tmp_path.iterdir()} == {
    'json', 'array_record'
  }  # fmt: skip


def test_two_writers_of_one_cache_are_one_too_many(given, tmp_path):
  recipe = latent_runs.recipe(PHOTOS, given)
  with ledger.Lock(tmp_path), pytest.raises(errors.ConfigError, match='is in use by'):
    encoding.run(recipe, tmp_path)


def test_captions_that_are_cut_are_counted_and_the_pictures_left_out_are_told(
  given, tmp_path, capsys
):
  path = tmp_path / 'captioned'
  for i in range(12):
    labelled.write(path / f'{i:02d}.png', latent_runs.png(i))
    if i > 1:
      (path / f'{i:02d}.txt').write_text('the\n\ncat' if i % 2 else f'the cat of the cat {i}')
  recipe = latent_runs.recipe(
    SD, given, data=dict(name='captions', path=str(path), held_out=0.4),
    latents=dict(text_length=5), model=dict(context_length=5),
  )  # fmt: skip
  train, _ = assemble.Run(recipe).pictures
  long = {train.read.caption(i) for i in range(len(train))} - {'the cat'}
  encoding.run(recipe, tmp_path / 'cache')
  said = capsys.readouterr().err
  assert f'{len(long)} captions were cut to the 5 tokens that the text encoder reads' in said
  assert '5 of 10 captions have several lines' in said and "the first is '03.png'" in said
  assert '2 pictures without a caption' in said and "the first of them '00.png'" in said


def test_a_workdir_in_a_bucket_needs_a_cache_elsewhere(given):
  recipe = latent_runs.recipe(PHOTOS, given)
  with pytest.raises(
    errors.ConfigError, match=r"latents\.cache='' means --workdir=gs://b/run/latents"
  ):
    encode.cache_folder(recipe.latents, storage.path('gs://b/run'))
  shared = latent_runs.recipe(PHOTOS, given, latents=dict(cache='/disk/latents'))
  assert encode.cache_folder(shared.latents, storage.path('gs://b/run')) == '/disk/latents'


@pytest.mark.parametrize('value', [np.nan, 3e38])  # with 3e38, the latents overflow float32
def test_pictures_through_a_damaged_autoencoder_are_refused(value):
  found = published.autoencoder()
  pixels = np.arange(3 * 16 * 16 * 3, dtype=np.uint8).reshape(3, 16, 16, 3)
  whole = encode.autoencoded(found, 2)(pixels)
  assert whole.shape == pixels.shape and whole.dtype == np.uint8
  params = jax.tree.map(lambda a: np.full_like(a, value) if a.ndim == 4 else a, found.params)
  through = encode.autoencoded(dataclasses.replace(found, params=params), 2)
  with pytest.raises(errors.NumericsError, match='encoded and decoded are not finite'):
    through(pixels)
