//! `docs/asyncapi.yaml` is generated from the topics, their settings, keys and schemas. This test fails when it is out of date;
//! `CTRIP_WRITE_ASYNCAPI=1 cargo test -p topics --test asyncapi` writes it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::path::Path;
use topics::{Cleanup, Topic};

struct Prose {
    title: &'static str,
    key: &'static str,
    example: &'static str,
    producer: &'static str,
}

fn prose(topic: Topic) -> Prose {
    const CHAIN: (&str, &str) = ("The chain id as decimal text", "137");
    const PAYMENT: (&str, &str) = ("The payment's id, a UUID", "01931f6e-7b1c-7d5e-9a3f-2f6f0c6a2b11");
    let (title, (key, example), producer) = match topic {
        Topic::Blocks => ("Every block of every chain, added and removed", CHAIN, "ingest"),
        Topic::Logs => ("All logs of every block", CHAIN, "ingest"),
        Topic::Cursors => ("The cursor of each chain, which stores how far ingest has come", CHAIN, "ingest"),
        Topic::Matches => {
            ("The transfers to issued addresses, one record per block, or several of a large one", CHAIN, "detector")
        }
        Topic::Intents => (
            "Every address ever issued",
            ("The address as lower-case 0x hex", "0x9858effd232b4033e47d90003d41ec34ecaeda94"),
            "api",
        ),
        Topic::Events => ("Every event of every payment", PAYMENT, "outbox"),
        Topic::State => ("The latest state of each payment", PAYMENT, "outbox"),
        Topic::Sweeps => (
            "Every transaction that sweeps, before it is sent, and what became of it",
            ("The chain id as decimal text, a slash, the sweep's id", "137/01931f6e-7b1c-7d5e-9a3f-2f6f0c6a2b11"),
            "sweeper",
        ),
        Topic::Quarantine => {
            ("Records that a stage could not read", ("The source topic, without TOPIC_PREFIX", "payment.intents"), "detector")
        }
    };
    Prose { title, key, example, producer }
}

/// The message's name without its package.
fn message(topic: Topic) -> &'static str {
    topic.record().strip_prefix("ctrip.v1.").unwrap()
}

fn document() -> String {
    let mut out = String::from(
        "# Made from the topics crate; CTRIP_WRITE_ASYNCAPI=1 cargo test -p topics --test asyncapi writes it.\n\
         asyncapi: 3.0.0\n\
         info:\n  title: cTrip\n  version: 1.0.0\n  license:\n    name: Apache-2.0\n\
         \x20 description: |-\n\
         \x20   The Kafka topics of a crypto payment pipeline. Keys are UTF-8 text, partitioned as the Java client does. Values are\n\
         \x20   Protobuf in the Confluent wire format: a zero byte, the schema's id as four big-endian bytes, a zero byte, the message.\n\
         \x20   Read with isolation.level=read_committed. docs/consuming.md says what each topic guarantees.\n\
         defaultContentType: application/x-protobuf\n\
         channels:\n",
    );
    for topic in Topic::ALL {
        let Prose { title, .. } = prose(topic);
        let record = message(topic);
        write!(
            out,
            "  {topic}:\n    address: '{{prefix}}{topic}'\n    title: {title}\n    parameters:\n      prefix:\n        default: ''\n        \
             description: TOPIC_PREFIX of the installation, empty unless set\n    messages:\n      {record}:\n        \
             $ref: '#/components/messages/{record}'\n    bindings:\n      kafka:\n        partitions: {}\n        \
             topicConfiguration:\n",
            topic.partitions()
        )
        .unwrap();
        match topic.cleanup() {
            Cleanup::Compact => {
                out.push_str("          cleanup.policy: [compact]\n");
                if let Some(ms) = topic.segment_ms() {
                    writeln!(out, "          segment.ms: {ms}").unwrap();
                }
            }
            Cleanup::Delete { retention_ms } => {
                let retention = retention_ms.map_or("-1".to_owned(), |ms| ms.to_string());
                writeln!(out, "          cleanup.policy: [delete]\n          retention.ms: {retention}").unwrap();
            }
        }
        writeln!(out, "          max.message.bytes: {}\n        bindingVersion: 0.5.0", topic.max_message_bytes()).unwrap();
    }
    out.push_str("operations:\n");
    for topic in Topic::ALL {
        let (Prose { producer, .. }, record) = (prose(topic), message(topic));
        write!(
            out,
            "  send{record}:\n    action: send\n    summary: Written by {producer}\n    channel:\n      $ref: '#/channels/{topic}'\n    \
             messages:\n      - $ref: '#/channels/{topic}/messages/{record}'\n"
        )
        .unwrap();
    }
    out.push_str("components:\n  messages:\n");
    for topic in Topic::ALL {
        let (Prose { title, key, example, .. }, record) = (prose(topic), message(topic));
        write!(
            out,
            "    {record}:\n      name: {}\n      title: {title}\n      contentType: application/x-protobuf\n      bindings:\n        \
             kafka:\n          key:\n            type: string\n            description: {key}\n            examples: ['{example}']\n          \
             schemaIdLocation: payload\n          schemaIdPayloadEncoding: confluent\n          bindingVersion: 0.5.0\n      \
             payload:\n        schemaFormat: application/vnd.google.protobuf;version=3\n        schema: |\n",
            topic.record()
        )
        .unwrap();
        for text in topic.schema().lines() {
            let line = format!("          {text}");
            writeln!(out, "{}", line.trim_end()).unwrap();
        }
    }
    out
}

#[test]
fn the_document_has_every_topic_field_and_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/asyncapi.yaml");
    let document = document();
    if std::env::var_os("CTRIP_WRITE_ASYNCAPI").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = document.lines().zip(written.lines()).position(|(made, there)| made != there);
    let line = differs.unwrap_or_else(|| document.lines().count().min(written.lines().count()));
    assert!(
        document == written,
        "docs/asyncapi.yaml differs from what the topics make, first in line {}; CTRIP_WRITE_ASYNCAPI=1 writes it",
        line + 1
    );
}
