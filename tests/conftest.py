"""What every test folder shares: the repository's root, K2's own data files, a clean environment.

Data that may not be committed is looked for beside the checkout; a test that needs it is skipped,
with the reason, where it is absent. Owns no model builders: those are in `gguf_factory.py`.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# A busy machine is not a failure. CI asks for hypothesis' own profile `ci`, which also draws the
# same examples in every run.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Triton decides when it is first imported, by whichever test, whether its own functions are
# interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout that holds these tests."""
    return ROOT


@pytest.fixture(scope="session")
def k2_data() -> Path:
    """The folder with Kimi-K2-Instruct's own config and tokenizer files."""
    folder = ROOT.parent / "shared" / "data" / "kimi-k2"
    if not (folder / "tiktoken.model").is_file():
        pytest.skip("../shared/data/kimi-k2 (K2's config.json and tiktoken.model) absent")
    return folder


@pytest.fixture(autouse=True)
def _environment_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No HYBRID_K2_* setting of the developer's, nor a chat history of theirs, reaches a test.

    A Python that a test starts imports the installed package too, not the checkout it stands in.
    """
    for name in list(os.environ):
        if name.startswith("HYBRID_K2_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
