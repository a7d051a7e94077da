"""ADM is read with its second, unconditional network, by which alone it can be guided."""

import re

import imported
import jax
import numpy as np
import published
import pytest

from gdistill import errors
from gdistill.cli import config_file
from gdistill.published import source_files
from gdistill.published import teachers
from gdistill.recipe import reading
from gdistill.training import assemble
from gdistill.training import checks as run_checks

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def exact():
  with published.exact():
    yield


def test_adm_is_guided_by_the_unconditional_network_beside_it(tmp_path, monkeypatch):
  imported.small_adm(monkeypatch, 'adm256')
  state, params = published.adm_state(8, 'legacy')
  other, null_params = published.adm_state(8, 'legacy', seed=1)
  del other['label_emb.weight']
  source = imported.save(tmp_path / 'cond.safetensors', state, 'mit')
  null = imported.save(tmp_path / 'uncond.safetensors', other)
  folder = imported.as_round(source, tmp_path, kind='adm256', null=null)
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  null_params['label']['kernel'] = np.zeros((5, 64), np.float32)
  jax.tree.map(np.testing.assert_array_equal, folder.null_params, null_params)
  about = folder.card['imported']
  assert about['null_rule'] == 'a second, unconditional network' and about[
    'null_digest'
  ] == source_files.digest(other)
  assert about['head_order'] == 'q, k, v of each head in turn' and about['epsilon'] == 1e-5
  assert folder.card['null'] == 'network' and folder.card['p_uncond'] is None
  imported.assert_close(
    imported.drawn(folder), np.clip(imported.one_step(folder, imported.DDPM_BETAS), -1.0, 1.0)
  )


def test_adms_two_networks_are_told_apart_by_their_labels(tmp_path, monkeypatch):
  imported.small_adm(monkeypatch)
  state, _ = published.adm_state(8, 'new')
  with_labels = imported.save(tmp_path / 'cond.safetensors', state)
  without = imported.save(
    tmp_path / 'not.safetensors', {k: a for k, a in state.items() if 'label' not in k}
  )
  for source, null, begins in (
    (
      with_labels,
      with_labels,
      f'{with_labels} is a class-conditional network, because the file has label_emb',
    ),
    (without, '', f'{without} is the unconditional network, because the file has no label_emb'),
    (without, with_labels, without),
  ):
    with pytest.raises(errors.ConfigError, match=f'^{re.escape(begins)}'):
      teachers.read(source, kind='adm64', null=null)
  assert teachers.read(with_labels, kind='adm64', null=without).null == 'network'


def test_adm_alone_has_no_null_condition_and_a_stage_one_is_refused(tmp_path, monkeypatch):
  imported.small_adm(monkeypatch)
  state, params = published.adm_state(8, 'new')
  folder = imported.as_round(
    imported.save(tmp_path / 'a.safetensors', state), tmp_path, kind='adm64'
  )
  jax.tree.map(np.testing.assert_array_equal, folder.params, params)
  assert folder.card['null'] == 'none' and folder.noise.name == 'squared_cosine'
  assert folder.card['imported']['head_order'] == 'q, k, v in thirds'
  with pytest.raises(errors.ConfigError, match=r'no null condition .* \(--null\)'):
    run_checks.initial(assemble.Run(recipe_from(folder)), folder.card)
  # With one it would be taken.
  run_checks.initial(assemble.Run(recipe_from(folder)), {**folder.card, 'null': 'network'})


def recipe_from(folder):
  config = config_file.load('configs/digits.py:tiny', [])
  config.update(stages=('guidance', 'progressive'), initial=str(folder.path))
  config['model'] = {**folder.card['model'], 'dropout': 0.0, 'dtype': 'bfloat16'}
  config['noise'] = dict(folder.card['noise'])
  return reading.from_config(config)
