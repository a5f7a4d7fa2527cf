"""Ray Jobs entrypoint: ray job submit --working-dir jobs -- python noise.py ARGUMENTS"""

import sys
from pathlib import Path

from mlic.cli.main import main

main(["noise", "--config", str(Path(__file__).with_suffix(".yaml").resolve()), *sys.argv[1:]])
