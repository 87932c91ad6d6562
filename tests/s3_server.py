"""A small server that speaks S3 (path style, signature version 4, multipart), to be run as a process of its own: tests of snapshots
need a real one over a real socket, that can fail on request.

    python tests/s3_server.py DIR KEY SECRET     prints its port

POST /!faults with {"status": 503, "next": N} fails the next N requests (-1: all), {"delay_s": S} delays each, {} ends both;
GET /!requests counts requests and refused signatures.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

lock = threading.Lock()


class Store:
    """What it keeps: objects as files under the quoted key; uploads in parts in memory."""

    def __init__(self, root: Path, key: str, secret: str) -> None:
        self.root, self.key, self.secret = root, key, secret
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: dict[str, float] = {}
        self.requests = self.refused = 0

    def file(self, bucket: str, key: str) -> Path:
        return self.root / bucket / quote(key, safe="")

    def keys(self, bucket: str) -> dict[str, int]:
        return {unquote(f.name): f.stat().st_size for f in sorted((self.root / bucket).iterdir())}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for k, v in headers.items():
            self.send_header(k.replace("_", "-"), v)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def serve(self) -> None:
        s = self.store
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        if url.path == "/!faults":
            s.faults = json.loads(body)
            return self.answer(200)
        if url.path == "/!requests":
            return self.answer(200, json.dumps({"requests": s.requests, "refused": s.refused}).encode())
        with lock:
            s.requests += 1
            failing = s.faults.get("next", 0)
            if failing:
                s.faults["next"] = failing - 1
        time.sleep(s.faults.get("delay_s", 0))
        if failing:
            return self.refuse(int(s.faults["status"]), "SlowDown")
        if not self.signed(url.path, url.query, body):
            s.refused += 1
            return self.refuse(403, "SignatureDoesNotMatch")
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if not (s.root / bucket).is_dir():
            return self.refuse(404, "NoSuchBucket")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        return self.on_object(bucket, key, query, body) if key else self.on_bucket(bucket, query, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

    def signed(self, path: str, query: str, body: bytes) -> bool:
        m = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)",
            self.headers.get("Authorization", ""),
        )
        if not m or m[1] != self.store.key:
            return False
        payload = self.headers["x-amz-content-sha256"]
        if payload not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
            return False
        pairs = sorted(
            (quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(query, keep_blank_values=True)
        )
        headers = "".join(f"{h}:{' '.join(self.headers[h].split())}\n" for h in m[4].split(";"))
        canonical = "\n".join(
            [self.command, path, "&".join(f"{k}={v}" for k, v in pairs), headers, m[4], payload]
        )  # fmt: skip
        scope = f"{m[2]}/{m[3]}/s3/aws4_request"
        text = "\n".join(
            ["AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )
        k = ("AWS4" + self.store.secret).encode()
        for part in (m[2], m[3], "s3", "aws4_request"):
            k = hmac.digest(k, part.encode(), "sha256")
        return hmac.compare_digest(hmac.digest(k, text.encode(), "sha256").hex(), m[5])

    def on_bucket(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        if "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.store.file(bucket, unescape(key)).unlink(missing_ok=True)
            gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return self.answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        objects, folders, last = [], set(), ""
        for key, size in self.store.keys(bucket).items():
            if not key.startswith(prefix) or key <= after:
                continue
            if len(objects) + len(folders) >= 5:  # so few that every listing has pages
                break
            last = key
            below, slash, _ = key[len(prefix) :].partition("/")
            if slash and query.get("delimiter"):
                folders.add(prefix + below + "/")
            else:
                objects.append((key, size))
        else:
            last = ""
        xml = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{n}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag></Contents>"
            for k, n in objects
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if last else ""
        return self.answer(
            200,
            f"<ListBucketResult><IsTruncated>{str(bool(last)).lower()}</IsTruncated>{more}{xml}</ListBucketResult>".encode(),
        )

    def on_object(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        s, file = self.store, self.store.file(bucket, key)
        if self.command == "POST" and "uploads" in query:
            id_ = f"u{time.monotonic_ns()}"
            s.parts[id_] = {}
            return self.answer(
                200,
                f"<InitiateMultipartUploadResult><UploadId>{id_}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
        if self.command == "PUT" and "uploadId" in query:
            s.parts[query["uploadId"]][int(query["partNumber"])] = body
            return self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        if self.command == "POST" and "uploadId" in query:
            file.write_bytes(b"".join(b for _, b in sorted(s.parts.pop(query["uploadId"]).items())))
            return self.answer(
                200, b"<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"
            )
        if self.command == "PUT":
            file.write_bytes(body)
            return self.answer(200, ETag='"e"')
        if self.command == "DELETE":
            s.parts.pop(query.get("uploadId", ""), None)
            if "uploadId" not in query:
                file.unlink(missing_ok=True)
            return self.answer(204)
        try:
            found = file.read_bytes()
        except FileNotFoundError:
            return self.refuse(404, "NoSuchKey")
        return self.answer(200, found, ETag='"e"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")


if __name__ == "__main__":
    Handler.store = Store(Path(sys.argv[1]), *sys.argv[2:4])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
