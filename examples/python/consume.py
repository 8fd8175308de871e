"""Reads payment.events, payment.state and chain.blocks to their ends with confluent-kafka's own Protobuf deserializer.

Prints a JSON object a record of events and blocks, and one a payment of the table that payment.state makes. KAFKA_BROKERS,
SCHEMA_REGISTRY_URL and TOPIC_PREFIX are the pipeline's. `./run consume.py` compiles the schemas and runs it.

The deserializer is given no registry of its own: since 2.8 it asks for `?format=serialized`, which Confluent's registry knows
and Apicurio does not (2.6 answers with text, 3.3 with bytes that are not base64). The schema that a record names is fetched
with the registry client instead, and compared with the one that this program was compiled from.
"""

import json
import os
import uuid

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from block_record_pb2 import BlockRecord
from payment_event_pb2 import PaymentEvent
from payment_state_pb2 import PaymentState

SCHEMAS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../topics/proto")
PREFIX = os.environ.get("TOPIC_PREFIX", "")
REGISTRY = SchemaRegistryClient({"url": os.environ["SCHEMA_REGISTRY_URL"]})


def check_schema(schema_id: int, message: type) -> None:
    schema = REGISTRY.get_schema(schema_id)
    with open(os.path.join(SCHEMAS, message.DESCRIPTOR.file.name), encoding="utf-8") as file:
        if schema.schema_type != "PROTOBUF" or schema.schema_str != file.read():
            raise SystemExit(f"schema {schema_id} of the registry is not {message.DESCRIPTOR.file.name}")


def read(topic: str, message: type):
    """Yields (key, record) until the topic's end."""
    topic = PREFIX + topic
    deserialize = ProtobufDeserializer(message, {"use.deprecated.format": False})
    checked = set()
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BROKERS"],
            "group.id": f"python-{uuid.uuid4()}",
            "auto.offset.reset": "earliest",
            # It commits no offsets: it reads everything, each time.
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    partitions = len(consumer.list_topics(topic, 10).topics[topic].partitions)
    consumer.subscribe([topic])
    ended = set()
    while len(ended) < partitions:
        record = consumer.poll(30)
        if record is None:
            raise SystemExit(f"{topic}: nothing for 30 s")
        if record.error():
            if record.error().code() != KafkaError._PARTITION_EOF:
                raise KafkaException(record.error())
            ended.add(record.partition())
            continue
        schema_id = int.from_bytes(record.value()[1:5], "big")
        if schema_id not in checked:
            check_schema(schema_id, message)
            checked.add(schema_id)
        context = SerializationContext(topic, MessageField.VALUE)
        yield record.key().decode(), deserialize(record.value(), context)
    consumer.close()


def show(topic: str, **fields) -> None:
    print(json.dumps({"topic": topic, **fields}))


def money(units: bytes) -> str:
    return str(int.from_bytes(units, "big"))


def payment(record) -> dict:
    return {
        "payment_id": record.payment_id,
        "sequence": record.sequence,
        "status": record.status,
        "amount": money(record.amount),
        "amount_received": money(record.amount_received),
    }


for _, event in read("payment.events", PaymentEvent):
    show("payment.events", id=event.id, type=event.type, **payment(event))

table = dict(read("payment.state", PaymentState))
for state in table.values():
    show("payment.state", **payment(state))

for _, block in read("chain.blocks", BlockRecord):
    show("chain.blocks", number=block.number, hash="0x" + block.hash.hex(), transactions=len(block.transactions))
