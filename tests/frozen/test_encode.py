"""What a run in latent space encodes is what its frozen networks make, and theirs alone."""

import dataclasses
import functools

import jax
import labelled
import latent_runs
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.data import captions
from gdistill.data import latents
from gdistill.data import records
from gdistill.frozen import copies
from gdistill.frozen import encode
from gdistill.frozen import networks as frozen_networks
from gdistill.process import interrupt
from gdistill.training import assemble
from gdistill.workdir import ledger
from gdistill.workdir import storage

PHOTOS, TEXT, IMAGENET, SD = latent_runs.KINDS


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  return latent_runs.inputs(tmp_path_factory.mktemp('given'))


def run(recipe, folder, **more):
  parts = assemble.Run(recipe)
  return encode.run(
    parts.pictures[0], parts.frozen, recipe.latents, recipe.inpainting, str(folder),
    interrupt.Interrupt(), **more,
  )  # fmt: skip


@pytest.mark.parametrize('name', [PHOTOS, SD])
def test_the_cache_holds_what_the_autoencoder_makes_of_both_flips(given, tmp_path, name):
  recipe = latent_runs.recipe(name, given)
  done = run(recipe, tmp_path / 'cache')
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
  done = run(recipe, tmp_path)
  assert sum(s['count'] for s in done.index['text_shards']) == 7
  train, _ = assemble.Run(recipe).pictures
  batch = latents.load(str(tmp_path), (8, 8, recipe.model.image_channels)).gather(range(len(train)))
  words = [train.read.caption(i) for i in range(len(train))]
  assert len(set(words)) == 7
  text = frozen_networks.text_encoder(str(given / 'text'), 9)
  hidden = jax.jit(text.encode)(text.params, *text.tokens(words)[:2])
  np.testing.assert_allclose(batch['text'].astype(np.float32), hidden, rtol=2**-7, atol=1e-5)
  assert batch['text_mask'].all()  # CLIP's padding counts


def test_pictures_of_classes_have_the_captions_of_their_classes(given):
  recipe = latent_runs.recipe(TEXT, given)
  train, _ = assemble.Run(recipe).pictures
  words = {label: f'the {name}' for label, name in enumerate(('big cat', 'dog', 'eel'))}
  found = captions.of_source(train, recipe.latents.template)
  assert found == [words[k] for k in train.read.labels]


@pytest.mark.parametrize(
  ('name', 'model', 'words'),
  [
    (PHOTOS, dict(image_channels=4), r'image_channels=4 is not what .*/tiny makes; set it to 32'),
    (SD, dict(context_dim=16), r'context_dim=16 is not what .*/text makes; set it to 32'),
    (TEXT, dict(context_length=77), r'context_length=77 is not what .*/text makes; set it to 9'),
  ],
)
def test_a_network_that_does_not_fit_what_is_encoded_is_told_how(given, name, model, words):
  def check(recipe):
    frozen = frozen_networks.of_settings(recipe.latents)
    frozen_networks.check_fits(frozen, recipe.latents, recipe.model)

  check(latent_runs.recipe(name, given))
  with pytest.raises(errors.ConfigError, match=r'model\.' + words):
    check(latent_runs.recipe(name, given, model=model))


def test_a_cache_of_latents_of_another_size_is_refused_and_stays(given, tmp_path):
  index = run(latent_runs.recipe(PHOTOS, given), tmp_path / 'cache').index
  larger = dict(image_size=16, attention_resolutions=(16,))
  with pytest.raises(errors.DataError, match=r'holds latents of pictures of another size \(\[16'):
    run(latent_runs.recipe(PHOTOS, given, model=larger), tmp_path / 'cache', verify=True)
  assert run(latent_runs.recipe(PHOTOS, given), tmp_path / 'cache', verify=True).index == index


@pytest.mark.parametrize(
  ('size', 'remedy'), [(32, 'set model.image_size=16'), (15, 'prepare the pictures again')]
)
def test_records_of_another_size_name_the_size_of_the_latents(given, tmp_path, size, remedy):
  pixels = np.zeros((size, size, 3), np.uint8)
  for split in ('train', 'validation'):
    (tmp_path / 'in' / split / 'a').mkdir(parents=True)
    for i in range(4):
      Image.fromarray(pixels + i).save(tmp_path / 'in' / split / 'a' / f'{i}.png')
  labelled.prepared(tmp_path / 'in', tmp_path / 'out', size=size)
  source = dict(name='records', path=str(tmp_path / 'out'))
  recipe = latent_runs.recipe(IMAGENET, given, data=source)
  words = (
    rf'model\.image_size=8: .* \[{size}, {size}, 3\], .* 2 x 2 pixels of 3 channels; {remedy}$'
  )
  with pytest.raises(errors.DataError, match=words):
    assemble.Run(recipe).pictures  # noqa: B018
  if size == 32:
    fits = latent_runs.recipe(
      IMAGENET, given, data=source, model=dict(image_size=16, attention_resolutions=(16,))
    )
    assert assemble.Run(fits).pictures[0].shape == (32, 32, 3)


def other(given, tmp_path, kind='tiny'):
  autoencoders.write(tmp_path / 'other', latent_runs.autoencoder(kind, seed=1))
  return {'autoencoder': str(tmp_path / 'other')}


def test_a_cache_of_another_autoencoder_is_refused_and_both_are_named(given, tmp_path):
  recipe = latent_runs.recipe(PHOTOS, given)
  run(recipe, tmp_path / 'cache')
  before = {f: f.stat().st_mtime_ns for f in (tmp_path / 'cache').iterdir()}
  digests = [
    frozen_networks.encoder_digest(latent_runs.autoencoder('tiny', seed=seed)) for seed in range(2)
  ]
  another = latent_runs.recipe(PHOTOS, given, latents=other(given, tmp_path))
  words = rf"of another autoencoder \({digests[0]}\) than this run's \({digests[1]}\)"
  for verify in (False, True):
    with pytest.raises(errors.DataError, match=words):
      run(another, tmp_path / 'cache', verify=verify)
  assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'cache').iterdir()} == before


def test_the_scale_of_latents_is_part_of_what_made_them():
  found = latent_runs.autoencoder('kl')
  names = {
    frozen_networks.encoder_digest(dataclasses.replace(found, **more))
    for more in ({}, {'scale': 1.0}, {'shift': 0.5})
  }
  assert len(names) == 3


def test_a_whole_cache_is_read_without_a_lock_or_a_write_and_verified_when_asked(
  given, tmp_path, monkeypatch
):
  recipe = latent_runs.recipe(PHOTOS, given)
  first = run(recipe, tmp_path)
  shard = tmp_path / 'latents-00000.array_record'
  data = bytearray(shard.read_bytes())
  data[-9] ^= 1
  shard.write_bytes(data)
  with monkeypatch.context() as m:
    m.setattr(ledger, 'Lock', None)
    assert run(recipe, tmp_path) == encode.Done(first.index)
  again = run(recipe, tmp_path, verify=True)
  assert again.encoded == 8 and again.index == first.index
  assert run(recipe, tmp_path, verify=True).encoded == 0
  assert {f.name.partition('.')[2] for f in tmp_path.iterdir()} == {
    'json', 'array_record'
  }  # fmt: skip


def test_two_writers_of_one_cache_are_one_too_many(given, tmp_path):
  recipe = latent_runs.recipe(PHOTOS, given)
  with ledger.Lock(tmp_path), pytest.raises(errors.ConfigError, match='is in use by'):
    run(recipe, tmp_path)


def test_captions_that_are_cut_are_counted_and_the_pictures_left_out_are_told(
  given, tmp_path, capsys
):
  path = tmp_path / 'captioned'
  for i in range(12):
    labelled.write(path / f'{i:02d}.png', latent_runs.png(i))
    if i > 1:
      (path / f'{i:02d}.txt').write_text('the cat' if i % 2 else f'the cat of the cat {i}')
  recipe = latent_runs.recipe(
    SD, given, data=dict(name='captions', path=str(path), held_out=0.4),
    latents=dict(text_length=5), model=dict(context_length=5),
  )  # fmt: skip
  train, _ = assemble.Run(recipe).pictures
  long = {train.read.caption(i) for i in range(len(train))} - {'the cat'}
  run(recipe, tmp_path / 'cache')
  said = capsys.readouterr().err
  assert f'{len(long)} captions were cut to the 5 tokens that the text encoder reads' in said
  assert '2 pictures without a caption' in said and "the first of them '00.png'" in said


def test_a_run_keeps_copies_of_its_networks_and_is_told_by_them(given, tmp_path):
  recipe = latent_runs.recipe(SD, given)
  frozen, workdir = frozen_networks.of_settings(recipe.latents), storage.path(tmp_path)
  assert copies.own_paths(recipe.latents, workdir) == recipe.latents
  copies.keep(frozen, workdir)
  own = copies.own_paths(recipe.latents, workdir)
  assert (own.autoencoder, own.text) == (str(tmp_path / 'autoencoder'), str(tmp_path))
  for path in ('text_encoder/model.safetensors', 'tokenizer/vocab.json'):
    assert (tmp_path / path).read_bytes() == (given / 'text' / path).read_bytes()
  weights = 'diffusion_pytorch_model.safetensors'
  one, two = (safetensors.numpy.load_file(p / weights)
              for p in (tmp_path / 'autoencoder', given / 'kl'))  # fmt: skip
  assert one.keys() == two.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], two[name])
  assert frozen.names() == frozen_networks.of_settings(own).names()
  assert not list(tmp_path.rglob('.tmp-*'))


def test_of_many_prompts_that_are_cut_a_few_are_said(given, capsys):
  frozen = frozen_networks.Frozen(text=frozen_networks.text_encoder(str(given / 'text'), 5))
  ids, mask = frozen.tokens(['the cat of the cat'] * 8 + ['the cat'])
  lines = capsys.readouterr().err.splitlines()
  assert ids.shape == mask.shape == (9, 5) and len(lines) == 6
  assert lines[0].startswith('warning: prompt 0 has 5 tokens')
  assert lines[5] == 'warning: 3 more prompts are too long and cut'
  frozen.tokens(['the cat of the cat'] * 5)
  assert len(capsys.readouterr().err.splitlines()) == 5
  frozen.tokens(['the cat of the cat'] * 5, warn=False)
  assert not capsys.readouterr().err


def test_killed_after_any_copy_the_copies_are_made_again(given, tmp_path, monkeypatch):
  recipe, write, done = latent_runs.recipe(SD, given), storage.write_bytes, []
  frozen, workdir = frozen_networks.of_settings(recipe.latents), storage.path(tmp_path)

  def dying(most, path, data):
    write(path, data)
    done.append(path)
    if len(done) == most:
      raise KeyboardInterrupt

  def keep(most):
    done.clear()
    monkeypatch.setattr(storage, 'write_bytes', functools.partial(dying, most))
    copies.keep(frozen, workdir)

  for most in range(1, 8):
    with pytest.raises(KeyboardInterrupt):
      keep(most)
    assert copies.own_paths(recipe.latents, workdir) == recipe.latents
  keep(None)
  # two of the autoencoder, two of the text encoder and four of its tokenizer
  assert len(done) == 8
  own = copies.own_paths(recipe.latents, workdir)
  assert own != recipe.latents and frozen_networks.of_settings(own).names() == frozen.names()


def test_a_workdir_in_a_bucket_needs_a_cache_elsewhere(given):
  recipe = latent_runs.recipe(PHOTOS, given)
  with pytest.raises(
    errors.ConfigError, match=r"latents\.cache='' is --workdir=gs://b/run/latents"
  ):
    encode.cache_folder(recipe.latents, storage.path('gs://b/run'))
  shared = latent_runs.recipe(PHOTOS, given, latents=dict(cache='/disk/latents'))
  assert encode.cache_folder(shared.latents, storage.path('gs://b/run')) == '/disk/latents'


def test_what_training_reads_is_refused_in_another_shape(given, tmp_path):
  recipe = latent_runs.recipe(PHOTOS, given, latents=dict(cache=str(tmp_path)))
  run(recipe, tmp_path)
  assert assemble.Run(recipe, tmp_path).examples.fields['latents'][0] == (2, 1, 8, 8, 32)
  smaller = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, image_channels=4))
  with pytest.raises(errors.DataError, match=r'image_size=8 and model\.image_channels=32'):
    assemble.Run(smaller, tmp_path).examples  # noqa: B018
  assert records.read_index(str(tmp_path), latents.FORMAT)['count'] == 12
