"""``python -m diffplugin``: what there is."""

from diffplugin import __version__
from diffplugin.command import COMMANDS

print(f"diffplugin {__version__}: restore photographs on request. Commands:")
for command in COMMANDS:
    extra = f" (pip install 'diffplugin[{command.extra}]')" if command.extra else ""
    print(f"  {command.name:<10} {command.summary}{extra}")
print('Try: dp-infer photo.jpg "brighten this dark photo"; each command has --help.')
