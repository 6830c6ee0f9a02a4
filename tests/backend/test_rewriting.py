"""Which write rewrites the index of a collection on the disk is known before, so that a long write can be cut for it."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from aiochroma.core.config import EngineOptions, Location
from aiochroma.core.request import Request
from aiochroma.disk.layout import ID_MAP_FILE
from aiochroma.host.opening import open_embedded

_COUNTS = (150, 1, 150, 40, 3, 150, 150, 64, 150, 1, 64, 150, 120, 7, 150)


@pytest.mark.parametrize("threshold", [300, 1000])
def test_it_is_known_which_write_rewrites_an_index(tmp_path, threshold):
    """Across openings, too: what the log has beyond the index counts."""

    def rewritten_at():
        return [path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{ID_MAP_FILE}")]

    names = {"tenant": "default_tenant", "database": "default_database"}
    rewritings = known = 0
    for session in range(2):
        with closing(open_embedded(Location("persistent", str(tmp_path)), EngineOptions())) as backend:
            model = backend.execute(
                Request(
                    "get_or_create_collection",
                    {"name": "notes", "configuration": {"hnsw": {"sync_threshold": threshold}}, **names},
                )
            )
            for turn, count in enumerate(_COUNTS):
                ids = [f"{session}-{turn}-{number}" for number in range(count)]
                vectors = np.random.default_rng(turn).normal(size=(count, 4)).astype(np.float32)
                arguments = {"collection_id": model.id, "ids": ids, "embeddings": list(vectors), **names}
                left, before = backend.until_rewrite(str(model.id)), rewritten_at()
                backend.execute(Request("_upsert", arguments))
                if left is not None:
                    known += 1
                    assert (rewritten_at() != before) is (count >= left)
                rewritings += rewritten_at() != before
    assert rewritings >= 2
    assert known == 2 * len(_COUNTS) - 2
