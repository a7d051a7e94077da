"""Tests of edit, inpaint and transfer with the flags that a user gives, on small runs of digits."""

import json
import os
import pathlib
import types

import jax
import micro
import numpy as np
import published
import pytest
from jax import numpy as jnp
from PIL import Image

from gdistill import errors
from gdistill.cli import command
from gdistill.cli import inpaint
from gdistill.cli import picture_flags
from gdistill.cli import picture_job
from gdistill.cli import source_pictures
from gdistill.core import pixels as core_pixels
from gdistill.core import process
from gdistill.drawing import editor
from gdistill.process import interrupt
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.samplers import noise as image_noise
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import storage

pytestmark = pytest.mark.full

RNG = np.random.default_rng(5)
PICTURES = RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('apps') / 'run'
  micro.train(micro.recipe(encoder=True), folder)
  return folder


@pytest.fixture(scope='module')
def painting(tmp_path_factory):
  folder = tmp_path_factory.mktemp('apps') / 'painting'
  recipe = micro.recipe(model=dict(extra_channels=2))
  micro.train(recipe, folder)
  return folder


@pytest.fixture
def images(tmp_path):
  for i, name in enumerate(('a', 'deep/b', 'c')):
    file = tmp_path / 'in' / f'{name}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PICTURES[i]).save(file)
  return tmp_path / 'in'


def run(name, *args):
  args = [str(a) for a in args]
  own = any(a.startswith('--scale=') for a in args)  # without --scale, the sheet is enlarged
  return command.main([name, *args, *([] if own else ['--scale=1'])])


def read(file):
  return np.asarray(Image.open(file))


def half(tmp_path):
  """Writes a mask whose right half is white, and returns its path."""
  mask = np.zeros((8, 8), np.uint8)
  mask[:, 4:] = 255
  Image.fromarray(mask).save(tmp_path / 'mask.png')
  return tmp_path / 'mask.png'


def test_an_edit_is_the_rest_of_the_walk_from_the_noised_picture(workdir, images, tmp_path, capsys):
  out = tmp_path / 'out'
  given = [f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3', '--w=2']
  assert run('edit', *given, '--strength=0.5', '--seeds=4,9', f'--out={out}') == 0
  assert 'is not one of the' not in capsys.readouterr().err
  folder = folders.read_folder(workdir / '02_progressive_2')
  noise = networks.noise(folder.noise)
  v_fn = networks.as_v_fn(folder.net, folder.params, folder.settings, noise)
  logsnr = noise(jnp.full(3, 0.5))
  x = core_pixels.to_images(jnp.asarray(PICTURES)[..., None])
  for seed in (4, 9):
    eps = image_noise.start(image_noise.image_keys(jnp.full(3, seed)), (8, 8, 1))
    z = process.diffuse(x, eps, logsnr)
    v = jax.jit(v_fn)(z, logsnr, {'label': jnp.full(3, 3)}, jnp.full(3, 2.0))
    expected = np.asarray(core_pixels.from_images(process.x_from_v(z, v, logsnr)))[..., 0]
    for name, wanted in zip(('a', 'deep/b', 'c'), expected, strict=True):
      found = read(out / f'{name}_seed{seed}.png').astype(int)
      assert np.abs(found - wanted).max() <= 1  # another compiled program rounds differently
  figures = json.loads((out / 'figures.json').read_text())
  assert [(f['result'], f['seed']) for f in figures][:2] == [('a_seed4.png', 4), ('a_seed9.png', 9)]
  difference = (read(out / 'a_seed4.png').astype(float) - PICTURES[0]) / 127.5
  assert np.isclose(figures[0]['rms_to_source'], np.sqrt(np.mean(difference**2)), atol=1e-5)
  assert read(out / 'sheet.png').shape == (3 * 9 + 1, 3 * 9 + 1)  # a row: source, two results
  # A result does not depend on the other pictures of its batch.
  assert run('edit', given[0], f'--image={images}/deep/b.png', *given[2:], '--seeds=9',
             f'--out={tmp_path}/alone') == 0  # fmt: skip
  np.testing.assert_array_equal(read(tmp_path / 'alone' / 'b.png'), read(out / 'deep/b_seed9.png'))


def test_a_stopped_command_goes_on_and_draws_nothing_twice(workdir, images, tmp_path, capsys):
  given = ['edit', f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3',
           '--seeds=0,1', f'--out={tmp_path}/out']  # fmt: skip
  assert run(*given) == 0
  out = tmp_path / 'out'
  before = {f: f.read_bytes() for f in out.rglob('*.*')}
  (out / 'figures.json').unlink()
  (out / 'sheet.png').unlink()  # a kill after the last picture leaves such a folder
  ages = {f: f.stat().st_mtime_ns for f in out.rglob('*_seed*.png')}
  assert run(*given) == 0
  assert {f: f.read_bytes() for f in out.rglob('*.*')} == before
  assert {f: f.stat().st_mtime_ns for f in out.rglob('*_seed*.png')} == ages
  (out / 'c_seed1.png').unlink()
  assert run(*given) == 0
  assert {f: f.read_bytes() for f in out.rglob('*.*')} == before
  capsys.readouterr()
  assert run(*given, '--w=2') == 2
  assert 'holds results of another request' in capsys.readouterr().err
  Image.fromarray(PICTURES[0] ^ 255).save(images / 'a.png')
  assert run(*given) == 2  # the folder holds results of the former a.png
  assert 'holds results of another request' in capsys.readouterr().err
  assert run(*given[:-1], f'--out={images}/out') == 2
  assert 'so that the results would be taken for pictures to change' in capsys.readouterr().err


def test_a_signal_keeps_what_is_drawn_and_the_command_goes_on(
  workdir, images, tmp_path, capsys, monkeypatch
):
  given = ['edit', f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3',
           '--seeds=0..2', f'--out={tmp_path}/out']  # fmt: skip
  assert run(*given[:-1], f'--out={tmp_path}/whole') == 0
  batch, ages = picture_job._batch, {}
  monkeypatch.setattr(picture_job, '_batch', lambda shape, most: 2)
  monkeypatch.setattr(interrupt, 'Interrupt', lambda watch: micro.StopAfter(1))
  for count in (4, 8):  # pictures after 2 and 4 batches of two; there are 3 seeds
    assert run(*given) == 42
    found = sorted((tmp_path / 'out').rglob('*_seed*.png'))
    assert len(found) == count and not (tmp_path / 'out' / 'sheet.png').exists()
    assert all(f.stat().st_mtime_ns == ages.get(f, f.stat().st_mtime_ns) for f in found)
    ages = {f: f.stat().st_mtime_ns for f in found}
  monkeypatch.undo()
  assert picture_job._batch is batch and run(*given) == 0
  for file in (tmp_path / 'whole').rglob('*.*'):
    again = tmp_path / 'out' / file.relative_to(tmp_path / 'whole')
    assert again.read_bytes() == file.read_bytes()


def recorded(monkeypatch, name):
  """Replaces an editor by one that returns its sources; returns a list of its (rows, counts)."""
  asked = []

  def make(*args):
    def draw(rows, counts):
      asked.append((rows, counts))
      return rows['pixels']

    return draw

  monkeypatch.setattr(editor, name, make)
  return asked


def test_what_is_asked_for_is_what_is_drawn(workdir, images, tmp_path, monkeypatch):
  asked = recorded(monkeypatch, 'editor')
  assert run('edit', f'--folder={workdir}/00_teacher', f'--encoder={workdir}/01_guidance',
             f'--image={images}/a.png', '--invert', '--w=2', '--label=3', '--source_label=7',
             '--source_w=1', '--num_steps=8', '--encode_steps=16', '--strength=0.75', '--seeds=5',
             f'--out={tmp_path}/1') == 0  # fmt: skip
  rows, counts = asked.pop()
  assert counts == {'num_steps': 8, 'start': 6, 'encode_steps': 16, 'encode_stop': 12}
  found = {k: v.tolist() for k, v in rows.items() if k != 'pixels'}
  assert found == {
    'w': [2.0], 'labels': [3], 'from_w': [1.0], 'from_labels': [7], 'seeds': [5]
  }  # fmt: skip
  ladders = [f'--folder={workdir}/02_progressive_2', f'--encoder={workdir}/04_encoder_2']
  assert run('transfer', *ladders,
             f'--image={images}/a.png', '--guidance_scale=4', '--label=1', '--source_label=2',
             '--source_w=3', f'--out={tmp_path}/2') == 0  # fmt: skip
  rows, counts = asked.pop()
  assert counts == {'num_steps': 2, 'start': 2, 'encode_steps': 2, 'encode_stop': 2}
  assert (rows['w'], rows['labels'], rows['from_w'], rows['from_labels']) == (3.0, 1, 3.0, 2)


def test_of_two_commands_for_one_folder_the_second_is_refused(
  workdir, images, tmp_path, monkeypatch, capsys
):
  asked = [recorded(monkeypatch, name) for name in ('editor', 'painter')]
  given = [f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3']
  more = {
    'edit': [], 'inpaint': [f'--mask={half(tmp_path)}'],
    'transfer': [f'--encoder={workdir}/04_encoder_2', '--source_label=7'],
  }  # fmt: skip
  for name, flags in more.items():
    out = tmp_path / name
    with ledger.Lock(out):  # as of a command that has drawn nothing yet
      assert run(name, *given, *flags, f'--out={out}') == 2
      said = capsys.readouterr().err
      assert said.startswith(f'gdistill: --out={out} is in use by host ') and said.count('\n') == 1
      assert [p.name for p in out.iterdir()] == ['lock.json']
    (out / 'lock.json').write_text('{"token": "of a killed command", "heartbeat": 0}')
    assert run(name, *given, *flags, f'--out={out}') == 0
    assert not (out / 'lock.json').exists() and (out / 'request.json').exists()
    assert run(name, *given, *flags, f'--out={out}') == 0
    assert f'nothing to do: all 3 pictures are in {out} already' in capsys.readouterr().err
  assert [len(a) for a in asked] == [2, 1]


@pytest.mark.parametrize('name', ['edit', 'inpaint', 'transfer'])
def test_results_that_are_not_finite_are_never_written(
  workdir, images, tmp_path, monkeypatch, capsys, name
):
  before = editor._Networks.v_fn
  broken = lambda of, params: lambda *given: before(of, params)(*given) * 1e38 * 1e38
  monkeypatch.setattr(editor._Networks, 'v_fn', broken)
  given = [f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3', '--seeds=5']
  more = {
    'edit': [], 'inpaint': [f'--mask={half(tmp_path)}'],
    'transfer': [f'--encoder={workdir}/04_encoder_2', '--source_label=7'],
  }  # fmt: skip
  assert run(name, *given, *more[name], f'--out={tmp_path}/out') == 5
  said = capsys.readouterr().err.splitlines()[-1]
  assert f'3 of 3 pictures drawn from {workdir}/02_progressive_2 are not finite' in said
  assert 'with seed 5, w = 1 and 2 steps' in said and not (tmp_path / 'out').exists()


def test_what_a_grey_mask_covers_and_a_mask_that_changed(
  workdir, images, tmp_path, monkeypatch, capsys
):
  asked = recorded(monkeypatch, 'painter')
  mask = np.zeros((8, 8), np.uint8)
  mask[0], mask[1] = 127, 128
  Image.fromarray(mask).save(tmp_path / 'm.png')
  argv = ['inpaint', f'--folder={workdir}/02_progressive_2', f'--image={images}/a.png', '--label=3',
          f'--mask={tmp_path}/m.png', f'--out={tmp_path}/out']  # fmt: skip
  assert run(*argv) == 0
  painted = asked.pop()[0]['mask'][0, ..., 0]
  assert painted[1].all() and not np.delete(painted, 1, 0).any()
  Image.fromarray(mask[::-1].copy()).save(tmp_path / 'm.png')
  assert run(*argv) == 2 and '(pictures)' in capsys.readouterr().err
  one = [*argv[:1], f'--folder={workdir}/03_progressive_1', *argv[2:-1], f'--out={tmp_path}/one']
  assert run(*one) == 0
  assert 'in a single step it uses almost nothing of the known part' in capsys.readouterr().err


def test_other_parameters_are_another_request(workdir, images, tmp_path, monkeypatch, capsys):
  argv = ['edit', f'--folder={workdir}/02_progressive_2', f'--image={images}/a.png', '--label=3',
          f'--out={tmp_path}/out']  # fmt: skip
  assert run(*argv) == 0
  monkeypatch.setattr(finished_rounds, 'params_digest', lambda folder: 'trained again')
  assert run(*argv) == 2 and 'parameters: ' in capsys.readouterr().err


def test_the_request_is_there_before_the_first_result(workdir, images, tmp_path, monkeypatch):
  argv = ['edit', f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3',
          f'--out={tmp_path}/out']  # fmt: skip
  write = storage.write_bytes

  def full(path, data):
    if str(path).endswith('c.png'):
      raise errors.CheckpointError('the disk is full')
    return write(path, data)

  monkeypatch.setattr(storage, 'write_bytes', full)
  assert run(*argv) == 4
  assert {p.name for p in (tmp_path / 'out').rglob('*.*')} == {'a.png', 'request.json'}
  monkeypatch.undo()
  assert run(*argv) == 0


def test_a_sheet_has_the_first_pictures_alone(workdir, images, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(picture_job, '_MOST_ON_SHEET', 2)
  assert run('edit', f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3',
             f'--out={tmp_path}/out') == 0  # fmt: skip
  assert read(tmp_path / 'out/sheet.png').shape == (2 * 9 + 1, 2 * 9 + 1)
  assert 'shows the first 2 source pictures beside their results;' in capsys.readouterr().err


def test_a_size_is_width_first_and_a_mask_may_be_too_thin(images, tmp_path):
  settings = recipes.Model(**published.TEXT)
  frozen = types.SimpleNamespace(autoencoder=None)
  assert picture_flags.working_size('24x16', settings, frozen) == (16, 24)
  line = np.zeros((8, 8), np.uint8)
  line[1] = 255
  Image.fromarray(line).save(tmp_path / 'm.png')
  files = images / 'a.png', tmp_path / 'm.png'
  sources, masks = (source_pictures.Sources(str(file), '') for file in files)
  with pytest.raises(errors.DataError, match=r'too thin, .* reads one mask pixel in 4'):
    inpaint.Masks(sources, masks, True)(0, (8, 8, 1), 4)


def test_source_pictures_are_recognised_by_their_bytes(images, tmp_path):
  sources = source_pictures.Sources(str(images), '--image')
  before = {'files': source_pictures.stamps(sources)}
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out/request.json').write_text(json.dumps(before))
  os.utime(images / 'a.png', (1, 1))
  same = {'files': source_pictures.stamps(sources)}
  picture_job._check_out(str(tmp_path / 'out'), same)
  data = (images / 'a.png').read_bytes()
  (images / 'a.png').write_bytes(data[:-5] + b'other')  # of the same length
  os.utime(images / 'a.png', (1, 1))
  other = {'files': source_pictures.stamps(sources)}
  with pytest.raises(errors.ConfigError, match=r'another request \(pictures\)'):
    picture_job._check_out(str(tmp_path / 'out'), other)
  old = {'files': [[str(images / 'a.png'), len(data), 10**9]]}  # as earlier versions wrote it
  (tmp_path / 'out/request.json').write_text(json.dumps(old))
  with pytest.raises(
    errors.ConfigError, match='pictures, listed by an earlier version of gdistill'
  ):
    picture_job._check_out(str(tmp_path / 'out'), same)


def right_half(value, dtype=np.uint8):
  mask = np.zeros((8, 8), dtype)
  mask[:, 4:] = value
  return mask


@pytest.mark.parametrize(
  ('mask', 'said'),
  [
    (right_half(1), 'has no value above 1 of 255, and only values above 127 are painted'),
    (right_half(127), 'has no value above 127 of 255'),
    (np.full((8, 8), 90, np.uint8), 'is 90 everywhere of 255'),
    (right_half(1, np.uint16), 'has no value above 1 of 65,535, and only values above 32,767'),
    (right_half(255, np.uint16), 'has no value above 255 of 65,535'),
    (np.dstack([right_half(255), *[right_half(0)] * 2]), 'has no value above 76 of 255'),  # red
    (np.eye(8, dtype=np.uint8) * 255, r'values up to 255 of 255, .* too thin: resized to 2 x 2'),
  ],
)  # fmt: skip
def test_a_mask_that_paints_nothing_says_its_largest_value(mask, said, images, tmp_path):
  Image.fromarray(mask).save(tmp_path / 'm.png')
  files = images / 'a.png', tmp_path / 'm.png'
  sources, masks = (source_pictures.Sources(str(file), '--mask') for file in files)
  size = 2 if 'thin' in said else 8
  with pytest.raises(errors.DataError, match=said):
    inpaint.Masks(sources, masks, False)(0, (size, size, 1), 1)


def test_no_picture_is_drawn_if_a_later_one_cannot_be_used(
  workdir, images, tmp_path, monkeypatch, capsys
):
  Image.fromarray(np.zeros((1, 1), np.uint8)).save(images / 'z.png')
  monkeypatch.setattr(picture_job, '_batch', lambda shape, most: 1)
  monkeypatch.setattr(editor, 'editor', None)  # would fail if it were called
  argv = ['edit', f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3']
  assert run(*argv, f'--out={tmp_path}/out') == 3
  assert 'z.png is 1 x 1 pixels, too few for the 8 x 8' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_another_request_is_refused_with_what_differs(workdir, images, tmp_path, capsys):
  given = [f'--folder={workdir}/02_progressive_2', f'--image={images}', f'--out={tmp_path}/out']
  assert run('edit', *given, '--label=3') == 0
  before = {f: f.stat().st_mtime_ns for f in (tmp_path / 'out').rglob('*')}
  capsys.readouterr()
  assert run('edit', *given, '--label=4', '--w=2') == 2
  said = capsys.readouterr().err
  assert "holds results of another request (label: '3' -> '4'; w: None -> 2.0); name" in said
  Image.fromarray(PICTURES[1]).save(images / 'c.png')
  assert run('edit', *given, '--label=3') == 2
  assert 'of another request (pictures); name' in capsys.readouterr().err
  assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'out').rglob('*')} == before


def test_results_can_be_edited_again_and_hidden_files_are_none(workdir, images, tmp_path):
  (images / '._a.png').write_bytes(b'what a system leaves beside a.png')
  given = [f'--folder={workdir}/02_progressive_2', '--label=3']
  assert run('edit', *given, f'--image={images}', f'--out={tmp_path}/1') == 0
  assert run('edit', *given, f'--image={tmp_path}/1', f'--out={tmp_path}/2') == 0
  found = sorted(str(p.relative_to(tmp_path / '2')) for p in (tmp_path / '2').rglob('*.png'))
  assert found == ['a.png', 'c.png', 'deep/b.png', 'sheet.png']


def test_a_sheet_is_enlarged_to_be_seen(workdir, images, tmp_path):
  argv = ['edit', f'--folder={workdir}/02_progressive_2', f'--image={images}/a.png', '--label=3',
          f'--out={tmp_path}/out']  # fmt: skip
  assert command.main(argv) == 0
  assert read(tmp_path / 'out' / 'sheet.png').shape == (10 * 8, 19 * 8)


def test_results_of_files_with_one_stem_have_their_own_names(workdir, tmp_path, capsys):
  folder = tmp_path / 'in'
  folder.mkdir()
  for name in ('a.png', 'a.webp', 'sheet.png'):
    Image.fromarray(PICTURES[0]).save(folder / name, lossless=True)
  given = ['edit', f'--folder={workdir}/02_progressive_2', f'--image={folder}', '--label=3']
  assert run(*given, f'--out={tmp_path}/1') == 0
  names = ['a.png.png', 'a.webp.png', 'figures.json', 'request.json', 'sheet.png', 'sheet.png.png']
  assert sorted(p.name for p in (tmp_path / '1').iterdir()) == names
  Image.fromarray(PICTURES[0]).save(folder / 'a.png.webp', lossless=True)
  assert run(*given, f'--out={tmp_path}/2') == 3
  assert 'has 2 pictures that would share the name a.png; rename one' in capsys.readouterr().err


def test_strength_between_steps_and_of_noise_alone_is_said(workdir, images, tmp_path, capsys):
  given = [f'--folder={workdir}/02_progressive_2', f'--image={images}/a.png', '--label=0']
  assert run('edit', *given, '--strength=0.6', f'--out={tmp_path}/1') == 0
  assert (
    '--strength=0.6 is not one of the 2 steps of this network; the nearest step, 0.5, is used'
    in (capsys.readouterr().err)
  )
  assert run('edit', *given, '--strength=1', f'--out={tmp_path}/2') == 0
  assert 'nothing of the picture is left' in capsys.readouterr().err


def test_an_edit_by_inversion_meets_the_time_of_its_encoder(workdir, images, tmp_path, capsys):
  given = [
    f'--folder={workdir}/02_progressive_2', f'--image={images}/a.png', '--label=3', '--invert',
    '--source_label=7',
  ]  # fmt: skip
  assert run('edit', *given, f'--encoder={workdir}/04_encoder_2', f'--out={tmp_path}/1') == 0
  assert run('edit', *given, f'--encoder={workdir}/01_guidance', '--encode_steps=6',
             '--source_w=1', f'--out={tmp_path}/2') == 0  # fmt: skip
  assert (read(tmp_path / '1/a.png') != read(tmp_path / '2/a.png')).any()
  capsys.readouterr()
  assert run('edit', *given, f'--encoder={workdir}/05_encoder_1', f'--out={tmp_path}/3') == 2
  assert '--encode_steps=1 has no step at t = 1/2' in capsys.readouterr().err


def test_the_known_part_comes_back_bit_for_bit(workdir, painting, images, tmp_path, capsys):
  mask = half(tmp_path)
  for i, folder in enumerate((workdir, painting)):
    given = [f'--folder={folder}/02_progressive_2', f'--image={images}', f'--mask={mask}',
             '--label=3']  # fmt: skip
    assert run('inpaint', *given, f'--out={tmp_path}/exact{i}') == 0
    assert run('inpaint', *given, '--keep=drawn', f'--out={tmp_path}/drawn{i}') == 0
    for name, source in zip(('a', 'deep/b', 'c'), PICTURES, strict=True):
      exact, drawn = (read(tmp_path / f'{kind}{i}/{name}.png') for kind in ('exact', 'drawn'))
      np.testing.assert_array_equal(exact[:, :4], source[:, :4])
      np.testing.assert_array_equal(exact[:, 4:], drawn[:, 4:])
      assert (exact[:, 4:] != source[:, 4:]).any()
  # Without training to inpaint, x_hat is replaced by the known part; an inpainting network draws
  # the known part itself.
  assert np.abs(read(tmp_path / 'drawn0/a.png')[:, :4].astype(int) - PICTURES[0][:, :4]).max() <= 1
  assert (read(tmp_path / 'drawn1/a.png')[:, :4] != PICTURES[0][:, :4]).any()
  sheet = read(tmp_path / 'exact1/sheet.png')
  np.testing.assert_array_equal(sheet[1:9, 10:14], PICTURES[0][:, :4])  # the network's input
  assert (sheet[1:9, 14:18] == 128).all()


def test_what_an_inpainting_network_paints_follows_what_it_is_shown(painting, images, tmp_path):
  mask = half(tmp_path)
  other = PICTURES[0].copy()
  other[:, :4] ^= 255
  Image.fromarray(other).save(images / 'z.png')
  hidden = PICTURES[0].copy()
  hidden[:, 4:] ^= 255
  Image.fromarray(hidden).save(images / 'y.png')
  assert run('inpaint', f'--folder={painting}/03_progressive_1', f'--image={images}',
             f'--mask={mask}', '--label=3', f'--out={tmp_path}/out') == 0  # fmt: skip
  a, y, z = (read(tmp_path / f'out/{name}.png')[:, 4:] for name in 'ayz')
  np.testing.assert_array_equal(a, y)  # pixels under the mask have no effect
  assert (a != z).any()


def test_masks_go_by_name_and_are_checked(workdir, images, tmp_path, capsys):
  masks = tmp_path / 'masks'
  (masks / 'deep').mkdir(parents=True)
  for i, name in enumerate(('a', 'deep/b', 'c')):
    mask = np.zeros((8, 8), np.uint8)
    mask[i] = 255
    Image.fromarray(mask).save(masks / f'{name}.png')
  given = [f'--folder={workdir}/02_progressive_2', f'--image={images}', '--label=3']
  assert run('inpaint', *given, f'--mask={masks}', f'--out={tmp_path}/out') == 0
  for i, name in enumerate(('a', 'deep/b', 'c')):
    rows = (read(tmp_path / f'out/{name}.png') != PICTURES[i]).any(1)
    assert rows[i] and rows.sum() == 1
  (masks / 'c.png').unlink()
  assert run('inpaint', *given, f'--mask={masks}', f'--out={tmp_path}/2') == 3
  assert 'masks has no mask for the picture c of' in capsys.readouterr().err
  assert not (tmp_path / '2').exists()
  white = np.zeros((8, 8, 4), np.uint8)
  white[2, :3] = 255  # white strokes on a transparent mask
  Image.fromarray(white).save(tmp_path / 'strokes.png')
  assert run('inpaint', given[0], f'--image={images}/a.png', given[2],
             f'--mask={tmp_path}/strokes.png', f'--out={tmp_path}/strokes') == 0  # fmt: skip
  changed = read(tmp_path / 'strokes/a.png') != PICTURES[0]
  assert changed[2, :3].any() and not np.delete(changed, 2, 0).any() and not changed[2, 3:].any()
  for pixels, code, words in (
    (np.zeros((8, 8), np.uint8), 3, 'm.png is 0 everywhere of 255, and only values above 127 are'),
    (np.full((8, 8), 255, np.uint8), 0, 'm.png is 255 everywhere, and values above 127 of 255 are'),
    (np.full((8, 9), 255, np.uint8), 3, 'a mask must have the size of its picture'),
  ):
    Image.fromarray(pixels).save(tmp_path / 'm.png')
    out = tmp_path / f'out{code}{pixels.size}{pixels.max()}'
    one = [given[0], f'--image={images}/a.png', given[2]]
    assert run('inpaint', *one, f'--mask={tmp_path}/m.png', f'--out={out}') == code
    assert words in capsys.readouterr().err


def test_a_transfer_encodes_under_one_class_and_decodes_under_another(workdir, images, tmp_path):
  given = [f'--image={images}', '--source_label=7']
  ladders = [f'--folder={workdir}/02_progressive_2', f'--encoder={workdir}/05_encoder_1']
  assert run('transfer', *given, *ladders, '--label=3', f'--out={tmp_path}/1') == 0
  assert run('transfer', *given, *ladders, '--label=7', f'--out={tmp_path}/2') == 0
  assert (read(tmp_path / '1/a.png') != read(tmp_path / '2/a.png')).any()
  # A teacher inverts and draws. With one class for both, many steps give the picture back.
  both = [f'--folder={workdir}/00_teacher', '--w=0', '--num_steps=200', '--encode_steps=200']
  assert run('transfer', *given, *both, '--label=7', f'--out={tmp_path}/3') == 0
  trips = [f['rms_to_source'] for f in json.loads((tmp_path / '3/figures.json').read_text())]
  assert max(trips) < 0.1
  assert run('transfer', f'--image={images}', '--source_label=none', *both, '--label=none',
             f'--out={tmp_path}/4') == 0  # fmt: skip


def test_pictures_of_any_kind_are_brought_to_the_size_of_the_network(workdir, tmp_path, capsys):
  folder = tmp_path / 'in'
  folder.mkdir()
  big = np.kron(PICTURES[0], np.ones((4, 4), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 3  # EXIF orientation: upside down
  wide = np.pad(big, [(0, 0), (6, 6)])
  Image.fromarray(wide[::-1, ::-1]).save(folder / 'turned.png', exif=exif)
  Image.fromarray(np.dstack([big] * 3)).save(folder / 'colour.png')
  alpha = np.full_like(big, 255)
  alpha[:16] = 0
  Image.fromarray(np.dstack([big, alpha]), 'LA').save(folder / 'alpha.png')
  Image.fromarray(big.astype(np.uint16) * 257).save(folder / 'deep.png')
  mask = tmp_path / 'mask.png'
  Image.fromarray(np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((4, 4), np.uint8))).save(mask)
  given = [f'--folder={workdir}/02_progressive_2', '--label=3']
  expected = PICTURES[0].copy()
  for name in ('colour', 'deep', 'alpha'):
    one = [*given, f'--image={folder}/{name}.png', f'--mask={mask}', f'--out={tmp_path}/{name}']
    assert run('inpaint', *one) == 0
    if name == 'alpha':
      expected[:4] = 255
    known = ~np.eye(8, dtype=bool)
    np.testing.assert_array_equal(read(tmp_path / f'{name}/{name}.png')[known], expected[known])
  assert '1 source picture cropped in the centre and resized to 8 x 8' in capsys.readouterr().err
  assert run('edit', *given, f'--image={folder}/turned.png', f'--out={tmp_path}/turned') == 0
  np.testing.assert_array_equal(read(tmp_path / 'turned/sheet.png')[1:9, 1:9], PICTURES[0])
  Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / 'pixel.png')
  Image.fromarray(np.zeros((8, 1), np.uint8)).save(tmp_path / 'thin.png')
  for name in ('pixel', 'thin'):
    one = [*given, f'--image={tmp_path}/{name}.png', f'--out={tmp_path}/{name}']
    assert run('edit', *one) == 3
    assert 'pixels, too few for the 8 x 8 of the network' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('whose', 'said', 'words'),
  [
    ('02_progressive_2', {'sampler': 'stochastic'}, 'was distilled for the stochastic sampler'),
    ('04_encoder_2', {'predict': 'x'}, 'predicts x, which gives no estimate of the noise at t = 0'),
  ],
)
def test_networks_that_cannot_be_walked_both_ways_are_refused(
  workdir, images, tmp_path, capsys, monkeypatch, whose, said, words
):
  before = finished_rounds.read_card

  def changed(folder):
    return before(folder) | (said if str(folder).endswith(whose) else {})

  monkeypatch.setattr(finished_rounds, 'read_card', changed)
  given = [f'--folder={workdir}/02_progressive_2', f'--encoder={workdir}/04_encoder_2',
           f'--image={images}', '--label=3', '--source_label=7',
           f'--out={tmp_path}/out']  # fmt: skip
  for name, more in (('transfer', []), ('edit', ['--invert'])):
    assert run(name, *given, *more) == 2
    assert words in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('name', 'more', 'code', 'words'),
  [
    ('edit', ['--strength=0'], 2, '--strength=0.0 must be above 0'),
    ('edit', ['--strength=1.1'], 2, 'at most 1, where nothing of the picture is left'),
    ('edit', ['--strength=nan'], 2, '--strength=nan must be above 0'),
    ('edit', ['--label=11'], 2, 'give one of 0, 1, 2'),
    ('edit', ['--seeds=1,1'], 2, "--seeds='1,1' must be numbers from 0 to"),
    ('transfer', ['--source_label=2', '--encoder=04_encoder_2', '--seeds=0..3'], 2,
     '--seeds=0..3: a transfer adds no random noise'),
    ('edit', ['--label=cat'], 2, 'give one of 0, 1, 2'),
    ('edit', ['--label=none'], 2, 'was trained on pictures with a class only'),
    ('edit', ['--prompt=a cat'], 2, 'is not conditioned on text; give --label'),
    ('edit', ['--negative_prompt=blue'], 2, '02_progressive_2 is not conditioned on text'),
    ('edit', ['--num_steps=4'], 2, 'distilled for num_steps=2; use --num_steps=2'),
    ('edit', ['--image=nothing.png'], 3, '--image=nothing.png does not exist'),
    ('edit', ['--size=16x16'], 2, 'works only at 8x8'),
    ('edit', ['--size=16'], 2, 'must be WIDTHxHEIGHT'),
    ('edit', ['--scale=0'], 2, 'from 1 to 64'),
    ('edit', ['--w=-1'], 2, '--w=-1.0 must be a number of at least 0'),
    ('edit', ['--source_label=2'], 2, '--source_label=2 needs --invert'),
    ('edit', ['--invert', '--source_label=2'], 2, '--encoder is missing'),
    ('edit', ['--invert', '--encoder=01_guidance'], 2, '--source_label is missing'),
    ('edit', ['--folder=04_encoder_2'], 2, 'which turns pictures into noise'),
    ('transfer', ['--source_label=2'], 2, '--encoder is missing'),
    ('transfer', ['--source_label=2', '--encoder=03_progressive_1'], 2, 'cannot invert pictures'),
    (
      'transfer', ['--source_label=2', '--encoder=04_encoder_2', '--encode_steps=4'], 2,
      'was distilled for 2 steps; use --encode_steps=2',
    ),
    (
      'transfer', ['--source_label=2', '--encoder=04_encoder_2', '--source_w=inf'], 2,
      '--source_w=inf must be',
    ),
    ('inpaint', ['--mask=nothing.png'], 3, '--mask=nothing.png does not exist'),
    ('inpaint', [], 2, '--mask'),
  ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(
  workdir, images, tmp_path, capsys, name, more, code, words
):
  named = ('--folder=', '--encoder=')
  more = [f'{m.split("=")[0]}={workdir}/{m.split("=")[1]}' if m.startswith(named) else m
          for m in more]  # fmt: skip
  given = {'--folder': f'{workdir}/02_progressive_2', '--image': f'{images}/a.png', '--label': '3',
           '--out': f'{tmp_path}/out'}  # fmt: skip
  given |= dict(m.partition('=')[::2] for m in more)
  if '--prompt' in given:
    del given['--label']
  args = [f'{k}={v}' if v else k for k, v in given.items()]
  try:
    found = run(name, *args)
  except SystemExit as e:
    found = e.code
  assert found == code
  err = capsys.readouterr().err
  assert words in err and len(err.strip().splitlines()) == 1
  assert not pathlib.Path(f'{tmp_path}/out').exists()
