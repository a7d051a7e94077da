"""Tests of import, sample and export with a user's flags, on networks of random weights."""

import numpy as np
import published
import pytest
import safetensors.numpy
from PIL import Image

from gdistill.cli import command
from gdistill.convert import autoencoder as autoencoders
from gdistill.published import adm
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders

pytestmark = pytest.mark.full

COSINE = recipes.Noise('cosine')


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return published.stable_diffusion(tmp_path_factory.mktemp('published') / 'sd')


@pytest.fixture(scope='module')
def teacher(source):
  assert command.main(['import', f'--source={source}', f'--out={source}/../teacher']) == 0
  return source.parent / 'teacher'


@pytest.fixture(scope='module')
def pixels(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pixels') / 'round'
  published.finished(folder, recipes.Model(**published.PIXEL), COSINE)
  return folder


def run(capsys, *argv):
  """Returns (exit code, stderr) of a command; checks that an error is one line."""
  code = command.main(list(argv))
  said = capsys.readouterr().err
  assert code in (0, 42) or said.count('\n') == 1, said
  return code, said


def pictures(folder):
  return {p.name: np.asarray(Image.open(p)) for p in folder.glob('prompt*.png')}


def test_a_teacher_is_imported_and_drawn_from(source, teacher, tmp_path, capsys):
  folder = folders.read_folder(teacher)
  assert folder.card['imported']['kind'] == 'stable_diffusion'
  assert folder.card['imported']['source'] == 'sd'
  assert folder.card['licence'] == 'creativeml-openrail-m' and folder.card['null'] == 'trained'
  given = ['sample', f'--folder={teacher}', '--num_steps=2', '--seeds=1', '--guidance_scale=7.5']
  prompts = ['--prompt=' + 'cat ' * 300, '--prompt=a photo of the cat']
  code, said = run(capsys, *given, *prompts, f'--out={tmp_path}/plain')
  assert code == 0
  assert 'warning: prompt 0 has 300 tokens and the text encoder reads 75: 225 were dropped' in said
  assert '2 pictures' in said and '4 network calls each' in said
  code, said = run(capsys, *given, *prompts, '--negative_prompt=', f'--out={tmp_path}/empty')
  assert code == 0 and 'does nothing' not in said
  code, said = run(capsys, *given, *prompts, '--negative_prompt=of', f'--out={tmp_path}/of')
  assert code == 0
  plain, empty, of = (pictures(tmp_path / name) for name in ('plain', 'empty', 'of'))
  assert plain.keys() == {'prompt0_seed1.png', 'prompt1_seed1.png'}
  for name, picture in plain.items():
    np.testing.assert_allclose(empty[name], picture, atol=1)  # the prompt '' is the null condition
    assert np.abs(of[name].astype(int) - picture).max() > 8
  assert not np.array_equal(*plain.values())


def test_a_student_says_why_a_negative_prompt_does_nothing(tmp_path, capsys):
  folder = tmp_path / 'round'
  published.finished(folder, recipes.Model(**published.TEXT), published.SD_NOISE, 'kl', num_steps=2)
  given = ['sample', f'--folder={folder}', '--seeds=1', '--w=6.5', '--prompt=a cat']
  code, said = run(capsys, *given, '--negative_prompt=of the', f'--out={tmp_path}/a')
  assert code == 0 and 'warning: --negative_prompt does nothing: stage one distilled' in said
  assert '2 network calls each' in said
  code, said = run(capsys, *given, f'--out={tmp_path}/b')
  assert code == 0 and 'warning' not in said
  for name, picture in pictures(tmp_path / 'a').items():
    np.testing.assert_array_equal(pictures(tmp_path / 'b')[name], picture)


def test_adm_without_a_null_condition_is_drawn_from_unguided(tmp_path, capsys, monkeypatch):
  release = adm.RELEASES['adm64']._replace(fields=published.SMALL_ADM, image_size=8)
  monkeypatch.setitem(adm.RELEASES, 'adm64', release)
  state, _ = published.adm_state(8, release.order)
  safetensors.numpy.save_file(state, tmp_path / 'adm.safetensors')
  given = ['import', f'--source={tmp_path}/adm.safetensors', '--kind=adm64']
  code, said = 0, ''
  assert command.main([*given, f'--out={tmp_path}/round']) == 0
  said = capsys.readouterr().err
  assert 'this network has no null condition, so it cannot be guided' in said
  given = ['sample', f'--folder={tmp_path}/round', '--num_steps=1', '--seeds=0', '--labels=2']
  code, said = run(capsys, *given, f'--out={tmp_path}/out')
  assert code == 2 and '--w=1.0' in said and 'no null condition' in said and '--w=0' in said
  code, said = run(capsys, *given, '--w=0', f'--out={tmp_path}/out')
  assert code == 0 and (tmp_path / 'out' / 'label2_seed0.png').is_file()
  config = tmp_path / 'config.py'
  config.write_text(f'CARD = {folders.read_folder(tmp_path / "round").card!r}\n' + '''
from gdistill.cli import config_file
def get_config():
  config = config_file.load('configs/digits.py:tiny', [])
  config['model'], config['noise'] = dict(CARD['model']), dict(CARD['noise'])
  config['stages'] = ('guidance', 'progressive')
  return config
''')  # fmt: skip
  code, said = run(
    capsys, 'plan', f'--config={config}', f'--config.initial={tmp_path}/round',
    '--config.model.dropout=0.0',
  )  # fmt: skip
  assert code == 2 and 'has no null condition for guidance' in said


def test_what_cannot_be_drawn_is_said(pixels, teacher, tmp_path, tmp_path_factory, capsys):
  other = tmp_path_factory.mktemp('other') / 'decoder'
  out = f'--out={tmp_path}/out'
  full = tmp_path / 'full'
  full.mkdir()
  (full / 'a.txt').write_text('mine')
  autoencoders.write(other, published.autoencoder(channels=5))
  for folder, more, code, words in (
    (pixels, ['--prompt=a cat', out], 2, 'is not conditioned on text; give --labels'),
    (pixels, ['--decoder=tiny', out], 2, 'draws pixels, not latents'),
    (teacher, [out], 2, '--prompt is missing'),
    (pixels, ['--negative_prompt=a cat', out], 2, '--negative_prompt='),
    (teacher, ['--prompt=a', '--decoder=tiny', out], 2, 'import the teacher again with --tiny'),
    (teacher, ['--prompt=a', f'--decoder={other}', out], 2, 'reads latents of 5 channels'),
    (pixels, [f'--out={full}'], 2, 'is not empty; name a new or an empty folder'),
  ):
    assert run(capsys, 'sample', f'--folder={folder}', '--w=1', *more)[0] == code
    assert words in run(capsys, 'sample', f'--folder={folder}', '--w=1', *more)[1]
  assert [p.name for p in tmp_path.iterdir()] == ['full']


def test_what_cannot_be_imported_is_said_and_nothing_is_left(source, tmp_path, capsys):
  full, odd = tmp_path / 'full', tmp_path / 'odd'
  for folder in (full, odd):
    folder.mkdir()
    (folder / 'a.txt').write_text('mine')
  (tmp_path / 'x.ckpt').write_bytes(b'')
  before = sorted(tmp_path.rglob('*'))
  for given, code, words in (
    ([f'--source={odd}'], 3, 'odd holds no .safetensors file'),
    ([f'--source={tmp_path}/x.ckpt'], 2, 'gdistill convert checkpoint --source='),
    ([f'--source={tmp_path}/nowhere'], 3, 'does not exist'),
    ([f'--source={source}', '--kind=gan'], 2, "--kind='gan' must be one of stable_diffusion"),
    ([f'--source={source}', '--null=x'], 2, 'has a null condition of its own'),
    ([f'--source={source}', '--tiny=x'], 3, 'x holds no autoencoder'),
    ([f'--source={source}', f'--out={full}'], 2, 'is not empty; name a new or an empty folder'),
    ([f'--source={source}', '--out=gs://a/b'], 2, 'must be a local path'),
  ):
    out = [] if any(a.startswith('--out=') for a in given) else [f'--out={tmp_path}/new']
    found, said = run(capsys, 'import', *out, *given)
    assert words in said and found == code, said
  assert sorted(tmp_path.rglob('*')) == before


def test_an_export_says_what_it_wrote_or_why_not(pixels, tmp_path, capsys):
  code, said = run(capsys, 'export', f'--folder={pixels}', f'--out={tmp_path}/out')
  assert code == 0
  assert 'out: README.md, gdistill, model_index.json, scheduler, unet\n' in said
  code, said = run(capsys, 'export', f'--folder={pixels}', f'--out={tmp_path}/out')
  assert code == 2 and 'is not empty; name a new or an empty folder' in said
  published.finished(
    tmp_path / 'round', recipes.Model(**published.PIXEL), COSINE, sampler='stochastic'
  )
  code, said = run(capsys, 'export', f'--folder={tmp_path}/round', f'--out={tmp_path}/other')
  assert code == 2 and 'distilled for the stochastic sampler' in said
  code, said = run(capsys, 'export', f'--folder={tmp_path}/nowhere', f'--out={tmp_path}/other')
  assert code == 4 and 'does not exist' in said
  code, said = run(capsys, 'import', f'--source={tmp_path}/out', f'--out={tmp_path}/again')
  assert code == 0 and 'again: a progressive round that gdistill had exported' in said
  assert {p.name for p in tmp_path.iterdir()} == {'out', 'round', 'again'}


def test_a_teacher_that_was_trained_here_comes_back_from_its_export(tmp_path, capsys):
  card = dict(stage='teacher', num_steps=0, guided=True, p_uncond=0.1, sampler='any')
  settings = recipes.Model(**published.PIXEL)
  published.finished(tmp_path / 'round', settings, COSINE, takes_w=False, **card)
  assert run(capsys, 'export', f'--folder={tmp_path}/round', f'--out={tmp_path}/out')[0] == 0
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'empty')
  code, said = run(capsys, 'import', f'--source={tmp_path}/out', f'--out={tmp_path}/link')
  assert code == 0 and 'a teacher round that gdistill had exported' in said
  cards = [folders.read_folder(tmp_path / name).card for name in ('round', 'empty')]
  assert cards[0] == cards[1]
