"""Which of Chroma's tests say nothing about an embedded store, and why.

A reason stands for a whole file (``"client/test_cloud_client.py"``) or for one test (``"test_api.py::test_..."``, all of its
parameters). Whatever is not named here is run. Tests that Chroma itself skips outside a cluster, and those that never
open a client, need no entry: the run finds them and counts them apart.
"""

from __future__ import annotations

__all__ = ["NOT_APPLICABLE", "reason_for"]

_HTTP = "HTTP server or HTTP client only"
_CLUSTER = "distributed Chroma only"
_NETWORK = "needs the network, or a model that is downloaded"
_PYTHON_INTERNALS = "Chroma's former implementation in Python, from the inside"
_COMMAND = "Chroma's own command line"

NOT_APPLICABLE: dict[str, str] = {
    "auth/": _HTTP,
    "distributed/": _CLUSTER,
    "segment/": _CLUSTER,
    "client/test_cloud_client.py": _HTTP,
    "client/test_create_http_client.py": _HTTP,
    "client/test_database_tenant_auth.py": _HTTP,
    "property/test_add_gc.py": _CLUSTER,
    "property/test_add_mcmr.py": _CLUSTER,
    "property/test_client_url.py": _HTTP,
    "property/test_collections_with_database_tenant_overwrite.py": _HTTP,
    "property/test_cross_version_persist.py": "needs the network: installs former versions of Chroma",
    "property/test_restart_persist.py": "Chroma switched it off for its implementation in Rust",
    "stress/": "a stress test: 7,500 open collections take more than 10 GB of memory",
    "test_chroma.py": "which class Chroma's settings choose, with mocks",
    "test_config.py": "Chroma's component system",
    "test_cli.py": _COMMAND,
    "ef/test_default_ef.py": _NETWORK,
    "ef/test_onnx_mini_lm_l6_v2.py": _NETWORK,
    "api/test_shared_system_client.py": "Chroma's registry of systems, with mocks",
    "test_client.py::test_http_client": _HTTP,
    "test_client.py::test_http_client_with_inconsistent_host_settings": _HTTP,
    "test_client.py::test_http_client_with_inconsistent_port_settings": _HTTP,
    "test_client.py::test_fastapi_uses_http_limits_from_settings": _HTTP,
    "test_api.py::test_error_includes_trace_id": _HTTP,
    "test_api.py::test_ssl_self_signed": _HTTP,
    "test_api.py::test_ssl_self_signed_without_ssl_verify": _HTTP,
    "property/test_add.py::test_add_large_exceeding": "by design: a batch above Chroma's maximum is split, not refused",
    "utils/test_embedding_function_schemas.py": "schemas of Chroma's embedding functions; opens no client",
    "property/test_persist.py::test_sync_threshold": _PYTHON_INTERNALS,
}


def reason_for(path: str, test: str) -> str | None:
    """Return why a test does not apply, or None.

    Args:
        path: The file, relative to ``chromadb/test``, with forward slashes.
        test: The function's name.
    """
    for key in (f"{path}::{test}", path, path.split("/", 1)[0] + "/"):
        if key in NOT_APPLICABLE:
            return NOT_APPLICABLE[key]
    return None
