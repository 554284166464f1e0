"""Loading without the libraries' own progress bars: it takes seconds, and we say what is being loaded."""

from __future__ import annotations


def no_loading_bars() -> None:
    """Switch them off for this process. Downloads from the hub keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
