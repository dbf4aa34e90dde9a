"""Records whose headers have any bytes for a name, as producers in other languages write them. The driver for Python takes text alone, so
this speaks with the C library that it brings."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

import confluent_kafka

_PRODUCER = 0
_END, _TOPIC, _PARTITION, _VALUE, _KEY, _FLAGS, _HEADERS = 0, 1, 3, 4, 5, 7, 10
"""rd_kafka_vtype_t"""
_COPY = 2


def produce_raw(brokers: str, topic: str, partition: int, value: bytes, headers: Iterable[tuple[bytes, bytes]], key: bytes = b"k") -> None:
    """Returns once the broker has it."""
    (found,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka-*.so*")
    lib = ctypes.CDLL(str(found))
    for make in (lib.rd_kafka_conf_new, lib.rd_kafka_new, lib.rd_kafka_headers_new):
        make.restype = ctypes.c_void_p
    why = ctypes.create_string_buffer(512)
    settings = ctypes.c_void_p(lib.rd_kafka_conf_new())
    assert lib.rd_kafka_conf_set(settings, b"bootstrap.servers", brokers.encode(), why, len(why)) == 0, why.value
    producer = ctypes.c_void_p(lib.rd_kafka_new(_PRODUCER, settings, why, len(why)))
    assert producer, why.value
    try:
        made = ctypes.c_void_p(lib.rd_kafka_headers_new(4))
        for name, content in headers:
            assert lib.rd_kafka_header_add(made, name, ctypes.c_ssize_t(len(name)), content, ctypes.c_ssize_t(len(content))) == 0
        size, key_size = ctypes.c_size_t(len(value)), ctypes.c_size_t(len(key))
        what = (_TOPIC, topic.encode(), _PARTITION, ctypes.c_int32(partition), _FLAGS, _COPY, _VALUE, value, size, _KEY, key, key_size)
        assert lib.rd_kafka_producev(producer, *what, _HEADERS, made, _END) == 0
        assert lib.rd_kafka_flush(producer, 10_000) == 0
    finally:
        lib.rd_kafka_destroy(producer)
