"""Released files -> clean tensors, safely.

A base is a diffusers folder of Stable Diffusion 1.x or one file in the original layout, a vision encoder a
transformers CLIP folder, and plugins the released tree ``pre-trained/<task>/{tpb.pt,scb/}`` with
``plugin_selector/PromptTunner.pt``. Only tensors are unpickled, and all faults are reported at once.
"""

from diffplugin.export.checkpoints.check import check_checkpoint
from diffplugin.export.checkpoints.checkpoint import Checkpoint
from diffplugin.export.checkpoints.layout import embedded_checkpoint, find

__all__ = ["Checkpoint", "check_checkpoint", "embedded_checkpoint", "find"]
