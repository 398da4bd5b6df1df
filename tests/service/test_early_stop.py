"""A router that is told to stop before it has started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.prompts.models import CHATML, save_model, tokenizer_of
from tests.service.processes import eventually


def test_a_router_told_to_stop_while_it_loads_ends_well(tmp_path: Path) -> None:
    """Exit 0, and nothing is left in the temporary folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    model = save_model(tmp_path, tokenizer_of("chatml"), chat_template=CHATML)
    models = [f"--tokenizer=m{number}={model}" for number in range(200)]
    with subprocess.Popen(
        [sys.executable, "-m", "kvrouter", "serve", "--port=0", *models],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as router:
        eventually(lambda: list(temporary.iterdir()) or router.poll() is not None)
        router.send_signal(signal.SIGTERM)
        _, errors = router.communicate(timeout=60)

    assert router.returncode == 0, errors
    assert list(temporary.iterdir()) == []
