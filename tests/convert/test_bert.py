"""BERT's weights are read under every published spelling; unknown arrays are reported."""

import jax
import numpy as np
import pytest
import texts

from gdistill import errors
from gdistill.convert import text


def same(a, b):
  assert a.digest == b.digest
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_arrays_are_found_with_and_without_their_prefix(bert_path, tmp_path):
  state = {f'bert.{n}': v for n, v in texts.bert_state().items()}
  state['cls.predictions.bias'] = np.zeros(3, np.float32)
  state = {
    n.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta'): v
    for n, v in state.items()
  }
  same(text.read(str(texts.bert_folder(tmp_path, state))), text.read(str(bert_path)))


def test_arrays_left_over_are_listed(tmp_path):
  state = {**texts.bert_state(), 'embeddings.more.weight': np.zeros((2, 3), np.float32)}
  with pytest.raises(errors.ConfigError, match=r'more/kernel is \(3, 2\) and should be absent'):
    text.read(str(texts.bert_folder(tmp_path, state)))
