"""Where a setting comes from, and what is said of one that can't be used."""

from __future__ import annotations

import pytest

from stream_dmgin.errors import ConfigError
from stream_dmgin.settings import SETTINGS, load, masked


def test_defaults_parse_and_every_setting_has_an_origin(tmp_path):
    s = load({}, {}, tmp_path / "none.toml")
    assert set(s.origin) == {k.key for k in SETTINGS}
    assert set(s.origin.values()) == {"default"}
    assert s.log == "file:.stream-dmgin/log"


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    f = tmp_path / "stream-dmgin.toml"
    f.write_text('data_dir = "of-file"\nprefix = "f."\n[worker]\nhttp = "127.0.0.1:1"\n')
    s = load(
        {"data_dir": "of-flag", "prefix": None}, {"STREAM_DMGIN_PREFIX": "e.", "STREAM_DMGIN_DATA_DIR": "of-env"}, f
    )
    assert (s["data_dir"], s.origin["data_dir"]) == ("of-flag", "flag")
    assert (s["prefix"], s.origin["prefix"]) == ("e.", "STREAM_DMGIN_PREFIX")
    assert (s["worker.http"], s.origin["worker.http"]) == ("127.0.0.1:1", str(f))
    assert s.origin["partitions"] == "default"


def test_kafka_section_goes_to_librdkafka_under_its_own_names(tmp_path):
    f = tmp_path / "c.toml"
    f.write_text(
        '[kafka]\n"security.protocol" = "SASL_SSL"\nsasl.username = "u"\nenable.ssl.certificate.verification = true\n'
    )
    s = load({}, {"STREAM_DMGIN_KAFKA_SASL_PASSWORD": "p", "STREAM_DMGIN_KAFKA_SASL_USERNAME": "v"}, f)
    assert s.kafka == {
        "security.protocol": "SASL_SSL",
        "sasl.username": "v",
        "sasl.password": "p",
        "enable.ssl.certificate.verification": "true",
    }
    assert masked("sasl.password", s.kafka["sasl.password"]) == "********"
    assert masked("sasl.username", "v") == "v"


@pytest.mark.parametrize(
    ("toml", "environ", "key", "part"),
    [
        ("partitions = 0", {}, "partitions", "1 to 10000"),
        ("partitions = true", {}, "partitions", "whole number"),
        ('[worker]\nhttp = "8088"', {}, "worker.http", "HOST:PORT"),
        ("", {"STREAM_DMGIN_LOG": "localhost:9092"}, "log", "kafka://"),
        ("[worker]\nhttps = 1", {}, "worker.https", "no such setting"),
        ("prefix = [1]", {}, "prefix", "characters"),
        ("[kafka]\na = [1]", {}, "kafka.a", "librdkafka"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_value_and_the_fix(tmp_path, toml, environ, key, part):
    f = tmp_path / "c.toml"
    f.write_text(toml)
    with pytest.raises(ConfigError) as e:
        load({}, environ, f)
    assert e.value.key == key
    assert part in str(e.value)
    assert e.value.exit_code == 2


def test_a_broken_or_missing_file_is_said_to_be(tmp_path):
    f = tmp_path / "c.toml"
    f.write_text("= 1")
    with pytest.raises(ConfigError, match="mend its TOML"):
        load({}, {}, f)
    with pytest.raises(ConfigError, match="STREAM_DMGIN_CONFIG"):
        load({}, {"STREAM_DMGIN_CONFIG": str(tmp_path / "gone.toml")})
