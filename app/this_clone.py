"""Makes `import stages` find the code beside this folder, whatever else is installed.

Imported by the page before any module that imports `stages`. Streamlit puts `app/` first on
`sys.path`, but not the project's root; the environment may hold another clone of the project.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT))

import stages  # noqa: E402

if not Path(str(stages.__file__)).is_relative_to(ROOT):
    raise ImportError(
        f"the page of {ROOT} got the code of another clone, {stages.__file__}. "
        "Start it in an environment where that clone is not imported at start-up."
    )
