"""Records of the control topic, written by people: which model is active."""

from __future__ import annotations

import msgspec

from stream_dmgin import topics
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings
from stream_dmgin.worker.releases import KEY


def publish_model(settings: Settings, model_id: str) -> None:
    """Make a model the active one. Raises LogUnavailable."""
    with open_log(settings.log, settings.kafka) as log:
        writer = log.writer()
        record = msgspec.msgpack.encode({"id": model_id})
        writer.append(settings.topic(topics.CONTROL), KEY.encode(), record, partition=0)
        writer.close()
