"""Training of the small base, of Task-Plugins and of the Plugin-Selector (extra ``[train]``; needs PyTorch)."""
