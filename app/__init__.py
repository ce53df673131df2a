"""The page, which Streamlit runs, and the same in a terminal: `python -m app.generate`."""

import stages  # noqa: F401 - before everything else, because it sees to Ctrl-C during the imports
