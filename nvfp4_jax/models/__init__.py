"""Hybrid Mamba-2 / attention / MLP language models in Flax NNX."""

from nvfp4_jax.models.apply import Remat as Remat
from nvfp4_jax.models.apply import apply_blocks as apply_blocks
from nvfp4_jax.models.config import HybridConfig as HybridConfig
from nvfp4_jax.models.hybrid import Hybrid as Hybrid
from nvfp4_jax.models.hybrid import count_parameters as count_parameters
from nvfp4_jax.models.pieces import cutting as cutting
from nvfp4_jax.models.placement import place as place
from nvfp4_jax.models.placement import placing as placing
from nvfp4_jax.models.presets import PRESETS as PRESETS
from nvfp4_jax.models.presets import preset as preset
from nvfp4_jax.models.pretrained import from_pretrained as from_pretrained
from nvfp4_jax.models.pretrained import save_pretrained as save_pretrained
from nvfp4_jax.models.repeats import Repeat as Repeat
from nvfp4_jax.models.repeats import find_repeats as find_repeats
from nvfp4_jax.models.target import plain_operations as plain_operations
