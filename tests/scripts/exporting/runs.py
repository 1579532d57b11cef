"""``train.py`` in this process."""

import pytest

import train


def run_train(*words: object) -> object:
    """Run ``train.py`` with these words and return its exit status, or its last words."""
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in words])
    return stop.value.code
