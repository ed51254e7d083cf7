"""The networks of Diff-Plugin in plain PyTorch, with the parameter names of the released checkpoints.

Every network takes the JSON config that lies beside its weights; nothing is hard-coded to SD 1.4's widths.
"""
