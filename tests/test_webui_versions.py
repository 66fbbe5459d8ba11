"""The rooms that touch transformers and peft, tested once more under the versions that the web UI of 2026-01 brings (see older.py)."""

import older
import pytest
from homes import NO_WEBUI, WEBUI_PYTHON


@pytest.mark.skipif(not WEBUI_PYTHON.exists(), reason=NO_WEBUI)
@pytest.mark.timeout(1500)
def test_the_same_tests_pass_under_the_web_uis_versions():
    older.begin()
    code, said = older.ended(1400)
    assert code == 0, said[-8000:]
    assert " passed" in said
