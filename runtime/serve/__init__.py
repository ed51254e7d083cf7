"""``dp-serve``: restoration over HTTP. Needs the extra ``[serve]``."""
