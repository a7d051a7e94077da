"""CLIP's text weights are read with and without a prefix; unknown arrays are reported."""

import jax
import numpy as np
import pytest
import texts

from gdistill import errors
from gdistill.convert import text


def same(a, b):
  assert a.digest == b.digest
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_arrays_are_found_with_and_without_their_prefix(clip_path, tmp_path):
  state = {n.removeprefix('text_model.'): v for n, v in texts.clip_state().items()}
  state['text_projection.weight'] = np.zeros((8, texts.WIDTH), np.float32)
  same(text.read(str(texts.clip_folder(tmp_path, state))), text.read(str(clip_path)))


def test_arrays_left_over_are_listed(tmp_path):
  state = {**texts.clip_state(), 'visual.proj': np.zeros((2, 3), np.float32)}
  with pytest.raises(errors.ConfigError, match=r'visual.proj is \(2, 3\) and should be absent'):
    text.read(str(texts.clip_folder(tmp_path, state)))
