"""A feature network with known features: the mean brightness of each quarter of a picture."""

import numpy as np
from jax import numpy as jnp

from gdistill.evaluation.features import extractors


def extractor(name='stand_in', spatial='', num_classes=3, **more):
  """Returns an extractor for pictures of any channels; its logits are three of its features."""

  def apply(params, pixels):
    x = pixels.astype(jnp.float32).mean(-1) / 255.0
    height, width = x.shape[1] // 2, x.shape[2] // 2
    quarters = [x[:, i : i + height, j : j + width].mean((1, 2))
                for i in (0, height) for j in (0, width)]  # fmt: skip
    features = jnp.stack(quarters, 1) * params['scale']
    return {'f': features, 'l': 5.0 * features[:, :3], 's': features[:, :2] + 1.0}

  about = dict(
    name=name, distance='FD-stand-in', apply=apply, params={'scale': np.float32(2.0)},
    digest='0123456789abcdef', protocol={'resize': 'none', 'normalisation': 'x / 255'},
    features='f', size=4, logits='l', spatial=spatial, channels=None, num_classes=num_classes,
  )  # fmt: skip
  return extractors.Extractor(**{**about, **more})


def pictures(count, size=8, seed=0, channels=3):
  """Returns noisy pictures of different brightness, uint8 [count, size, size, channels]."""
  rng = np.random.default_rng(seed)
  level = rng.uniform(60, 190, (count, 1, 1, 1))
  noise = rng.normal(0, 40, (count, size, size, channels))
  return np.clip(level + noise, 0, 255).astype(np.uint8)
