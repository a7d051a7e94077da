"""The kind of a source is told by its files, and arguments that do not fit the kind are refused."""

import shutil

import imported
import numpy as np
import published
import pytest
import safetensors.numpy

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.published import teachers

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return published.stable_diffusion(tmp_path_factory.mktemp('published') / 'sd')


def test_what_may_be_sit_is_said_to_be_taken_for_dit(tmp_path, capsys):
  file = imported.save(
    tmp_path / 'a.safetensors', dit.state_from(imported.dit_params(), 'original', 4)
  )
  given = imported.with_autoencoder(tmp_path)
  for kind, lines in (('', 2), ('dit', 1), ('sit', 1)):
    teachers.read(file, kind=kind, **given)
    said = capsys.readouterr().err
    assert said.count('\n') == lines and ('give --kind=sit for SiT' in said) == (lines == 2)


def test_an_autoencoder_of_other_latents_is_refused(tmp_path):
  file = imported.save(
    tmp_path / 'a.safetensors', dit.state_from(imported.dit_params(), 'original', 4)
  )
  autoencoders.write(tmp_path / 'vq', published.autoencoder('vq', 3))
  with pytest.raises(errors.ConfigError, match=r'/vq makes latents of 3 channels, .* works on 4'):
    teachers.read(file, kind='dit', autoencoder=str(tmp_path / 'vq'))


def test_an_autoencoder_of_other_latents_is_refused_at_once(whole, tmp_path):
  autoencoders.write(tmp_path / 'six', published.autoencoder(channels=6))
  shutil.copytree(whole, tmp_path / 'sd')
  shutil.rmtree(tmp_path / 'sd' / 'vae')
  shutil.copytree(tmp_path / 'six', tmp_path / 'sd' / 'vae')
  for source, given in ((tmp_path / 'sd', ''), (whole, str(tmp_path / 'six'))):
    with pytest.raises(errors.ConfigError, match=r'latents of 6 channels, .* works on 4'):
      teachers.read(str(source), autoencoder=given)


@pytest.mark.parametrize(
  ('kind', 'flag', 'words'),
  [
    ('adm64', 'autoencoder', ('stable_diffusion, cin256, dit, sit', 'draws pixels')),
    ('adm256', 'text', ('stable_diffusion', 'is conditioned on classes')),
    ('dit', 'text', ('stable_diffusion', 'is conditioned on classes')),
    ('cin256', 'text', ('stable_diffusion', 'is conditioned on classes')),
    ('stable_diffusion', 'null', ('adm64, adm256', 'has a null')),
  ],
)
def test_arguments_that_a_kind_has_no_use_for_are_refused(whole, kind, flag, words):
  kinds, reason = words
  line = (
    f'^--{flag}=x is only for networks of kind {kinds}, and the kind of --source, {kind}, {reason}'
    rf'.*; leave --{flag} out$'
  )
  with pytest.raises(errors.ConfigError, match=line):
    teachers.read(str(whole), kind, **{flag: 'x'})


def with_arrays(file, *names):
  safetensors.numpy.save_file({name: np.zeros(1, np.float32) for name in names}, file)
  return str(file)


def test_sources_that_are_nothing_are_refused(tmp_path):
  (tmp_path / 'empty').mkdir()
  unknown = with_arrays(tmp_path / 'a.safetensors', 'x')
  for source, given, error, words in (
    ('nowhere', {}, errors.DataError, 'does not exist'),
    (tmp_path / 'empty', {}, errors.DataError, r'no \.safetensors file'),
    (unknown, {}, errors.ConfigError, r'give --kind=stable_diff'),
    (unknown, dict(kind='gan'), errors.ConfigError, "--kind='gan' must be"),
    (unknown, dict(kind='dit', null='b'), errors.ConfigError,
     '--null=b is only for networks of kind adm'),
    (with_arrays(tmp_path / 'b.safetensors', 'model.diffusion_model.input_blocks.0.0.weight'), {},
     errors.ConfigError, 'the table of classes'),
    (tmp_path, {}, errors.DataError, r'2 \.safetensors files'),
  ):  # fmt: skip
    with pytest.raises(error, match=words):
      teachers.read(str(source), **given)
  (tmp_path / 'model.ckpt').write_bytes(b'')
  with pytest.raises(errors.ConfigError, match=r'model\.ckpt is one of torch'):
    teachers.read(str(tmp_path / 'model.ckpt'))
  (tmp_path / 'c.safetensors').write_bytes(b'nothing')
  with pytest.raises(errors.DataError, match='holds no readable weights'):
    teachers.read(str(tmp_path / 'c.safetensors'))


def test_the_licence_is_that_of_the_card_or_what_is_said(whole, tmp_path):
  assert teachers.licence_of(whole) == 'creativeml-openrail-m'
  assert teachers.licence_of(whole / 'README.md') == 'creativeml-openrail-m'
  assert teachers.licence_of(tmp_path) == 'not stated'
  found = teachers.read(str(whole), licence='mine')
  assert found.about['licence'] == 'mine' and found.null == 'trained'
  assert found.about['null_rule'] == "the text ''" and found.kind == 'stable_diffusion'
  assert found.params['null_text'].shape == (77, 32) and found.params['null_text'].std() > 0.1
