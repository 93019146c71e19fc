"""What nvcc made of the CUDA kernels: registers, stack, and how often what matters is executed.

    python -m tests.sass        write testdata/cuda_sass.json anew from the installed library

Reads libllmc_cuda.so with cuobjdump, from the PATH or the package nvidia-cuda-cuobjdump.
"""

import functools
import json
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

from llmc_jax import ffi

GOLDEN = Path(__file__).parent / "testdata" / "cuda_sass.json"

# Instructions that are counted, as the beginning of SASS opcodes.
#   HGMMA, HMMA     products by warpgroups (wgmma) and by warps (mma.sync)
#   UTMALDG, ...    tiles by the copy engine (TMA), to shared memory and from it
#   LDGSTS, LDSM    cp.async, ldmatrix
#   LDG.E.128 ...   16 bytes a thread from and to global memory
#   RED, REDG       atomic additions
#   LDL, STL        local memory: a register that had to be put away
# and BESIDE: the exponentials between a wait for some products of a warpgroup and one for all.
COUNTED = (
    "HGMMA", "HMMA", "UTMALDG", "UTMASTG", "LDGSTS", "LDSM", "LDG.E.128", "STG.E.128",
    "RED", "REDG", "LDL", "STL",
)  # fmt: skip
BESIDE = "MUFU.EX2.BESIDE"
# Architectures whose code is read, which takes ten seconds each; of the others, for which the same
# sources are compiled as for sm_80, only what a kernel takes of registers and stack.
DISASSEMBLED = ("sm_80", "sm_90a")

Kernels = dict[str, Counter]  # name -> registers, stack, and those of COUNTED and BESIDE that occur


def cuobjdump() -> str | None:
    """The path of cuobjdump; None where there is none, or no disassembler beside it."""
    site_packages = Path(sysconfig.get_path("purelib"))
    wheels = [str(folder / "bin") for folder in sorted(site_packages.glob("nvidia/cu*"))]
    for path in (None, *wheels):
        if shutil.which("cuobjdump", path=path) and shutil.which("nvdisasm", path=path):
            return shutil.which("cuobjdump", path=path)
    return None


def read(library: Path) -> dict[str, Kernels]:
    """Architecture -> its kernels; names without namespaces, hashes and parameters."""
    architectures: dict[str, Kernels] = {}
    kernels: Kernels = {}
    name, beside = "", False
    lines = dump(library, "-res-usage")
    for architecture in DISASSEMBLED:
        lines += dump(library, "-sass", "-arch", architecture)
    for line in lines:
        if match := re.match(r"arch = (\w+)", line):
            kernels = architectures.setdefault(match[1], {})
        elif match := re.match(r"\s*Function\s*:?\s*([\w$]+)", line):
            name = _plain(match[1])
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            registers, stack, local = map(int, match.groups())
            kernels[name] = Counter(registers=registers)
            if stack + local:
                kernels[name]["stack"] = stack + local
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([\w.]+)([^;]*)", line):
            kernels[name].update(opcode for opcode in COUNTED if _is(match[1], opcode))
            if match[1].startswith("WARPGROUP.DEPBAR"):
                beside = not match[2].rstrip().endswith("0x0")
            elif beside and match[1] == "MUFU.EX2":
                kernels[name][BESIDE] += 1
    return {architecture: kernels for architecture, kernels in architectures.items() if kernels}


def _is(instruction: str, opcode: str) -> bool:
    """Whether SASS `instruction` is `opcode`, whatever modifiers come between its parts."""
    parts = opcode.split(".")
    found = instruction.split(".")
    return found[0] == parts[0] and set(parts) <= set(found)


def dump(library: Path, *what: str) -> list[str]:
    command = [cuobjdump(), *what, str(library)]
    environment = {"PATH": str(Path(command[0]).parent)}  # it starts nvdisasm
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


@functools.cache
def _plain(symbol: str) -> str:
    """The function and its template arguments, of a mangled name."""
    demangled = subprocess.run(
        ["c++filt", symbol], capture_output=True, text=True, check=True
    ).stdout.strip()
    name = re.sub(r"^void ", "", demangled)
    name = re.sub(r"llmc::cuda::|_GLOBAL__N__\w+::|\(anonymous namespace\)::", "", name)
    return re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name)


if __name__ == "__main__":
    kernels = read(ffi.library_path("cuda"))
    text = json.dumps(dict(build=ffi.status("gpu"), kernels=kernels), indent=1)
    text = re.sub(r'(?<=\{)\s+("registers"[^}]*?)\s+(?=\})', r"\1", text)  # a line for a kernel
    GOLDEN.write_text(re.sub(r',\n\s+(?="[A-Z0-9.]+": \d)', ", ", text) + "\n")
    print(f"{GOLDEN}: {sum(map(len, kernels.values()))} kernels")
