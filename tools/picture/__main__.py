"""Make a picture of diskq from diskq itself.

python3 tools/dev.py picture demo      docs/demo.svg, from a real run of the demo
python3 tools/dev.py picture layers    docs/explanation/layers.svg, from the imports
python3 tools/dev.py picture walk      print which files put, get and ack pass through
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module


def main() -> int:
    """Make the picture that is asked for."""
    parser = argparse.ArgumentParser(
        "picture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", choices=("demo", "layers", "walk"))
    options = parser.parse_args()
    code: int = import_module(f".{options.picture}", __package__).main()
    return code


if __name__ == "__main__":
    sys.exit(main())
