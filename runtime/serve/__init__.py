"""``dp-serve``: restoration over HTTP, for a team and a fleet. Needs the extra ``[serve]``."""
