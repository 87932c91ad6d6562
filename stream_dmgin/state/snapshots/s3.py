"""Objects of an S3-compatible store: what `Place` needs of a file system, over obstore (the extra `s3`).

Endpoint, region and credentials come from the environment only, under the names of the AWS tools: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, or from what a container or machine is given (web identity,
ECS, EC2). Every call blocks, outside of the interpreter's lock; failures of the server and of the network are tried again with
growing pauses, for PATIENCE at most. An object appears when it is whole.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import S3Config

SCHEMES = ("s3://", "s3a://")
PATIENCE = timedelta(
    seconds=15
)  # after this long a call that failed isn't tried again; a recovery tries four times, in less than stall_s
BACKOFF = timedelta(milliseconds=200), timedelta(seconds=5)  # first pause, longest one
CONNECT_S, STALL_S = 5, 20  # seconds to connect, and without a byte
REQUEST_S = 120  # for one request: at most 5 MB up, one file down
CHUNK = 4 << 20


class S3:
    """One bucket and path. Errors are obstore's, but for FileNotFoundError."""

    def __init__(self, url: str) -> None:
        """Raises ImportError without obstore, ValueError for a URL that names no bucket."""
        from obstore.store import S3Store

        _, _, rest = url.partition("://")
        if not rest.strip("/") or "@" in rest.partition("/")[0]:
            raise ValueError("give s3://BUCKET/PATH; credentials go into the environment, not into the URL")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        config: S3Config = {"endpoint": endpoint} if endpoint else {}
        self._store = S3Store.from_url(
            url,
            config=config,
            client_options={
                "allow_http": endpoint.startswith("http://"), "connect_timeout": f"{CONNECT_S}s",
                "read_timeout": f"{STALL_S}s", "timeout": f"{REQUEST_S}s",
            },
            retry_config={
                "max_retries": 20, "retry_timeout": PATIENCE,
                "backoff": {"init_backoff": BACKOFF[0], "max_backoff": BACKOFF[1], "base": 2},
            },
        )  # fmt: skip

    def invalidate_cache(self) -> None:
        """Nothing is remembered here."""

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
        """`name` and `size` of what lies directly under a path; nothing where nothing does."""
        found = self._store.list_with_delimiter(path.strip("/") or None)
        objects = [{"name": o["path"], "size": o["size"]} for o in found["objects"]]
        return objects + [{"name": p, "size": 0} for p in found["common_prefixes"]]

    def cat_file(self, path: str) -> bytes:
        """A whole object."""
        return bytes(self._store.get(path).bytes())

    def pipe_file(self, path: str, value: bytes) -> None:
        """Write an object."""
        self._store.put(path, value)

    def put_file(self, source: str, path: str) -> None:
        """Upload a file, in parts of 5 MB where it is larger."""
        self._store.put(path, Path(source))

    def get_file(self, path: str, target: str) -> None:
        """Download an object into a file."""
        stream = self._store.get(path).stream(CHUNK)
        with open(target, "wb") as f:
            for chunk in stream:
                f.write(chunk)

    def rm_file(self, path: str) -> None:
        """Delete an object."""
        self._store.delete(path)
