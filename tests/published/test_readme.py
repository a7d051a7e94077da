"""The README of an export says how the network is guided, in how many steps, and its licence."""

import json

import exported
import published
import pytest

from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders

pytestmark = pytest.mark.full

COSINE = recipes.Noise('cosine')


@pytest.fixture(scope='module')
def text_round(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text') / 'round'
  published.finished(folder, recipes.Model(**published.TEXT), published.SD_NOISE, 'kl')
  return folder


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(w_min=8.0, w_max=10.0), 'guidance_scale=9)'),
    (dict(w_min=0.0, w_max=2.0), 'guidance_scale=3)'),
  ],
)
def test_the_example_stays_within_the_range_of_w(text_round, tmp_path, changes, words):
  out, _ = exported.export(
    exported.with_card(text_round, tmp_path, **changes), tmp_path, licence='mine'
  )
  readme = (out / 'README.md').read_text()
  assert words in readme and readme.startswith('---\nlicense: mine\n')


@pytest.mark.parametrize(
  ('card', 'words'),
  [
    (
      dict(guided=True, stage='teacher', num_steps=0),
      'calls the network twice, with the condition and without',
    ),
    (
      dict(w_min=2.0, w_max=2.0),
      'at the guidance strength w = 2 and takes no other w. A sampling step calls the network '
      'once, without further guidance.',
    ),
  ],
)
def test_a_network_without_w_says_how_it_is_guided(tmp_path, card, words):
  folder = tmp_path / 'round'
  published.finished(folder, recipes.Model(**published.PIXEL), COSINE, takes_w=False, **card)
  out, _ = exported.export(folders.read_folder(folder), tmp_path)
  readme = (out / 'README.md').read_text()
  assert words in readme and 'use_clipped_model_output=True' in readme
  config = json.loads((out / 'unet' / 'config.json').read_text())
  assert config['time_cond_proj_dim'] is None


def test_steps_that_do_not_divide_a_thousand_are_noted(text_round, tmp_path):
  _, [note] = exported.export(exported.with_card(text_round, tmp_path, num_steps=16), tmp_path)
  assert note.startswith('16 does not divide 1000')


def test_the_example_of_an_inpainting_network_passes_a_picture_and_a_mask(tmp_path):
  settings = recipes.Model(**dict(published.TEXT, extra_channels=5))
  published.finished(tmp_path / 'round', settings, published.SD_NOISE, 'kl')
  out, _ = exported.export(folders.read_folder(tmp_path / 'round'), tmp_path)
  readme = (out / 'README.md').read_text()
  assert 'StableDiffusionInpaintPipeline' in readme and 'image=IMAGE, mask_image=MASK' in readme
