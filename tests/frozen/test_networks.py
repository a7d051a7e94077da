"""Tests of the frozen networks: whether they fit the trained network, their names, and prompts."""

import dataclasses
import shutil
import types

import latent_runs
import numpy as np
import published
import pytest
import texts

from gdistill import errors
from gdistill.frozen import networks as frozen_networks
from gdistill.recipe import settings as recipes
from gdistill.workdir import storage

PHOTOS, TEXT, _, SD = latent_runs.KINDS


@pytest.mark.parametrize(
  ('name', 'model', 'words'),
  [
    (
      PHOTOS,
      dict(image_channels=4),
      r'image_channels=4 does not fit .*/tiny; set model\.image_channels=32',
    ),
    (SD, dict(context_dim=16), r'context_dim=16 does not fit .*/text; set model\.context_dim=32'),
    (
      TEXT,
      dict(context_length=77),
      r'context_length=77 does not fit .*/text; set model\.context_length=9',
    ),
  ],
)
def test_a_network_that_does_not_fit_what_is_encoded_is_told_how(given, name, model, words):
  def check(recipe):
    frozen = frozen_networks.of_settings(recipe.latents)
    frozen_networks.check_fits(frozen, recipe.latents, recipe.model)

  check(latent_runs.recipe(name, given))
  with pytest.raises(errors.ConfigError, match=r'model\.' + words):
    check(latent_runs.recipe(name, given, model=model))


def test_the_scale_of_latents_is_part_of_what_made_them():
  found = latent_runs.autoencoder('kl')
  names = {
    frozen_networks.encoder_digest(dataclasses.replace(found, **more))
    for more in ({}, {'scale': 1.0}, {'shift': 0.5})
  }
  assert len(names) == 3


def test_a_codebooks_default_scale_is_said_to_be_taken(capsys):
  for kind, scale, said in (('vq', 0.18215, 1), ('vq', 1.0, 0), ('kl', 0.18215, 0)):
    found = dataclasses.replace(published.autoencoder(kind), scale=scale)
    latents = recipes.Latents(autoencoder='data/vq')
    model = recipes.Model(**published.LATENT)
    frozen_networks.check_fits(frozen_networks.Frozen(found), latents, model)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == said
    assert not said or 'data/vq/config.json: scaling_factor=0.18215, the default' in lines[0]


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


def test_a_prompt_is_read_as_a_caption_is(given):
  frozen = frozen_networks.Frozen(text=frozen_networks.text_encoder(str(given / 'text'), 9))
  ids, mask = frozen.tokens(['\ufeff\n\nthe\ncat\r\n', 'the cat'])
  np.testing.assert_array_equal(ids[0], ids[1])
  np.testing.assert_array_equal(mask[0], mask[1])


def test_a_round_of_a_version_that_split_added_tokens_is_told(given, tmp_path):
  shutil.copytree(given / 'kl', tmp_path / 'autoencoder')
  for part in ('text_encoder', 'tokenizer'):
    shutil.copytree(given / 'text' / part, tmp_path / part)
  rows = len(texts.clip_vocabulary())
  listed = {str(rows): {'content': '<toy>'}}
  texts.edit(tmp_path / 'tokenizer' / 'tokenizer_config.json', added_tokens_decoder=listed)
  text = frozen_networks.text_encoder(str(texts.grown(tmp_path, rows + 1)), 9)
  autoencoder = frozen_networks.autoencoder(str(tmp_path / 'autoencoder'))
  names = {'autoencoder': frozen_networks.encoder_digest(autoencoder), 'text_length': 9}
  channels = autoencoder.latent_channels

  def read(digest):
    return frozen_networks.read_frozen(
      types.SimpleNamespace(
        path=storage.path(tmp_path), card={'latents': {**names, 'text': digest}},
        settings=types.SimpleNamespace(image_channels=channels),
      )
    )  # fmt: skip

  assert read(text.digest).text.digest == text.digest != text.earlier_digest
  with pytest.raises(errors.CheckpointError, match='that split the tokens that were added to its'):
    read(text.earlier_digest)
  with pytest.raises(errors.CheckpointError, match='trained with another text encoder'):
    read('0' * 16)
