"""topics/asyncapi.yaml says what the code says: topics, fields, types, limits; and its examples are good records."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import msgspec
import numpy as np
import pytest
import yaml

from stream_dmgin import control, records, topics
from stream_dmgin.counters.audience import WIDTH, Audience
from stream_dmgin.counters.increments import Increments
from stream_dmgin.groups import wire
from stream_dmgin.log import manage
from stream_dmgin.log.base import Record
from stream_dmgin.state.hash import hash64
from stream_dmgin.worker.dead_letters import dead_letter
from stream_dmgin.worker.releases import KEY as MODEL_KEY

HERE = Path(__file__).resolve().parents[2] / "topics"
DOC: dict[str, Any] = yaml.safe_load((HERE / "asyncapi.yaml").read_text())
SCHEMAS = DOC["components"]["schemas"]
MESSAGES = DOC["components"]["messages"]
RECORDS = {
    "Event": records.Event,
    "Request": records.Request,
    "Score": records.Score,
    "Provenance": records.Provenance,
    "Item": records.Item,
    "Erasure": control.Erasure,
    "Skip": control.Skip,
}
EXAMPLES = [(name, e) for name, m in MESSAGES.items() for e in m.get("examples", [])]


def resolve(x: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in x:
        node: Any = DOC
        for part in x["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        x = node
    return x


def types(schema: dict[str, Any], root: dict[str, Any]) -> set[str]:
    """JSON types a schema allows; `root` resolves msgspec's own references."""
    if "$ref" in schema:
        return types(root[schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        return set().union(*(types(s, root) for s in schema["anyOf"]))
    t = schema["type"]
    return set(t) if isinstance(t, list) else {t}


def valid(schema: str, payload: object) -> bool:
    v = jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": DOC["components"]})
    return v.is_valid(payload)


@pytest.mark.parametrize("name", RECORDS)
def test_fields_are_those_of_the_code(name: str) -> None:
    (_, code) = msgspec.json.schema_components([RECORDS[name]])
    code_schema, said = code[name], SCHEMAS[name]
    assert list(said["properties"]) == list(code_schema["properties"])
    assert set(said["required"]) == set(code_schema["required"])
    for field, schema in code_schema["properties"].items():
        assert types(resolve(said["properties"][field]), SCHEMAS) == types(schema, code), field
        if schema.get("default") is not None:
            assert said["properties"][field]["default"] == schema["default"], field


def test_limits_are_those_of_the_code() -> None:
    event = SCHEMAS["Event"]["properties"]
    assert (event["dwell_ms"]["minimum"], event["dwell_ms"]["maximum"]) == (0, records.DWELL_MAX)
    assert (event["value"]["minimum"], event["value"]["maximum"]) == (0, records.VALUE_MAX)
    assert event["type"]["maxLength"] == records.TYPE_BYTES
    assert SCHEMAS["Time"]["minimum"] == records.TS_MIN
    candidates = SCHEMAS["Request"]["properties"]["candidates"]
    assert (candidates["minItems"], candidates["maxItems"]) == (1, records.CANDIDATES_MAX)
    for x in (SCHEMAS["UserId"], SCHEMAS["ItemId"], event["event_id"], SCHEMAS["Request"]["properties"]["request_id"]):
        assert (x["minLength"], x["maxLength"]) == (1, records.ID_BYTES)


def test_topics_are_those_of_the_code() -> None:
    wanted = manage.wanted(topics.PREFIX, 8)  # what `topics apply` makes
    said = {c["address"]: c for c in DOC["channels"].values()}
    assert set(said) == set(wanted) == {topics.PREFIX + t for t in topics.ALL}
    for name, info in wanted.items():
        kafka = said[name]["bindings"]["kafka"]
        assert kafka["partitions"] == info.partitions, name
        config = {k: ",".join(v) if isinstance(v, list) else str(v) for k, v in kafka["topicConfiguration"].items()}
        assert config == dict(info.config), name


def test_every_reference_leads_somewhere() -> None:
    def walk(x: object) -> None:
        if isinstance(x, dict):
            if isinstance(x.get("$ref"), str):
                resolve(x)
            for y in x.values():
                walk(y)
        elif isinstance(x, list):
            for y in x:
                walk(y)

    walk(DOC)
    for op in DOC["operations"].values():
        assert resolve(op["channel"]) in DOC["channels"].values()


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[e["name"] for _, e in EXAMPLES])
def test_examples_are_good_records(name: str, example: dict[str, Any]) -> None:
    payload = example["payload"]
    assert json.loads((HERE / example["summary"]).read_text()) == payload
    assert valid(MESSAGES[name]["payload"]["$ref"].rsplit("/", 1)[1], payload)
    value = msgpack.packb(payload)
    key = payload.get("user_id", "").encode()
    topic = {"impression": "impressions", "click": "clicks", "postClick": "post-clicks"}.get(name)
    if topic:
        event = records.decode_event(topic, key, value, payload["ts"] + 1000)
        assert event.type == payload.get("type", {"impression": "impression", "click": "click"}.get(name))
    elif name == "request":
        assert records.decode_request(key, value, payload["ts"]).candidates == payload["candidates"]
    elif name == "item":
        assert records.decode_item(payload["item_id"].encode(), value).item_id == payload["item_id"]
    elif name in ("erasure", "skip"):
        kind = {"erasure": control.Erasure, "skip": control.Skip}[name]
        order = msgspec.convert(payload, kind)
        assert re.fullmatch(MESSAGES[name]["bindings"]["kafka"]["key"]["pattern"], order.key)
        taken = control.Control()
        taken.take(order.key.encode(), value)
        assert taken.erasures or taken.skips
        if name == "erasure":
            assert (order.digest, order.hash) == (control.digest_of(b"u42"), hash64(b"u42"))
    elif name == "control":
        assert MESSAGES[name]["bindings"]["kafka"]["key"]["enum"] == [MODEL_KEY]
    elif name == "groups":
        assert MESSAGES[name]["bindings"]["kafka"]["key"]["enum"] == [wire.KEY]
        assert re.fullmatch(
            MESSAGES["groupsPart"]["bindings"]["kafka"]["key"]["pattern"], wire.part_key(payload["id"], 7).decode()
        )
    else:
        score = records.decode_score(value)
        assert msgpack.unpackb(records.encode(score)) == payload
        assert len(score.ctr) == len(score.candidates) == len(score.heads["order"])


BAD = [
    ("postClick", "post-clicks", {"type": None}),
    ("click", "clicks", {"dwell_ms": -1}),
    ("click", "clicks", {"dwell_ms": 1 << 32}),
    ("click", "clicks", {"value": 2e12}),
    ("click", "clicks", {"ts": 1}),
    ("click", "clicks", {"ts": "now"}),
    ("click", "clicks", {"item_id": ""}),
    ("click", "clicks", {"attrs": [1]}),
]


@pytest.mark.parametrize(("name", "topic", "change"), BAD)
def test_the_schema_refuses_what_the_code_refuses(name: str, topic: str, change: dict[str, object]) -> None:
    payload = MESSAGES[name]["examples"][0]["payload"] | change
    assert not valid(MESSAGES[name]["payload"]["$ref"].rsplit("/", 1)[1], payload)
    with pytest.raises(records.RecordError):
        records.decode_event(topic, payload["user_id"].encode(), msgpack.packb(payload), 1793450200000)


def test_increments_are_those_of_the_code() -> None:
    counted = Increments(
        np.array([0], np.uint8),
        np.array([7], np.uint64),
        np.array([9], np.int64),
        np.array([1], np.uint8),
        np.array([2]),
    )
    [value] = counted.encode(3, {0: 1}, {0: 5}, "a-1")
    assert set(msgpack.unpackb(value)) == set(SCHEMAS["Increments"]["required"])
    one = np.ones(1, np.int32)
    audience = Audience(one.astype(np.uint64), one.astype(np.uint8), one, np.ones((1, WIDTH), np.int32))
    whole = replace(counted, surface=np.array([4], np.uint8), audience=audience)
    [value] = whole.encode(3, {0: 1}, {0: 5}, "a-1")
    assert set(msgpack.unpackb(value)) == set(SCHEMAS["Increments"]["properties"])


def test_dead_letter_headers_are_those_of_the_code() -> None:
    record = Record("dmgin.clicks", 2, 41, 1793450101000, b"u1", b"?", (("mine", b"1"),))
    dead = dead_letter(record, records.RecordError("decode", "not a MessagePack map"))
    assert dead.headers[0] == ("mine", b"1")
    assert {k for k, _ in dead.headers[1:]} == set(SCHEMAS["DeadLetterHeaders"]["properties"])


def test_examples_on_disk_are_all_used() -> None:
    assert {f"examples/{p.name}" for p in (HERE / "examples").iterdir()} == {e["summary"] for _, e in EXAMPLES}
