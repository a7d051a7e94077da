"""Exported students draw the same in diffusers' image-to-image and inpainting pipelines."""

import jax
import numpy as np
import published
import pytest
from jax import numpy as jnp

from gdistill.cli import command
from gdistill.core import masks
from gdistill.core import pixels as core_pixels
from gdistill.drawing import edit
from gdistill.drawing import editor
from gdistill.drawing import inpaint
from gdistill.drawing import sampling
from gdistill.frozen import networks as frozen_networks
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.samplers import noise as image_noise

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs diffusers')
pytest.importorskip('transformers', reason='bash launch/test.sh parity installs it')
pytestmark = pytest.mark.parity

PROMPTS = ['a photo of the cat', 'The THE of; cats!']
SEEDS = np.array([3, 11])
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
MASK = np.zeros((2, 32, 32, 1), np.float32)
MASK[0, 8:20, 4:24] = 1
MASK[1, :, 16:] = 1


@pytest.fixture(autouse=True)
def exact():
  torch.set_num_threads(1)
  with published.exact(), torch.no_grad():
    yield


def chw(a):
  return torch.from_numpy(np.moveaxis(np.array(a, np.float32), -1, 1).copy())


def hwc(a):
  return np.moveaxis(a.numpy(), 1, -1)


def distance(found, expected):
  assert np.isfinite(expected).all()
  assert np.linalg.norm(expected[0] - expected[1]) > 0.1 * np.linalg.norm(expected)
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


class Student:
  """A round with random weights, as our functions on latents and as an exported pipeline."""

  def __init__(self, tmp_path, pipeline, **fields):
    settings = recipes.Model(**{**published.TEXT, **fields})
    published.finished(tmp_path / 'round', settings, published.SD_NOISE, 'kl', num_steps=0)
    given = ['export', f'--folder={tmp_path}/round', f'--out={tmp_path}/out']
    assert command.main(given) == 0
    self.folder = folders.read_folder(tmp_path / 'round')
    self.frozen = frozen_networks.read_frozen(self.folder)
    self.params = sampling.arguments(self.folder, self.frozen)
    self.noise = networks.noise(self.folder.noise)
    self.keys = image_noise.image_keys(SEEDS)
    self.shape = networks.image_shape(settings)
    tokens = self.frozen.tokens(PROMPTS)
    text = self.frozen.text_of(self.params[1], tokens)
    self.cond = {'label': jnp.zeros(2, jnp.int32), **text}
    self.v_fn = sampling.as_v_fn(self.folder, self.frozen, self.params, None)
    self.rows = {
      'pixels': PIXELS, 'seeds': SEEDS, 'labels': np.zeros(2, np.int32), 'prompts': tokens,
    }  # fmt: skip
    self.pipe = getattr(diffusers, pipeline).from_pretrained(tmp_path / 'out', safety_checker=None)
    self.pipe.set_progress_bar_config(disable=True)

  def latents(self, images):
    return jax.jit(self.frozen.encode)(self.params[1], images)

  @property
  def eps(self):
    return image_noise.start(self.keys, self.shape)


def test_edits_are_those_of_the_image_to_image_pipeline(tmp_path, monkeypatch):
  s = Student(tmp_path, 'StableDiffusionImg2ImgPipeline')
  x = s.latents(core_pixels.to_images(jnp.asarray(PIXELS)))
  module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
  monkeypatch.setattr(module, 'randn_tensor', lambda shape, **more: chw(s.eps))

  @jax.jit
  def ours(w, num_steps, start):
    return edit.edit(s.v_fn, x, s.cond, w, num_steps, start, s.noise, s.keys)

  found = {}
  for num_steps, strength in ((4, 0.5), (4, 0.75), (2, 0.5), (10, 0.3), (4, 1.0)):
    start, whole = edit.on_grid(strength, num_steps)
    assert whole
    for scale in (1.0, 7.5):
      mine = np.asarray(ours(jnp.full(2, scale - 1.0), num_steps, start))
      given = dict(num_inference_steps=num_steps, strength=strength, guidance_scale=scale)
      theirs = s.pipe(PROMPTS, image=chw(x), output_type='latent', **given).images
      assert distance(mine, hwc(theirs)) < 1e-3, (num_steps, strength, scale)
      found[num_steps, strength, scale] = mine
  assert distance(found[4, 0.5, 1.0], found[4, 0.5, 7.5]) > 1e-2
  assert distance(found[4, 0.5, 1.0], found[4, 0.75, 1.0]) > 1e-2
  # The editor of `gdistill edit`, which goes from pixels to pixels, draws the same pictures.
  edited = editor.editor(s.folder, s.frozen, 2)
  drawn = edited({**s.rows, 'w': np.full(2, 6.5, np.float32)}, {'num_steps': 4, 'start': 2})
  images = s.pipe(
    PROMPTS, image=chw(x), output_type='np', num_inference_steps=4, strength=0.5, guidance_scale=7.5
  ).images
  assert np.abs(drawn - 255 * images).max() < 1.0


def test_inpainting_students_are_those_of_the_inpainting_pipeline(tmp_path):
  s = Student(tmp_path, 'StableDiffusionInpaintPipeline', extra_channels=5)
  images = core_pixels.to_images(jnp.asarray(PIXELS))
  masked = s.latents(images * (1 - MASK))
  extra = masks.condition(masks.smaller(jnp.asarray(MASK), 4), masked)

  @jax.jit
  def ours(w, num_steps):
    cond = {**s.cond, 'extra': extra}
    return inpaint.inpaint(s.v_fn, masked, cond, w, num_steps, s.noise, s.keys)

  def theirs(num_steps, scale, output):
    return s.pipe(
      PROMPTS, image=chw(images), mask_image=chw(MASK), masked_image_latents=chw(masked),
      latents=chw(s.eps), strength=1.0, num_inference_steps=num_steps, guidance_scale=scale,
      height=32, width=32, output_type=output,
    ).images  # fmt: skip

  found = {}
  for num_steps in (1, 2, 4):
    for scale in (1.0, 7.5):
      found[scale] = np.asarray(ours(jnp.full(2, scale - 1.0), num_steps))
      assert distance(found[scale], hwc(theirs(num_steps, scale, 'latent'))) < 1e-3
  assert distance(found[1.0], found[7.5]) > 1e-2
  painter = editor.painter(s.folder, s.frozen, 2, exact=False)
  rows = {**s.rows, 'mask': MASK, 'w': np.full(2, 6.5, np.float32)}
  drawn = painter(rows, {'num_steps': 4})
  assert np.abs(drawn - 255 * theirs(4, 7.5, 'np')).max() < 1.0
  exact = editor.painter(s.folder, s.frozen, 2, exact=True)(rows, {'num_steps': 4})
  known = np.broadcast_to(MASK == 0, exact.shape)
  np.testing.assert_array_equal(exact[known], PIXELS[known])
  np.testing.assert_array_equal(exact[~known], drawn[~known])
