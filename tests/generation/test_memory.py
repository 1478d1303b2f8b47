"""100,000 tokens in one session: what it keeps grows by a few bytes a token, and its files with the requests."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.support.lazy_module import skip_without

skip_without("transformers", reason="one of the two programs is its generate")

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

TOKENS = 100_000
MAX_BYTES = 100  # kept for a token, of which the journal's frames and the tracer's rows are the most
MIB = 2**20


def soak(kind, *options):
    """Generate in a process of its own; memory is that after each tenth of the tokens."""
    command = [sys.executable, "-m", "tests.generation.token_soak", kind, str(TOKENS), *map(str, options)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["output_tokens"] == TOKENS
    assert found["requests"] == TOKENS // 50
    return found


@pytest.mark.parametrize("kind", ["generate", "loop"])
def test_memory_stays_flat(kind):
    found = soak(kind, "--traced")
    first, last = found["heap"][0], found["heap"][-1]
    assert last - first < TOKENS * MAX_BYTES, "\n".join(found["largest"])


@pytest.mark.parametrize("kind", ["generate", "loop"])
def test_resident_memory_and_files_stay_small(kind, tmp_path):
    found = soak(kind, "--folder", tmp_path)
    assert found["rss"][-1] - found["rss"][0] < 24 * MIB, found["rss"]
    assert found["payload"] < 200_000
    files = found["files"]
    assert files["audit/token.csv"] < 300 * 2 * found["requests"]  # two rows a request
    assert files["journal/work.journal"] < 60 * TOKENS + MIB
