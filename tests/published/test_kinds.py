"""A source's kind is told by names, and a network that cannot be imported is called by its name."""

import json
import pathlib
import pickle
import re
import zipfile

import imported
import numpy as np
import pytest
import safetensors.numpy

from gdistill import errors
from gdistill.convert import adm
from gdistill.published import kinds


@pytest.mark.parametrize(('fields', 'size', 'kind'),
                         [(adm.ADM_64, 64, 'adm64'), (adm.ADM_256, 256, 'adm256')])  # fmt: skip
def test_adm_is_told_by_its_names(fields, size, kind, tmp_path):
  entries = len(fields['multipliers']) * (fields['num_blocks'] + 1)  # and one that ends no level
  names = [f'input_blocks.{i}.0.in_layers.0.weight' for i in range(1, entries)]
  assert entries == {64: 16, 256: 18}[size]
  source = imported.save(tmp_path / 'adm.safetensors', {n: np.zeros(1, np.float32) for n in names})
  assert kinds.kind_of(pathlib.Path(source)) == kind


SD = {'unet', 'vae', 'text_encoder', 'tokenizer', 'scheduler'}


def folder(path, name='', parts=SD, configs=()):
  """Makes a folder of diffusers with empty subfolders, of the class `name`."""
  for part in parts:
    (path / part).mkdir(parents=True)
  if name:
    (path / 'model_index.json').write_text(json.dumps({'_class_name': name}))
  for part, config in dict(configs).items():
    (path / part).mkdir(parents=True, exist_ok=True)
    (path / part / 'config.json').write_text(json.dumps(config))
  return path


@pytest.mark.parametrize(
  ('name', 'what'),
  [
    ('StableDiffusionXLPipeline', 'Stable Diffusion XL'),
    ('StableDiffusionXLInpaintPipeline', 'Stable Diffusion XL'),
    ('StableDiffusionXLInstructPix2PixPipeline', 'InstructPix2Pix with Stable Diffusion XL'),
    ('StableDiffusion3Pipeline', 'Stable Diffusion 3'),
    ('FluxPipeline', 'Flux'),
    ('PixArtSigmaPipeline', 'PixArt'),
    ('KandinskyV22Pipeline', 'Kandinsky'),
    ('StableDiffusionInstructPix2PixPipeline', 'InstructPix2Pix, which edits a picture'),
    ('StableDiffusionDepth2ImgPipeline', 'Stable Diffusion 2 with a depth map'),
    ('StableDiffusionUpscalePipeline', 'an upscaler'),
    ('StableDiffusionLatentUpscalePipeline', 'an upscaler'),
    ('DDPMPipeline', 'DDPM, an unconditional network on pixels'),
    ('LatentConsistencyModelPipeline', 'LCM, which is a student and no teacher'),
    ('AudioLDM2Pipeline', 'audio'),
    ('TextToVideoSDPipeline', 'video'),
    ('StableVideoDiffusionPipeline', 'video'),
  ],
)
@pytest.mark.parametrize('given', ['', 'stable_diffusion'])
def test_what_cannot_be_imported_is_called_by_its_pipelines_name(name, what, given, tmp_path):
  source = folder(tmp_path / 'a', name)
  line = f'--source={source} is a {name} ({what}), which gdistill cannot import yet; supported'
  with pytest.raises(errors.ConfigError, match=f'^{re.escape(line)}'):
    kinds.kind_of(source, given)


def test_the_pipelines_class_tells_the_kind(tmp_path):
  assert kinds.kind_of(folder(tmp_path / 'a', 'StableDiffusionPipeline')) == 'stable_diffusion'
  assert kinds.kind_of(folder(tmp_path / 'b', '')) == 'stable_diffusion'
  dit = folder(tmp_path / 'c', 'DiTPipeline', ('transformer', 'vae', 'scheduler'))
  assert kinds.kind_of(dit) == 'dit' and kinds.kind_of(dit, 'sit') == 'sit'
  assert kinds.kind_of(folder(tmp_path / 'd', '', ('transformer',))) == 'dit'
  both = folder(tmp_path / 'e', 'DiffusionPipeline', ('unet', 'class_embedder'))
  assert kinds.kind_of(both) == 'cin256'
  with pytest.raises(errors.ConfigError, match=r'^--kind=dit: \S+ states StableDiffusionPipeline'):
    kinds.kind_of(tmp_path / 'a', 'dit')
  with pytest.raises(
    errors.ConfigError, match=r"^--kind='ddpm' must be one of stable_diffusion, c"
  ):
    kinds.kind_of(tmp_path / 'a', 'ddpm')
  odd = folder(tmp_path / 'f', 7)
  with pytest.raises(errors.DataError, match=r'model_index\.json: _class_name=7 must be the class'):
    kinds.kind_of(odd)


@pytest.mark.parametrize('given', ['', 'stable_diffusion'])
@pytest.mark.parametrize(
  'name',
  ['StableDiffusionPipelineSafe', 'StableDiffusionKDiffusionPipeline',
   'StableDiffusionDiffEditPipeline', ['mine', 'MyPipeline']],
)  # fmt: skip
def test_folders_tell_the_kind_of_a_pipeline_of_unknown_class(name, given, tmp_path, capsys):
  source = folder(tmp_path / 'a', name)
  assert kinds.kind_of(source, given) == 'stable_diffusion'
  said = capsys.readouterr().err
  name = name[-1] if isinstance(name, list) else name
  assert (
    f'{name} in model_index.json is a class that gdistill does not know; the network is' in said
  )
  assert said.count('\n') == 1


def test_an_unknown_pipeline_whose_parts_tell_nothing_is_refused_by_its_name(tmp_path):
  source = folder(tmp_path / 'a', 'MyPipeline', ('vae', 'prior'))
  with pytest.raises(errors.ConfigError, match='is a MyPipeline, which gdistill cannot import yet'):
    kinds.kind_of(source)
  other = {'unet': dict(_class_name='UNet2DConditionModel', addition_embed_type='text_time')}
  source = folder(tmp_path / 'b', 'MyPipeline', SD - {'unet'}, other)
  with pytest.raises(errors.ConfigError, match=r'config\.json is Stable Diffusion XL, which'):
    kinds.kind_of(source, 'stable_diffusion')


@pytest.mark.parametrize('named', ['StableDiffusionPipeline', ''])
@pytest.mark.parametrize('part', sorted(SD - {'unet'}))
def test_a_missing_part_of_stable_diffusion_is_called_that(named, part, tmp_path):
  source = folder(tmp_path / 'a', named, SD - {part})
  if not named and part == 'text_encoder':
    state = {'conv_in.weight': np.zeros(1, np.float32)}
    imported.save(source / 'unet' / 'diffusion_pytorch_model.safetensors', state)
  with pytest.raises(
    errors.DataError, match=f'^--source={source} has no {part}/, .* download {part}'
  ):
    kinds.kind_of(source)
  instead = {
    'vae': dict(autoencoder='x'),
    'text_encoder': dict(text='x'),
    'tokenizer': dict(text='x'),
  }
  if part in instead:
    assert kinds.kind_of(source, **instead[part]) == 'stable_diffusion'


@pytest.mark.parametrize(
  ('part', 'config', 'what'),
  [
    ('unet', dict(addition_embed_type='text_time'), 'Stable Diffusion XL'),
    ('unet', dict(addition_embed_type='text_image'), 'Kandinsky'),
    ('unet', dict(in_channels=8, out_channels=4), 'InstructPix2Pix, which edits a picture'),
    ('unet', dict(in_channels=5), 'Stable Diffusion 2 with a depth map'),
    ('unet', dict(in_channels=7), 'an upscaler'),
    ('unet', dict(_class_name='UNet3DConditionModel'), 'video'),
    ('unet', dict(_class_name='UNet2DModel'), 'a U-Net without text: DDPM'),
    ('transformer', dict(_class_name='SD3Transformer2DModel'), 'Stable Diffusion 3'),
    ('transformer', dict(_class_name='FluxTransformer2DModel'), 'Flux'),
    ('transformer', dict(_class_name='MyTransformer'), 'MyTransformer'),
    ('', dict(_class_name='UNet2DModel'), 'a U-Net without text: DDPM'),
  ],
)
def test_without_a_pipelines_name_the_networks_config_tells(part, config, what, tmp_path):
  config = {'_class_name': 'UNet2DConditionModel', **config}
  source = folder(tmp_path / 'a', '', SD - {'unet'}, {part: config})
  line = f'--source={source}: {f"{part}/" if part else ""}config.json is {what}, which gdistill ca'
  with pytest.raises(errors.ConfigError, match=f'^{re.escape(line)}'):
    kinds.kind_of(source)


ADM_128 = [f'input_blocks.{i}.0.in_layers.0.weight' for i in range(15)]
ADM_512 = [f'input_blocks.{i}.0.in_layers.0.weight' for i in range(21)]
UNET = 'model.diffusion_model.input_blocks.0.0.weight'
FAMILIES = [
  (['conditioner.embedders.0.transformer.text_model.final_layer_norm.bias', UNET],
   'Stable Diffusion XL'),
  (['model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight'], 'Stable Diffusion 3'),
  (['double_blocks.0.img_attn.norm.key_norm.scale'], 'Flux'),
  (['x_embedder.proj.weight', 'y_embedder.y_proj.fc1.weight', 't_block.1.bias'], 'PixArt'),
  (['down_blocks.0.resnets.0.time_emb_proj.weight', 'mid_block.resnets.0.conv1.bias'], 'DDPM'),
  (['unet.lora_down.weight'], 'a LoRA'),
  (ADM_128, 'ADM for 128 pixels'),
  (ADM_512, 'ADM for 512 pixels'),
]  # fmt: skip
WHOLE = [
  (['cond_stage_model.transformer.text_model.final_layer_norm.bias', UNET], 'Stable Diffusion 1'),
  (['cond_stage_model.model.transformer.resblocks.0.ln_1.bias', UNET], 'Stable Diffusion 2'),
]


def checkpoint(file, names):
  """Writes a file as torch.save does, whose arrays nobody reads."""
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({'state_dict': dict.fromkeys(names)}, 2))
  return file


@pytest.mark.parametrize(('names', 'what'), FAMILIES)
def test_single_files_of_other_networks_are_called_by_name(names, what, tmp_path):
  file = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file({name: np.zeros(1, np.float32) for name in names}, file)
  for given in ('', 'dit'):
    with pytest.raises(
      errors.ConfigError, match=rf'^--source={file} is {what}.* cannot import yet; '
    ):
      kinds.kind_of(file, given)
  ckpt = checkpoint(tmp_path / 'a.ckpt', names)
  line = rf'^--source={ckpt} is {what}.* cannot import yet, so converting .* would not help; suppor'
  for given in ('', 'dit'):
    with pytest.raises(errors.ConfigError, match=line):
      kinds.kind_of(ckpt, given)


@pytest.mark.parametrize(('names', 'what'), WHOLE)
def test_single_files_of_stable_diffusion_become_a_folder_first(names, what, tmp_path):
  ckpt = checkpoint(tmp_path / 'a.ckpt', names)
  line = (
    rf"is {what} in one file, .* would not help; make .*_single_file\('\S+/a\.ckpt'\)\.save_pre"
  )
  with pytest.raises(errors.ConfigError, match=line):
    kinds.kind_of(ckpt)
  file = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file({name: np.zeros(1, np.float32) for name in names}, file)
  with pytest.raises(errors.ConfigError, match=rf'is {what} in one file, and gdistill imports it'):
    kinds.kind_of(tmp_path)


def test_checkpoints_of_networks_that_can_be_imported_are_to_be_converted(tmp_path):
  for name, kind in (('x_embedder.proj.weight', 'dit'), (UNET, 'cin256')):
    file = checkpoint(tmp_path / f'{kind}.pt', [name])
    line = rf'of kind {kind}, but {file} is one of .* gdistill convert checkpoint --source=\S+'
    with pytest.raises(errors.ConfigError, match=line):
      kinds.kind_of(file)


def test_weights_of_other_libraries_are_not_to_be_converted(tmp_path):
  (tmp_path / 'a.msgpack').write_bytes(b'x')
  with pytest.raises(errors.ConfigError, match=r'a\.msgpack is a file of Flax, .*download') as e:
    kinds.kind_of(tmp_path / 'a.msgpack')
  assert 'convert' not in str(e.value)


def test_a_part_of_a_pipeline_is_said_to_be_a_part(tmp_path):
  names = [
    'down_blocks.0.resnets.0.time_emb_proj.weight',
    'mid_block.attentions.0.attn2.to_q.weight',
  ]
  file = tmp_path / 'diffusion_pytorch_model.safetensors'
  safetensors.numpy.save_file({name: np.zeros(1, np.float32) for name in names}, file)
  with pytest.raises(
    errors.ConfigError, match=r'is only the U-Net of a Stable Diffusion; give the f'
  ):
    kinds.kind_of(tmp_path)
