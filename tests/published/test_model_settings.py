"""Published networks are the same networks when they are built from a recipe's section."""

import published
import pytest

from gdistill import errors
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.models import latent_unet
from gdistill.published import model_settings
from gdistill.rounds import network as networks

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
  ('fields', 'context', 'heads', 'head_dim'),
  [
    (latent_unet.SD1, 'text', 8, None), (latent_unet.SD2, 'text', None, 64),
    (latent_unet.CIN256, 'class', 1, None),
  ],
)  # fmt: skip
def test_published_networks_are_the_same_by_the_recipes_section(fields, context, heads, head_dim):
  net = latent_unet.LatentUNet(**fields)
  read = unet2d.settings_from(unet2d.config_from(net, 64), fields.get('num_classes', 0))
  settings = model_settings.of_latent_unet(read, 64, 'eps')
  assert (settings.context, settings.heads, settings.head_dim) == (context, heads, head_dim)
  again = networks.build(settings, False, noise_settings=published.SD_NOISE)
  for name in ('channels', 'heads', 'attention', 'linear_projection', 'context_dim', 'groups'):
    assert getattr(again, name) == getattr(net, name), name
  assert again.emb_channels == 4 * net.channels[0] and again.epsilon == 1e-5


def test_widths_and_heads_without_a_place_are_refused():
  fields = unet2d.settings_from(unet2d.config_from(latent_unet.LatentUNet(**latent_unet.SD1), 64))
  with pytest.raises(errors.ConfigError, match='must all be multiples of the first, 32'):
    model_settings.of_latent_unet({**fields, 'channels': (32, 48, 64, 64)}, 64, 'eps')
  with pytest.raises(errors.ConfigError, match='must give all levels the same number of heads'):
    model_settings.of_latent_unet({**fields, 'heads': (1, 8, 8, 8)}, 64, 'eps')
