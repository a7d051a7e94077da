"""Tests of a run's copies of its frozen networks, also when the copying is killed."""

import functools

import latent_runs
import numpy as np
import pytest
import safetensors.numpy

from gdistill.frozen import copies
from gdistill.frozen import networks as frozen_networks
from gdistill.workdir import storage

SD = 'stable_diffusion.py:tiny'


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


@pytest.mark.full
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
  # The autoencoder has two files, the text encoder two, and the tokenizer four.
  assert len(done) == 8
  own = copies.own_paths(recipe.latents, workdir)
  assert own != recipe.latents and frozen_networks.of_settings(own).names() == frozen.names()
