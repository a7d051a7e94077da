"""CLIP's towers equal those of transformers, with random weights."""

import jax
import numpy as np
import pytest

from gdistill.convert import clip as convert
from gdistill.models import clip

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
transformers = pytest.importorskip('transformers', reason='bash launch/test.sh parity installs it')
pytestmark = pytest.mark.parity
WORDS = clip.Words(vocabulary=200, length=12, end=199)


def model(activation):
  torch.manual_seed(0)
  sizes = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    hidden_act=activation,
  )  # fmt: skip
  config = transformers.CLIPConfig(
    text_config=dict(
      vocab_size=200, max_position_embeddings=12, eos_token_id=199, bos_token_id=198,
      pad_token_id=199, **sizes,
    ),
    vision_config=dict(image_size=32, patch_size=8, **sizes), projection_dim=24,
  )  # fmt: skip
  net = transformers.CLIPModel(config).eval()
  for value in net.parameters():  # the initial parameters are so small that outputs are alike
    torch.nn.init.normal_(value, 0.0 if value.ndim > 1 else 0.5, 0.2)
  return net, {name: value.detach().numpy() for name, value in net.state_dict().items()}


def close(found, expected):
  expected = expected.detach().numpy()
  assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected - expected.mean(0))


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
def test_towers_embed_as_those_of_transformers(activation):
  net, state = model(activation)
  tower = clip.Tower(32, 3, 4, 48, activation, projection=24)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 198, (5, 12))
  for row, end in enumerate((3, 11, 5, 7, 1)):
    tokens[row, end:] = 199  # the end token, then padding, which is the same token
  text = clip.Text(tower, WORDS)
  with jax.default_matmul_precision('highest'):
    hidden, embedding = text.apply({'params': convert.params_from(state, 'text')}, tokens)
  given = torch.from_numpy(tokens)
  close(hidden, net.text_model(given).last_hidden_state)
  close(embedding, net.text_projection(net.text_model(given).pooler_output))
  pixels = rng.integers(0, 256, (5, 32, 32, 3)).astype(np.float32)
  x = clip.prepared(pixels, 32)
  with jax.default_matmul_precision('highest'):
    found = clip.Image(tower, patch=8, size=32).apply(
      {'params': convert.params_from(state, 'image')}, x
    )
  given = torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())
  close(found, net.visual_projection(net.vision_model(given).pooler_output))
  mean, std = np.array(clip.MEAN), np.array(clip.STD)
  np.testing.assert_allclose(x, (pixels / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
  ('tower', 'theirs'),
  [(clip.TEXT_B32, 'text'), (clip.IMAGE_B32, 'vision')],
)
def test_the_named_sizes_are_those_of_the_published_base_model(tower, theirs):
  config = getattr(transformers.CLIPConfig(), f'{theirs}_config')
  assert (tower.width, tower.layers, tower.heads, tower.mlp) == (
    config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
    config.intermediate_size,
  )  # fmt: skip
