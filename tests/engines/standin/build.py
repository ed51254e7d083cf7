"""Stand-in CUDA libraries for ONNX Runtime's CUDA provider: sources made from what the provider imports, and compiled.

``cudart.c`` is written by hand. Of cuBLAS, cuRAND, cuDNN and the driver every function that the provider asks for
succeeds and does nothing; those that compute leave a line in the log.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
_HEAD = "#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\nextern void standin_log(const char*, ...);\n"
# A handle or descriptor behind the first argument.
_MADE = "int {0}(void** made) {{ *made = calloc(1, 4096); return 0; }}\n"
_NOTHING = "int {0}() {{ return 0; }}\n"
_LOGGED = 'int {0}() {{ standin_log("lib {0}"); return 0; }}\n'
_COMPUTES = re.compile(
    r"[Gg]emm|scal_|LtMatmul$|MatrixTransform$|Forward(Inference)?$|Execute$|ReduceTensor$|AddTensor$"
)
_SPECIAL = {
    "cublasCreate_v2": 'int {0}(void** made) {{ *made = calloc(1, 64); return getenv("STANDIN_NO_CUBLAS") != 0; }}\n',
    "cublasGetMathMode": "int {0}(void* handle, int* mode) {{ *mode = 0; return 0; }}\n",
    # CUBLAS_TF32_TENSOR_OP_MATH: products of float32 with ten bits of mantissa
    "cublasSetMathMode": 'int {0}(void* handle, int mode) {{ if (mode == 3) standin_log("TF32"); return 0; }}\n',
    "cublasGetStatusName": 'const char* {0}(int status) {{ return "stand-in"; }}\n',
    "cublasGetStatusString": 'const char* {0}(int status) {{ return "stand-in"; }}\n',
    "cublasLtMatmulAlgoGetHeuristic": (
        "int {0}(void* a, void* b, void* c, void* d, void* e, void* f, void* g, int count, void* results, int* found) "
        "{{ memset(results, 0, 64); *found = 1; return 0; }}\n"
    ),
    "cudnnGetVersion": "size_t {0}(void) {{ return 91900; }}\n",
    "cudnnGetCudartVersion": "size_t {0}(void) {{ return 13000; }}\n",
    "cudnnGetErrorString": 'const char* {0}(int status) {{ return "stand-in"; }}\n',
    "cudnnGetLastErrorString": "void {0}(char* text, size_t size) {{ if (size) text[0] = 0; }}\n",
    "cudnnSetStream": "int {0}(void** handle, void* stream) {{ *handle = stream; return 0; }}\n",
    "cudnnGetStream": "int {0}(void** handle, void** stream) {{ *stream = *handle; return 0; }}\n",
    # cuDNN's graph interface: a descriptor remembers its kind; the heuristics (kind 4) have one result (attribute
    # 202), other lists of descriptors (type 15) are as long as asked, numbers (types 3 and 23) are 0
    "cudnnBackendCreateDescriptor": (
        "int {0}(int kind, int** made) {{ *made = calloc(1, 64); **made = kind; return 0; }}\n"
    ),
    "cudnnBackendGetAttribute": (
        "int {0}(int* descriptor, int name, int type, int64_t asked, int64_t* count, void* values) {{\n"
        "    int64_t have = 0;\n"
        "    if (*descriptor == 4 && name == 202) have = 1;\n"
        "    else if (type == 15) have = asked;\n"
        "    else if (type == 3) {{ if (asked > 0 && values) memset(values, 0, 8 * asked); have = asked <= 1; }}\n"
        "    else if (type == 23) {{ if (asked == 1 && values) memset(values, 0, 4); have = 1; }}\n"
        "    if (count) *count = have;\n"
        "    return 0;\n}}\n"
    ),
}
_SIZES = ("WorkspaceSize", "IndicesSize", "StatesSize")  # the size is behind the last argument
_ARGUMENTS = {"cudnnGetConvolutionForwardWorkspaceSize": 6, "cudnnDropoutGetStatesSize": 1}


def unavailable_reason() -> str | None:
    """None: libraries can be built here."""
    lacking = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    return f"needs {' and '.join(lacking)}" if lacking else None


def build(provider: Path, out: Path) -> Path:
    """The libraries in ``out``, for the provider's file."""
    imported = _imported(provider)
    out.mkdir(parents=True, exist_ok=True)
    made = _named(imported, "libcudart.so.13")
    own = set(re.findall(r"\b(\w*cuda\w+)\(", (HERE / "cudart.c").read_text(encoding="utf-8")))
    rest = "".join(map(_function, sorted(made - own)))
    _compile(out, "libcudart.so.13", (HERE / "cudart.c").read_text(encoding="utf-8") + rest, versioned=True)
    for library in ("libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"):
        _compile(out, library, _HEAD + "".join(map(_function, sorted(_named(imported, library)))), versioned=True)
    driver = {name for name, library in imported if not library and re.match(r"cu[A-Z]", name)}
    _compile(out, "libcuda.so.1", _HEAD + "".join(map(_function, sorted(driver | {"cuInit"}))))
    # cuDNN is looked up by name at run time: its names are texts in the file
    named = {found.decode() for found in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    _compile(
        out, "libcudnn.so.9", _HEAD + "".join(map(_function, sorted(named | {n for n in _SPECIAL if "cudnn" in n})))
    )
    return out


def _imported(provider: Path) -> set[tuple[str, str]]:
    """(function, library) that the file asks for."""
    lines = subprocess.run(
        ["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True
    ).stdout
    return {tuple((line.split()[-1] + "@").split("@")[:2]) for line in lines.splitlines()}  # type: ignore[misc]


def _named(imported: set[tuple[str, str]], library: str) -> set[str]:
    return {name for name, where in imported if where == library}


def _function(name: str) -> str:
    if name in _SPECIAL:
        return _SPECIAL[name].format(name)
    if name.endswith(_SIZES):
        before = "".join(f"void* a{i}, " for i in range(_ARGUMENTS.get(name, 4)))
        return f"int {name}({before}size_t* size) {{ *size = 0; return 0; }}\n"
    if re.search(r"Create(\w*Descriptor|\w*Pack|\w*Plan)?$", name):
        return _MADE.format(name)
    return (_LOGGED if _COMPUTES.search(name) and "Destroy" not in name else _NOTHING).format(name)


def _compile(out: Path, library: str, source: str, *, versioned: bool = False) -> None:
    file, versions = out / f"{library}.c", out / f"{library}.map"
    file.write_text(source, encoding="utf-8")
    command: list[str | Path] = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-w",
        "-o",
        out / library,
        file,
        "-lpthread",
        f"-Wl,-soname,{library}",
    ]
    if versioned:
        versions.write_text(f"{library} {{ global: *; }};\n", encoding="utf-8")
        command.append(f"-Wl,--version-script={versions}")
    if library != "libcudart.so.13":
        command += [f"-L{out}", "-l:libcudart.so.13"]  # the log is there
    subprocess.run(command, check=True)
