"""Which keys belong to the identity of a run, and which must agree between its processes."""

import changed_config

from gdistill.recipe import identity
from gdistill.recipe import reading


def recipe(base=changed_config.DIGITS, **fields):
  return reading.from_config(changed_config.changed(base, **fields))


def test_where_frozen_networks_and_latents_lie_may_change_but_not_what_they_make():
  base = recipe(changed_config.SD)
  for key, value in (('autoencoder', 'a'), ('text', 'b'), ('cache', 'c'), ('batch_size', 8)):
    other = recipe(changed_config.SD, **{f'latents__{key}': value})
    assert identity.digest(other) == identity.digest(base)
  for key, value in (('template', 'the {}'), ('text_length', 20), ('shard_size', 8)):
    other = recipe(changed_config.SD, **{f'latents__{key}': value})
    assert identity.digest(other) != identity.digest(base)


def test_an_encoder_may_come_and_go_but_processes_agree_on_it():
  base, more = recipe(), recipe(encoder=True)
  assert not base.encoder and identity.digest(base) == identity.digest(more)
  assert identity.differences(reading.to_dict(base), reading.to_dict(more)) == []
  assert identity.digest_together(base) != identity.digest_together(more)


def test_the_digest_sees_what_reaches_the_parameters_and_nothing_else():
  base = recipe()
  same = recipe(train__log_every=40, train__checkpoint_every=100)
  other = recipe(teacher__lr=1e-3)
  assert identity.digest(base) == identity.digest(same) != identity.digest(other)
  assert identity.differences(reading.to_dict(base), reading.to_dict(other)) == [
    'teacher.lr: 0.002 -> 0.001'
  ]
  assert identity.differences(reading.to_dict(base), reading.to_dict(same)) == []


def test_processes_of_one_start_agree_on_all_but_how_they_read():
  base = recipe()
  told = identity.digest_together(base)
  reads = recipe(data__path='elsewhere', data__workers=3, data__threads=1)
  assert identity.digest_together(reads) == told
  for change in ({'train__log_every': 40}, {'mesh__cpu_devices': 1}, {'train__remat': 'blocks'}):
    other = recipe(**change)
    assert identity.digest(other) == identity.digest(base)
    assert identity.digest_together(other) != told


def test_keys_and_sections_that_may_change_are_real():
  keys = identity.flat(reading.to_dict(recipe()))
  for name in identity.MAY_CHANGE:
    assert any(key == name or key.startswith(f'{name}.') for key in keys), name
  assert identity.may_change('mesh.data') and not identity.may_change('meshes.data')
