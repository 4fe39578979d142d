"""Write the C source of ``vmm._native`` (cffi API mode, abi3): generate.py CDEF OUTPUT."""

import sys
from pathlib import Path

from cffi import FFI


def main(cdef: str, output: str) -> None:
    """Generate the extension's source from the declarations in ``cdef``."""
    ffi = FFI()
    ffi.cdef(Path(cdef).read_text())
    ffi.set_source("vmm._native", '#include "shim.h"\n#include "stress.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
