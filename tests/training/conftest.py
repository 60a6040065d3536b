"""Makes the demo model's training scripts importable: they run in a checkout only."""

import sys
from pathlib import Path

TRAINING = str(Path(__file__).resolve().parents[2] / "training")
if TRAINING not in sys.path:
    sys.path.insert(0, TRAINING)
