"""The emulated device in every Python process that has this folder on its `PYTHONPATH`.

For what starts processes of its own, as `gpu_check` does, below `run.py`. What a GPU does in a
moment is made small.
"""

import os

if "recreplay-emulated" in os.environ.get("LD_LIBRARY_PATH", ""):  # not in `run.py` itself
    from emulated import plugin

    plugin.pytest_configure()

    from recreplay.tools.bench import floor

    floor._CALLS = 10
    floor._COPIED, floor._SIZE, floor._SENT = {"cuda": 1 << 20}, {"cuda": 64}, 1 << 20
