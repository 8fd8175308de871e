//! A record as text: a line that sums it up, or JSON with all its fields.

use super::fields::{Path, text};
use anyhow::Context as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value};
use serde::ser::{Error as _, Serialize, SerializeMap as _, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use topics::Topic;

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum JsonLayout {
    /// One line per record
    Line,
    /// With line breaks
    Pretty,
}

/// A record without its value.
pub struct Metadata {
    pub topic: Topic,
    pub partition: i32,
    pub offset: i64,
    /// When the record was written, in milliseconds of Unix time, if Kafka knows.
    pub time_ms: Option<i64>,
    pub key: String,
}

impl Metadata {
    fn time(&self) -> Result<Option<String>, time::error::Format> {
        let time = self.time_ms.and_then(|ms| OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok());
        time.map(|time| time.format(&Rfc3339)).transpose()
    }
}

/// The text of a record, without a final line break. A record without a value is a tombstone.
///
/// # Errors
/// When a time or a value can't be written, which does not happen with cTrip's schemas.
pub fn record(metadata: &Metadata, value: Option<&DynamicMessage>, json: Option<JsonLayout>) -> anyhow::Result<String> {
    let record = JsonRecord { metadata, value };
    match json {
        None => line(metadata, value),
        Some(JsonLayout::Line) => serde_json::to_string(&record).context("JSON"),
        Some(JsonLayout::Pretty) => serde_json::to_string_pretty(&record).context("JSON"),
    }
}

/// The fields that a line shows, in this order. Lists of messages show their length.
const fn summary(topic: Topic) -> &'static [&'static str] {
    match topic {
        Topic::Blocks => {
            &["kind", "number", "hash", "timestamp", "transactions", "internal_transfers", "credits", "witnessed_number"]
        }
        Topic::Logs => &["kind", "number", "hash", "logs"],
        Topic::Cursors => &["sequence", "window", "finalized_number", "bottom_number", "halted"],
        Topic::Matches => {
            &["kind", "number", "hash", "timestamp", "transfers", "transfers.to", "transfers.amount", "witnessed_number"]
        }
        Topic::Intents => &["payment_id", "amount", "token", "chain", "expires_at", "external_id"],
        Topic::Events => &[
            "type",
            "amount_received",
            "amount",
            "token",
            "chain",
            "address",
            "exception",
            "block.number",
            "transfer.amount",
            "transfer.transaction_hash",
            "external_id",
        ],
        Topic::State => {
            &["status", "exception", "amount_received", "amount", "token", "chain", "address", "sequence", "external_id"]
        }
        Topic::Sweeps => {
            &["type", "kind", "chain", "sender", "nonce", "transaction_hash", "cancels", "block.number", "fee", "moved.amount"]
        }
        Topic::Quarantine => &["stage", "partition", "offset", "cause"],
    }
}

fn line(metadata: &Metadata, value: Option<&DynamicMessage>) -> anyhow::Result<String> {
    let time = metadata.time()?.unwrap_or_else(|| "-".to_owned());
    let mut line = format!("{time}  {}", printable(&metadata.key));
    let Some(value) = value else {
        line.push_str("  deleted");
        return Ok(line);
    };
    for name in summary(metadata.topic) {
        let Ok(path) = Path::parse(&value.descriptor(), name) else {
            // A schema of another version may lack the field.
            continue;
        };
        let mut texts = Vec::new();
        path.walk(value, &mut |field, value| texts.push(text(field, value)));
        let counted = path.last().is_some_and(|field| field.is_list() && matches!(field.kind(), Kind::Message(_)));
        let shown = if counted { texts.len().to_string() } else { texts.join(",") };
        match *name {
            _ if shown.is_empty() => {}
            // These need no name.
            "type" | "kind" => line.push_str(&format!("  {}", printable(&shown))),
            name => line.push_str(&format!("  {name}={}", printable(&shown))),
        }
    }
    Ok(line)
}

/// Quotes text that could move a terminal's cursor or look like another field. Merchants and tokens choose some of it.
fn printable(text: &str) -> String {
    let plain = text.escape_debug().to_string() == text && !text.contains(char::is_whitespace);
    if plain { text.to_owned() } else { format!("{text:?}") }
}

struct JsonRecord<'a> {
    metadata: &'a Metadata,
    value: Option<&'a DynamicMessage>,
}

impl Serialize for JsonRecord<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Metadata { topic, partition, offset, time_ms: _, key } = self.metadata;
        let time = self.metadata.time().map_err(S::Error::custom)?;
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("topic", topic.name())?;
        map.serialize_entry("partition", partition)?;
        map.serialize_entry("offset", offset)?;
        map.serialize_entry("time", &time)?;
        map.serialize_entry("key", key)?;
        map.serialize_entry("value", &self.value.map(JsonFields))?;
        map.end()
    }
}

/// A message with all fields of its schema, in the order of their numbers. An absent field is null, so all records of a schema
/// have the same shape.
struct JsonFields<'a>(&'a DynamicMessage);

impl Serialize for JsonFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = self.0.descriptor();
        let mut map = serializer.serialize_map(Some(descriptor.fields().len()))?;
        for field in descriptor.fields() {
            map.serialize_key(field.name())?;
            if field.supports_presence() && !self.0.has_field(&field) {
                map.serialize_value(&None::<()>)?;
            } else {
                map.serialize_value(&JsonField(&field, &self.0.get_field(&field)))?;
            }
        }
        map.end()
    }
}

struct JsonField<'a>(&'a FieldDescriptor, &'a Value);

impl Serialize for JsonField<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(field, value) = self;
        match value {
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::I32(value) => serializer.serialize_i32(*value),
            Value::I64(value) => serializer.serialize_i64(*value),
            Value::U32(value) => serializer.serialize_u32(*value),
            Value::U64(value) => serializer.serialize_u64(*value),
            Value::F32(value) => serializer.serialize_f32(*value),
            Value::F64(value) => serializer.serialize_f64(*value),
            Value::Message(message) => JsonFields(message).serialize(serializer),
            Value::List(list) => serializer.collect_seq(list.iter().map(|value| JsonField(field, value))),
            Value::String(_) | Value::Bytes(_) | Value::EnumNumber(_) => serializer.serialize_str(&text(field, value)),
            // No schema of ours has a map, a newer one may.
            Value::Map(map) => {
                let entry = field.kind().as_message().map(prost_reflect::MessageDescriptor::map_entry_value_field);
                let entry = entry.ok_or_else(|| S::Error::custom("a map without a type"))?;
                serializer.collect_map(map.iter().map(|(key, value)| (map_key(key), JsonField(&entry, value))))
            }
        }
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::testing::{compile, descriptor};
    use topics::wire;

    fn metadata(topic: Topic, key: &str) -> Metadata {
        Metadata { topic, partition: 3, offset: 41, time_ms: Some(1_500), key: key.to_owned() }
    }

    fn dynamic(topic: Topic, record: &impl prost::Message) -> DynamicMessage {
        DynamicMessage::decode(descriptor(topic), record.encode_to_vec().as_slice()).unwrap()
    }

    #[test]
    fn a_line_says_what_happened() {
        let event = wire::PaymentEvent {
            r#type: "payment.detected".to_owned(),
            chain: "anvil".to_owned(),
            token: "DUSD".to_owned(),
            address: vec![0xab; 20].into(),
            amount: vec![0x0f, 0x42, 0x40].into(),
            block: Some(wire::payment_event::Block { number: 7, ..Default::default() }),
            external_id: "order 7\u{1b}[2J".to_owned(),
            ..Default::default()
        };
        let shown = record(&metadata(Topic::Events, "p1"), Some(&dynamic(Topic::Events, &event)), None).unwrap();
        let address = "ab".repeat(20);
        assert_eq!(
            shown,
            format!(
                "1970-01-01T00:00:01.5Z  p1  payment.detected  amount_received=0  amount=1000000  token=DUSD  chain=anvil  \
                 address=0x{address}  block.number=7  external_id=\"order 7\\u{{1b}}[2J\""
            )
        );
        let deleted = record(&metadata(Topic::State, "p1"), None, None).unwrap();
        assert_eq!(deleted, "1970-01-01T00:00:01.5Z  p1  deleted");
    }

    #[test]
    fn every_topics_line_names_fields_that_its_schema_has() {
        for topic in Topic::ALL {
            for name in summary(topic) {
                Path::parse(&descriptor(topic), name).unwrap();
            }
        }
    }

    #[test]
    fn json_has_every_field_of_every_topic() {
        for topic in Topic::ALL {
            let empty = DynamicMessage::new(descriptor(topic));
            let text = record(&metadata(topic, "k"), Some(&empty), Some(JsonLayout::Line)).unwrap();
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&json["topic"], &json["offset"], &json["key"]), (&topic.name().into(), &41.into(), &"k".into()));
            let value = json["value"].as_object().unwrap();
            for field in empty.descriptor().fields() {
                assert!(value.contains_key(field.name()), "{topic}: {}", field.full_name());
            }
        }
    }

    #[test]
    fn a_record_shows_the_fields_of_its_own_schema() {
        let newer = compile(&Topic::Cursors.schema().replacen('{', "{\n  string added = 1000;", 1));
        let mut value = DynamicMessage::new(newer);
        value.set_field_by_name("added", Value::String("new".to_owned()));
        let text = record(&metadata(Topic::Cursors, "1"), Some(&value), Some(JsonLayout::Line)).unwrap();
        assert!(text.contains(r#""added":"new""#), "{text}");

        let older = compile("syntax = \"proto3\"; package ctrip.v1; message ChainCursor { uint64 sequence = 2; }");
        let value = DynamicMessage::new(older);
        let text = record(&metadata(Topic::Cursors, "1"), Some(&value), Some(JsonLayout::Line)).unwrap();
        assert!(text.contains(r#""value":{"sequence":0}"#), "{text}");
        assert_eq!(
            record(&metadata(Topic::Cursors, "1"), Some(&value), None).unwrap(),
            "1970-01-01T00:00:01.5Z  1  sequence=0"
        );
    }

    #[test]
    fn json_tells_absent_from_zero_and_never_rounds_money() {
        let matched = wire::MatchesRecord {
            kind: wire::matches_record::Kind::Added.into(),
            safe_number: Some(0),
            transfers: vec![wire::matches_record::Transfer { amount: vec![0xff; 32].into(), ..Default::default() }],
            ..Default::default()
        };
        let value = dynamic(Topic::Matches, &matched);
        let text = record(&metadata(Topic::Matches, "1"), Some(&value), Some(JsonLayout::Pretty)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let value = &json["value"];
        assert_eq!((&value["kind"], &value["safe_number"]), (&"ADDED".into(), &0.into()));
        assert!(value["finalized_number"].is_null());
        let most = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!((&value["transfers"][0]["amount"], &value["transfers"][0]["token"]), (&most.into(), &"".into()));
    }
}
