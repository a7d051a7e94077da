"""Imported and exported networks draw what diffusers' pipelines draw, with random weights."""

import pathlib
import re
import sys
import types

import jax
import latent_runs
import numpy as np
import published
import pytest
import texts

from gdistill.cli import command
from gdistill.drawing import sampling
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.samplers import noise as image_noise
from gdistill.training import assemble

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs diffusers')
transformers = pytest.importorskip('transformers', reason='bash launch/test.sh parity installs it')
safetensors = pytest.importorskip('safetensors.numpy', reason='pip install safetensors')
pytestmark = pytest.mark.parity

PROMPTS = ['a photo of the cat', 'The THE of; cats!']
SEEDS = np.array([3, 11])
# Fields of the config.json of Stable Diffusion 1 and 2, with fewer levels.
SD1 = dict(
  block_out_channels=(32, 64, 64), attention_head_dim=8,
  down_block_types=('CrossAttnDownBlock2D',) * 2 + ('DownBlock2D',),
  up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 2,
)  # fmt: skip
SD2 = dict(
  block_out_channels=(32, 64), attention_head_dim=(2, 4), use_linear_projection=True,
  down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
  up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
)  # fmt: skip


@pytest.fixture(autouse=True)
def exact():
  torch.set_num_threads(1)  # more threads would be slower at these sizes
  with published.exact(), torch.no_grad():
    yield


def randomised(net):
  torch.manual_seed(0)
  for name, value in net.named_parameters():
    spread = value[0].numel() ** -0.5 if value.ndim > 1 and 'embedding.' not in name else 0.2
    torch.nn.init.normal_(value, float('norm' in name and name.endswith('weight')), spread)
  return net.eval()


def stable_diffusion(folder, predict, unet, **scheduler):
  """Writes a small Stable Diffusion with the installed diffusers and transformers."""
  texts.clip_tokenizer(folder / 'raw')
  vocabulary = len(texts.clip_vocabulary())
  of_text = transformers.CLIPTextConfig(
    vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
  )  # fmt: skip
  pipe = diffusers.StableDiffusionPipeline(
    vae=randomised(diffusers.AutoencoderKL(
      block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4,
      down_block_types=('DownEncoderBlock2D',) * 3, up_block_types=('UpDecoderBlock2D',) * 3,
    )),
    text_encoder=randomised(transformers.CLIPTextModel(of_text)),
    tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / 'raw'),
    unet=randomised(diffusers.UNet2DConditionModel(
      sample_size=8, layers_per_block=1, norm_num_groups=8, cross_attention_dim=32, **unet,
    )),
    scheduler=diffusers.DDIMScheduler(
      beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', clip_sample=False,
      steps_offset=1, prediction_type=predict, **scheduler,
    ),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
  )  # fmt: skip
  pipe.save_pretrained(folder / 'published')
  return folder / 'published'


def latents(pipe, shape, num_steps, scale, **given):
  """Returns the latents that a pipeline draws from our z_1, before decoding."""
  z = np.moveaxis(np.array(image_noise.start(image_noise.image_keys(SEEDS), shape)), -1, 1)
  pipe.set_progress_bar_config(disable=True)
  found = pipe(
    PROMPTS, latents=torch.from_numpy(z.copy()), num_inference_steps=num_steps,
    guidance_scale=scale, output_type='latent', **given,
  ).images  # fmt: skip
  return np.moveaxis(found.numpy(), 1, -1)


def drawn(sampler, w, num_steps, labels=(0, 1)):
  return np.asarray(sampler.draw_both(SEEDS, labels, np.full(2, w), num_steps)[1])


def distance(found, expected):
  assert np.isfinite(expected).all()
  assert np.linalg.norm(expected[0] - expected[1]) > 0.1 * np.linalg.norm(expected)
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def run(*argv):
  assert command.main(list(argv)) == 0


@pytest.mark.parametrize(
  ('predict', 'unet', 'zero'),
  [('epsilon', SD1, False), ('v_prediction', SD2, False), ('v_prediction', SD2, True)],
)
def test_an_imported_teacher_draws_what_stable_diffusions_pipeline_draws(
  predict, unet, zero, tmp_path
):
  source = stable_diffusion(tmp_path, predict, unet, rescale_betas_zero_snr=zero)
  run('import', f'--source={source}', f'--out={tmp_path}/round')
  folder = folders.read_folder(tmp_path / 'round')
  sampler = sampling.Sampler(folder, 'ddim', 2).with_prompts(PROMPTS)
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
  pipe.scheduler = diffusers.DDIMScheduler.from_config(
    pipe.scheduler.config, timestep_spacing='trailing', set_alpha_to_one=True, clip_sample=False
  )
  shape = networks.image_shape(folder.settings)
  for w in (0.0, 6.5):
    expected = latents(pipe, shape, 10, 1.0 + w)
    assert distance(drawn(sampler, w, 10), expected) < 1e-3


def test_a_negative_prompt_is_what_a_teacher_is_guided_away_from(tmp_path):
  source = stable_diffusion(tmp_path, 'epsilon', SD2)
  run('import', f'--source={source}', f'--out={tmp_path}/round')
  folder = folders.read_folder(tmp_path / 'round')
  sampler = sampling.Sampler(folder, 'ddim', 2, negative='of the cat').with_prompts(PROMPTS)
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
  pipe.scheduler = diffusers.DDIMScheduler.from_config(
    pipe.scheduler.config, timestep_spacing='trailing', set_alpha_to_one=True, clip_sample=False
  )
  shape, found = networks.image_shape(folder.settings), drawn(sampler, 6.5, 4)
  expected = latents(pipe, shape, 4, 7.5, negative_prompt=['of the cat'] * 2)
  assert distance(found, expected) < 1e-3
  assert distance(found, latents(pipe, shape, 4, 7.5)) > 1e-2


def test_an_exported_student_runs_in_the_stock_pipeline_and_comes_back_whole(tmp_path):
  settings = recipes.Model(**published.TEXT)
  mine = tmp_path / 'round'
  params = published.finished(mine, settings, published.SD_NOISE, 'kl')
  run('export', f'--folder={mine}', f'--out={tmp_path}/out')
  sampler = sampling.Sampler(folders.read_folder(mine), 'ddim', 2).with_prompts(PROMPTS)
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / 'out', safety_checker=None)
  found = {}
  for num_steps in (1, 2, 4, 8, 5, 10):  # the numbers of steps in two ladders
    for scale in (1.0, 3.7, 7.5):
      found[scale] = drawn(sampler, scale - 1.0, num_steps)
      expected = latents(pipe, networks.image_shape(settings), num_steps, scale)
      assert distance(found[scale], expected) < 1e-3, (num_steps, scale)
    assert distance(found[1.0], found[7.5]) > 1e-2
  pixels = pipe(PROMPTS, latents=torch.zeros(2, 4, 8, 8), num_inference_steps=1, output_type='np')
  assert pixels.images.shape == (2, 32, 32, 3)

  run('import', f'--source={tmp_path}/out', f'--out={tmp_path}/again')
  again = folders.read_folder(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, again.params, params)
  assert again.card == folders.read_folder(mine).card
  for part in ('text_encoder', 'tokenizer', 'autoencoder'):
    files = sorted(p.name for p in (mine / part).iterdir())
    assert files == sorted(p.name for p in (tmp_path / 'again' / part).iterdir())
    for name in files:
      assert (mine / part / name).read_bytes() == (tmp_path / 'again' / part / name).read_bytes()


def test_a_published_teacher_is_distilled_and_its_students_run_in_the_stock_pipeline(tmp_path):
  """Imports, trains on captioned pictures, exports and re-imports, for two ladders of steps."""
  source = stable_diffusion(tmp_path, 'epsilon', SD2)
  run('import', f'--source={source}', f'--out={tmp_path}/teacher')
  teacher = folders.read_folder(tmp_path / 'teacher')
  latent_runs.captioned(tmp_path / 'captioned.tar')
  own = {'autoencoder': f'{tmp_path}/teacher/autoencoder', 'text': f'{tmp_path}/teacher'}
  students_read, compiled = [], {}

  def distilled(name, stages, initial, start, end):
    recipe = latent_runs.recipe(
      'stable_diffusion.py:tiny', tmp_path, stages=stages, initial=str(tmp_path / initial),
      latents={**own, 'text_length': 77, 'cache': f'{tmp_path}/cache'},
      model={**teacher.card['model'], 'w_features': 8, 'w_scale': 1000.0},
      noise=teacher.card['noise'], guidance=dict(w_min=0.0, w_max=7.0, lr=2e-3, steps=6),
      progressive=dict(start_steps=start, end_steps=end, lr=1e-3, last_lr=1e-3),
      evaluation=dict(num_steps=(1, 5)),
    )  # fmt: skip
    workdir = latent_runs.trained(recipe, tmp_path / name, compiled=compiled)
    students = [r for r in assemble.plan_of(recipe) if r.num_steps]
    students_read.extend(folders.read_folder(workdir / r.name) for r in students)

  distilled('one', ('guidance', 'progressive'), 'teacher', 16, 1)
  distilled('two', ('progressive',), 'one/00_guidance', 20, 5)
  assert [f.num_steps for f in students_read] == [8, 4, 2, 1, 10, 5]
  earlier = None
  for folder in students_read:
    out = tmp_path / f'out_{folder.num_steps}'
    run('export', f'--folder={folder.path}', f'--out={out}')
    sampler = sampling.Sampler(folder, 'ddim', 2).with_prompts(PROMPTS)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    assert pipe.scheduler.config.timestep_spacing == 'trailing'
    found = {}
    for scale in (1.0, 3.7, 7.5):
      found[scale] = drawn(sampler, scale - 1.0, folder.num_steps)
      expected = latents(pipe, networks.image_shape(folder.settings), folder.num_steps, scale)
      assert distance(found[scale], expected) < 1e-5, scale
    assert distance(found[1.0], found[7.5]) > 1e-4  # w matters, 10 times the tolerance above
    assert earlier is None or distance(earlier, found[7.5]) > 1e-2  # each round draws other latents
    earlier = found[7.5]
    run('import', f'--source={out}', f'--out={out}_again')
    again = folders.read_folder(f'{out}_again')
    jax.tree.map(np.testing.assert_array_equal, again.params, folder.params)
    assert again.card == folder.card


def by_readme(folder, shape, w, num_steps, label):
  """Runs the code in the folder's README for this w and number of steps."""
  [code] = re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)
  code = re.sub(r'set_timesteps\(\d+\)', f'set_timesteps({num_steps})', code)
  code = re.sub(r'\(len\(z\),\), [\d.]+', f'(len(z),), {w}', code)
  z = np.moveaxis(np.array(image_noise.start(image_noise.image_keys(SEEDS), shape)), -1, 1)
  names = {'FOLDER': str(folder), 'label': torch.tensor(label), 'z': torch.from_numpy(z.copy())}
  exec(code, names)  # noqa: S102
  return tuple(np.moveaxis(names[n].numpy(), 1, -1) for n in ('z', 'images') if n in names)


@pytest.mark.parametrize(
  ('logsnr_min', 'changed'),
  [(-20.0, {}), (-8.0, {}), (-20.0, dict(w_scale=4.0, image_channels=1))],  # the last: digits
)
def test_an_exported_network_of_pixels_draws_the_same_images_and_comes_back_whole(
  logsnr_min, changed, tmp_path
):
  settings, mine = recipes.Model(**{**published.PIXEL, **changed}), tmp_path / 'round'
  noise = recipes.Noise('cosine', logsnr_min=logsnr_min)
  params = published.finished(mine, settings, noise)
  run('export', f'--folder={mine}', f'--out={tmp_path}/out')
  sampler = sampling.Sampler(folders.read_folder(mine), 'ddim', 2)
  for num_steps in (1, 4):
    [expected] = by_readme(tmp_path / 'out', networks.image_shape(settings), 2.5, num_steps, [2, 0])
    assert distance(drawn(sampler, 2.5, num_steps, (2, 0)), expected) < 1e-3
  run('import', f'--source={tmp_path}/out', f'--out={tmp_path}/again')
  jax.tree.map(
    np.testing.assert_array_equal, folders.read_folder(tmp_path / 'again').params, params
  )


@pytest.mark.parametrize(
  ('fields', 'noise', 'kind'),
  [
    (published.PIXEL, recipes.Noise('cosine'), ''),
    (published.CLASS, recipes.Noise('scaled_linear'), 'kl'),
  ],
)
def test_an_exported_teacher_is_guided_as_its_readme_says(fields, noise, kind, tmp_path):
  settings = recipes.Model(**{**fields, 'image_channels': 4 if kind else 3})
  card = dict(stage='teacher', num_steps=0, guided=True, p_uncond=0.1, sampler='any')
  published.finished(tmp_path / 'round', settings, noise, kind, takes_w=False, **card)
  run('export', f'--folder={tmp_path}/round', f'--out={tmp_path}/out')
  run('import', f'--source={tmp_path}/out', f'--out={tmp_path}/again')
  sampler = sampling.Sampler(folders.read_folder(tmp_path / 'again'), 'ddim', 2)
  shape = networks.image_shape(settings)
  expected, *images = by_readme(tmp_path / 'out', shape, 1.5, 5, [2, 0])
  assert distance(drawn(sampler, 1.5, 5, (2, 0)), expected) < 1e-3
  assert distance(drawn(sampler, 0.0, 5, (2, 0)), expected) > 1e-2
  assert [i.shape for i in images] == ([(2, 32, 32, 3)] if kind else [])


def test_an_exported_class_network_of_latents_draws_the_same_and_comes_back_whole(tmp_path):
  settings, mine = recipes.Model(**published.CLASS), tmp_path / 'round'
  noise = recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
  params = published.finished(mine, settings, noise, 'vq')
  run('export', f'--folder={mine}', f'--out={tmp_path}/out')
  sampler = sampling.Sampler(folders.read_folder(mine), 'ddim', 2)
  for num_steps in (1, 4):
    expected, images = by_readme(
      tmp_path / 'out', networks.image_shape(settings), 2.5, num_steps, [2, 0]
    )
    assert distance(drawn(sampler, 2.5, num_steps, (2, 0)), expected) < 1e-3
    pixels = np.asarray(sampler.draw(SEEDS, (2, 0), np.full(2, 2.5), num_steps))
    wanted = np.clip(127.5 * (images + 1.0), 0.0, 255.0)
    # A latent near two entries of the codebook may be decoded to either.
    assert np.mean(np.abs(pixels - wanted) > 1.0) < 0.05
  run('import', f'--source={tmp_path}/out', f'--out={tmp_path}/again')
  jax.tree.map(
    np.testing.assert_array_equal, folders.read_folder(tmp_path / 'again').params, params
  )


class Callback:
  """A stand-in for a class in published checkpoints that is not installed where they are read."""


def test_a_checkpoint_becomes_safetensors_without_what_is_not_a_tensor(
  tmp_path, monkeypatch, capsys
):
  module = types.ModuleType('pytorch_lightning.callbacks.model_checkpoint')
  Callback.__module__, Callback.__qualname__ = module.__name__, 'ModelCheckpoint'
  module.ModelCheckpoint = Callback
  Callback.__name__ = 'ModelCheckpoint'
  for i in (1, 2, 3):
    monkeypatch.setitem(sys.modules, '.'.join(module.__name__.split('.')[:i]), module)
  state = {
    'a.weight': torch.randn(3, 2).T, 'half': torch.randn(2).half(), 'n': torch.tensor(7),
    'brain': torch.tensor([1.5, -2.0]).bfloat16(), 'kind': 'no tensor',
  }  # fmt: skip
  source = tmp_path / 'model.ckpt'
  torch.save({'state_dict': state, 'epoch': 3, 'callbacks': {Callback: {'best': 1.0}}}, source)
  for i in (1, 2, 3):
    monkeypatch.delitem(sys.modules, '.'.join(module.__name__.split('.')[:i]))
  given = ['convert', 'checkpoint', f'--source={source}']
  run(*given, f'--out={tmp_path}/found.safetensors')
  found = safetensors.load_file(tmp_path / 'found.safetensors')
  assert found.keys() == {'a.weight', 'half', 'n', 'brain'}
  for name, array in found.items():
    np.testing.assert_array_equal(array, state[name].float().numpy())
  assert found['half'].dtype == np.float16 and found['brain'].dtype == np.float32
  assert command.main([*given, f'--out={tmp_path}/found.safetensors']) == 2
  assert 'found.safetensors exists already; give another path' in capsys.readouterr().err
  run(*given)
  assert (tmp_path / 'model.safetensors').is_file()
  torch.save({'ema': {'w': torch.ones(1)}, 'opt': {'w': torch.zeros(1)}}, tmp_path / 'ema.pt')
  run('convert', 'checkpoint', f'--source={tmp_path}/ema.pt')
  assert safetensors.load_file(tmp_path / 'ema.safetensors') == {'w': np.ones(1)}


@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoints_are_looked_into_before_they_are_converted(zipped, tmp_path, capsys):
  xl = 'conditioner.embedders.1.model.ln_final.bias'
  for name, array in (('xl', xl), ('dit', 'x_embedder.proj.weight')):
    torch.save(
      {'state_dict': {array: torch.ones(3)}, 'epoch': 3}, tmp_path / f'{name}.ckpt',
      _use_new_zipfile_serialization=zipped,
    )  # fmt: skip
    given = ['import', f'--source={tmp_path}/{name}.ckpt', f'--out={tmp_path}/out']
    assert command.main(given) == 2
  said = capsys.readouterr().err.splitlines()
  assert (
    'xl.ckpt is Stable Diffusion XL, which gdistill cannot import yet, so converting' in said[0]
  )
  assert 'gdistill convert checkpoint' in said[1] and 'of kind dit' in said[1] and len(said) == 2
  run('convert', 'checkpoint', f'--source={tmp_path}/xl.ckpt')
  said = capsys.readouterr().err
  assert (
    said.startswith('note: ') and 'is Stable Diffusion XL, which gdistill import cannot' in said
  )
  assert safetensors.load_file(tmp_path / 'xl.safetensors').keys() == {xl}
  assert not (tmp_path / 'out').exists()


def test_checkpoints_that_hold_code_or_nothing_are_refused(tmp_path, monkeypatch, capsys):
  torch.save({'state_dict': {'x': pathlib.PurePosixPath('a')}}, tmp_path / 'code.ckpt')
  torch.save({'epoch': 3}, tmp_path / 'empty.ckpt')
  given = ['convert', 'checkpoint']
  assert command.main([*given, f'--source={tmp_path}/code.ckpt']) == 3
  assert 'code.ckpt holds no readable weights' in capsys.readouterr().err
  assert command.main([*given, f'--source={tmp_path}/empty.ckpt']) == 3
  assert 'empty.ckpt holds no tensors' in capsys.readouterr().err
  assert command.main([*given, f'--source={tmp_path}/none.ckpt']) == 3
  assert 'none.ckpt does not exist' in capsys.readouterr().err
  assert command.main([*given, f'--source={tmp_path}/code.ckpt', '--out=a.bin']) == 2
  assert 'must end in .safetensors' in capsys.readouterr().err
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert command.main([*given, f'--source={tmp_path}/code.ckpt']) == 2
  assert "pip install -e '.[convert]'" in capsys.readouterr().err
  assert not list(tmp_path.glob('*.safetensors'))
