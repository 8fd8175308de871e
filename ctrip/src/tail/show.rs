//! A record as text: a line that says what happened, or all of it as JSON.

use super::fields::{Path, text};
use anyhow::Context as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value};
use serde::ser::{Error as _, Serialize, SerializeMap as _, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use topics::Topic;

/// How JSON is laid out.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Shape {
    /// A line a record
    Line,
    /// With line breaks
    Pretty,
}

/// Where a record is.
pub struct Place {
    /// Topic.
    pub topic: Topic,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// When it was written, if Kafka knows.
    pub time: Option<OffsetDateTime>,
    /// Key.
    pub key: String,
}

/// Without a line's end; no value is a tombstone.
///
/// # Errors
/// When a time or a value can't be written, which no schema of ours leads to.
pub fn record(place: &Place, value: Option<&DynamicMessage>, json: Option<Shape>) -> anyhow::Result<String> {
    let whole = Whole { place, value };
    match json {
        None => line(place, value),
        Some(Shape::Line) => serde_json::to_string(&whole).context("JSON"),
        Some(Shape::Pretty) => serde_json::to_string_pretty(&whole).context("JSON"),
    }
}

/// What a line shows of a record, in this order. Of a list, how many.
const fn summary(topic: Topic) -> &'static [&'static str] {
    match topic {
        Topic::Blocks => &["kind", "number", "hash", "timestamp", "transactions", "internal_transfers", "credits"],
        Topic::Logs => &["kind", "number", "hash", "logs"],
        Topic::Cursors => &["sequence", "window", "finalized_number", "halted"],
        Topic::Matches => &["kind", "number", "hash", "timestamp", "transfers", "transfers.to", "transfers.amount"],
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
        Topic::Quarantine => &["stage", "partition", "offset", "cause"],
    }
}

fn line(place: &Place, value: Option<&DynamicMessage>) -> anyhow::Result<String> {
    let time = place.time.map(|time| time.format(&Rfc3339)).transpose()?.unwrap_or_else(|| "-".to_owned());
    let mut line = format!("{time}  {}", printable(&place.key));
    let Some(value) = value else {
        line.push_str("  deleted");
        return Ok(line);
    };
    for name in summary(place.topic) {
        let path = Path::parse(&value.descriptor(), name)?;
        let mut texts = Vec::new();
        path.walk(value, &mut |field, value| texts.push(text(field, value)));
        let counted = path.last().is_some_and(|field| field.is_list() && matches!(field.kind(), Kind::Message(_)));
        let shown = if counted { texts.len().to_string() } else { texts.join(",") };
        match *name {
            _ if shown.is_empty() => {}
            // What it is needs no name.
            "type" | "kind" => line.push_str(&format!("  {}", printable(&shown))),
            name => line.push_str(&format!("  {name}={}", printable(&shown))),
        }
    }
    Ok(line)
}

/// Texts of merchants and of tokens end up here: what could move a terminal's cursor, or look like another field, is quoted.
fn printable(text: &str) -> String {
    let plain = text.escape_debug().to_string() == text && !text.contains(char::is_whitespace);
    if plain { text.to_owned() } else { format!("{text:?}") }
}

struct Whole<'a> {
    place: &'a Place,
    value: Option<&'a DynamicMessage>,
}

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Place { topic, partition, offset, time, key } = self.place;
        let time = time.map(|time| time.format(&Rfc3339)).transpose().map_err(S::Error::custom)?;
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("topic", topic.name())?;
        map.serialize_entry("partition", partition)?;
        map.serialize_entry("offset", offset)?;
        map.serialize_entry("time", &time)?;
        map.serialize_entry("key", key)?;
        map.serialize_entry("value", &self.value.map(Fields))?;
        map.end()
    }
}

/// A message with all its fields, in the order of their numbers: what is absent is null, so every record has the same shape.
struct Fields<'a>(&'a DynamicMessage);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = self.0.descriptor();
        let mut map = serializer.serialize_map(Some(descriptor.fields().len()))?;
        for field in descriptor.fields() {
            map.serialize_key(field.name())?;
            if field.supports_presence() && !self.0.has_field(&field) {
                map.serialize_value(&None::<()>)?;
            } else {
                map.serialize_value(&Field(&field, &self.0.get_field(&field)))?;
            }
        }
        map.end()
    }
}

struct Field<'a>(&'a FieldDescriptor, &'a Value);

impl Serialize for Field<'_> {
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
            Value::Message(message) => Fields(message).serialize(serializer),
            Value::List(list) => serializer.collect_seq(list.iter().map(|value| Field(field, value))),
            Value::String(_) | Value::Bytes(_) | Value::EnumNumber(_) => serializer.serialize_str(&text(field, value)),
            Value::Map(_) => Err(S::Error::custom("a map, which no schema of ours has")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::{descriptor, time_of};
    use topics::wire;

    fn place(topic: Topic, key: &str) -> Place {
        Place { topic, partition: 3, offset: 41, time: time_of(Some(1_500)), key: key.to_owned() }
    }

    fn dynamic(topic: Topic, record: &impl prost::Message) -> DynamicMessage {
        DynamicMessage::decode(descriptor(topic).unwrap(), record.encode_to_vec().as_slice()).unwrap()
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
        let shown = record(&place(Topic::Events, "p1"), Some(&dynamic(Topic::Events, &event)), None).unwrap();
        let address = "ab".repeat(20);
        assert_eq!(
            shown,
            format!(
                "1970-01-01T00:00:01.5Z  p1  payment.detected  amount_received=0  amount=1000000  token=DUSD  chain=anvil  \
                 address=0x{address}  block.number=7  external_id=\"order 7\\u{{1b}}[2J\""
            )
        );
        let deleted = record(&place(Topic::State, "p1"), None, None).unwrap();
        assert_eq!(deleted, "1970-01-01T00:00:01.5Z  p1  deleted");
    }

    #[test]
    fn every_topics_line_names_fields_that_its_schema_has() {
        for topic in Topic::ALL {
            for name in summary(topic) {
                Path::parse(&descriptor(topic).unwrap(), name).unwrap();
            }
        }
    }

    #[test]
    fn json_has_every_field_of_every_topic() {
        for topic in Topic::ALL {
            let empty = DynamicMessage::new(descriptor(topic).unwrap());
            let text = record(&place(topic, "k"), Some(&empty), Some(Shape::Line)).unwrap();
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&json["topic"], &json["offset"], &json["key"]), (&topic.name().into(), &41.into(), &"k".into()));
            let value = json["value"].as_object().unwrap();
            for field in empty.descriptor().fields() {
                assert!(value.contains_key(field.name()), "{topic}: {}", field.full_name());
            }
        }
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
        let text = record(&place(Topic::Matches, "1"), Some(&value), Some(Shape::Pretty)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let value = &json["value"];
        assert_eq!((&value["kind"], &value["safe_number"]), (&"ADDED".into(), &0.into()));
        assert!(value["finalized_number"].is_null());
        let most = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!((&value["transfers"][0]["amount"], &value["transfers"][0]["token"]), (&most.into(), &"".into()));
    }
}
