"""The program kvlane that came with this package."""

import os
import sys
from pathlib import Path


def main() -> None:
    program = Path(__file__).parent / "bin" / "kvlane"
    if not program.exists():
        sys.exit(f"kvlane: {program} is missing: install the package anew")
    os.execv(program, [str(program), *sys.argv[1:]])


if __name__ == "__main__":
    main()
