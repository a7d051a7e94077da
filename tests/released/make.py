"""The program that wrote the files in format*/, in the version of each format; not run again.

The numbers of a leaf follow a formula, so that a test can check them without a second file: number
i of a leaf is (i mod 251 - 125) / 2^(1 + crc32(name) mod 8), which every float type holds exactly.
"""

import pathlib
import sys
import zlib

import jax
import numpy as np

from gdistill.cli import config_file
from gdistill.published import exporting
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.training import step as train_step
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import state as states
from gdistill.workdir import step_checkpoints


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the numbers of the leaf with this name."""
  places = np.arange(int(np.prod(shape)), dtype=np.int64)
  return ((places % 251 - 125) / 2.0 ** (1 + zlib.crc32(name.encode()) % 8)).reshape(shape)


def filled(tree):
  """Returns the tree with the numbers of each leaf in place of the leaf, in the leaf's dtype."""
  leaves, treedef = jax.tree.flatten(tree)
  made = [
    np.asarray(numbers(name, leaf.shape)).astype(leaf.dtype)
    for name, leaf in zip(states.names(tree), leaves, strict=True)
  ]
  return treedef.unflatten(made)


def recipe() -> recipes.Recipe:
  """Returns the digits recipe, small enough for a repository, with settings that diffusers has."""
  config = config_file.load('configs/digits.py:tiny', [])
  config['model'].update(
    channels=4, multipliers=(1,), emb_channels=16, w_features=4, groups=2, w_scale=1000.0
  )
  return reading.from_config(config)


def state():
  """Returns the training state of a round, as a step holds it."""
  made = recipe()
  net = networks.build(made.model, takes_w=True, noise_settings=made.noise)
  params = networks.initial_params(net, made.model, jax.random.key(0))
  return filled(states.create(params, train_step.optimizer(made.guidance), True))


def card():
  """Returns the card of a finished round with one sampling step."""
  made = recipe()
  plain = reading.to_dict(made)
  return {
    'stage': 'progressive', 'num_steps': 1, 'sampler': 'deterministic', 'takes_w': True,
    'guided': False, 'p_uncond': 0.0, 'null_label': -1, 'w_min': 0.0, 'w_max': 4.0,
    'clip_x_hat': True, 'predict': 'v', 'model': plain['model'], 'noise': plain['noise'],
    'class_names': [str(i) for i in range(10)], 'latents': None, 'teacher': '00_teacher',
    'licence': None, 'config': plain,
  }  # fmt: skip


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  step_checkpoints.save_step(folder / 'steps', 7, state())
  finished_rounds.finish(folder / 'round', state().params, card())
  exporting.run(folders.read_folder(folder / 'round'), folder / 'export')


if __name__ == '__main__':
  main()
