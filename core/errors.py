"""Every exception that diffplugin raises on purpose.

    DiffPluginError
    ├── CheckpointError        a checkpoint file or folder is missing, unsafe or not what its config says
    ├── BundleError            a bundle cannot be read or written
    │   ├── BundleTooNew       its format is newer than this version reads
    │   ├── BundleDamaged      a file is missing or its hash differs
    │   └── ForeignEngine      an engine was built for another device, version or graph
    ├── EngineError            an engine cannot be built, loaded or run
    │   ├── EngineUnavailable  its package or its hardware is missing
    │   ├── EngineNotLoaded    its library cannot load a graph
    │   ├── DeviceMemoryFull   the device has too little free memory
    │   ├── ShapeMismatch      tensors do not fit the graph's specification
    │   └── NotFinite          an engine produced a NaN, an infinity or a constant picture
    ├── MissingDependency      an optional package is needed; the message names the extra
    ├── ParityError            an exported graph leaves its error budget
    ├── ImageError             a file is not a usable picture, or cannot be written
    │   ├── DamagedImage       it is cut off or broken
    │   └── UnsupportedImage   its kind is not supported
    ├── RequestError           the user asked for something that does not exist
    └── Cancelled              the caller stopped the run

Each message is one line: the thing, the value received, the value expected, the remedy.
"""


class DiffPluginError(Exception):
    """Base class: catch this to catch everything that diffplugin raises on purpose."""


class CheckpointError(DiffPluginError):
    """A checkpoint file or folder is missing, unsafe or not what its config says."""


class BundleError(DiffPluginError):
    """A bundle cannot be read or written."""


class BundleTooNew(BundleError):
    """The bundle's format is newer than this version reads."""


class BundleDamaged(BundleError):
    """A file of the bundle is missing or its hash differs."""


class ForeignEngine(BundleError):
    """An engine was built for another device, library version or graph."""


class EngineError(DiffPluginError):
    """An engine cannot be built, loaded or run."""


class EngineUnavailable(EngineError):
    """The engine's package or hardware is missing."""


class EngineNotLoaded(EngineError):
    """The engine's library cannot load a graph."""


class DeviceMemoryFull(EngineError):
    """The device has too little free memory."""


class ShapeMismatch(EngineError):
    """Tensors do not fit the graph's specification."""


class NotFinite(EngineError):
    """An engine produced a NaN, an infinity or a constant picture."""


class MissingDependency(DiffPluginError):
    """An optional package is needed; the message names the extra that installs it."""


class ParityError(DiffPluginError):
    """An exported graph leaves its error budget."""


class ImageError(DiffPluginError):
    """A file is not a usable picture, or cannot be written."""


class DamagedImage(ImageError):
    """A picture of a supported kind is truncated or broken."""


class UnsupportedImage(ImageError):
    """The file's kind is not supported; the message names the kind and the remedy."""


class RequestError(DiffPluginError):
    """The user asked for something that does not exist."""


class Cancelled(DiffPluginError):
    """The caller stopped the run."""
