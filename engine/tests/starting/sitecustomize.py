"""What Python runs first in every process that a test starts, by PYTHONPATH.

Imports make objects that stay. To look for garbage among them is a quarter of the time that a
command takes to start, and tests start hundreds.
"""

import gc

gc.set_threshold(100_000, 50, 100)
