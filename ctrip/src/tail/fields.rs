//! Fields by name, for filters and for the line of a record. A value has the same text in both, and in JSON.

use anyhow::{Context as _, bail};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value};
use topics::Amount;

/// The path of a field: `status`, or `transfer.token` within a nested message.
#[derive(Debug)]
pub struct Path(Vec<FieldDescriptor>);

impl Path {
    /// # Errors
    /// When there is no such field; the error names those that exist.
    pub fn parse(record: &MessageDescriptor, text: &str) -> anyhow::Result<Self> {
        let mut path: Vec<FieldDescriptor> = Vec::new();
        let mut message = record.clone();
        for name in text.split('.') {
            if let Some(last) = path.last() {
                let Kind::Message(inner) = last.kind() else {
                    bail!("{} has no fields of its own, so there is no {text:?}", last.name());
                };
                message = inner;
            }
            let Some(field) = message.get_field_by_name(name) else {
                bail!("{} has no field {name:?}; it has {}", message.name(), names(&message));
            };
            path.push(field);
        }
        Ok(Self(path))
    }

    /// The field at the end of the path.
    pub fn last(&self) -> Option<&FieldDescriptor> {
        self.0.last()
    }

    /// Shows every value at the end of the path; none where an optional field or a message on the way is absent.
    pub fn walk(&self, message: &DynamicMessage, see: &mut dyn FnMut(&FieldDescriptor, &Value)) {
        walk(message, &self.0, see);
    }
}

fn walk(message: &DynamicMessage, path: &[FieldDescriptor], see: &mut dyn FnMut(&FieldDescriptor, &Value)) {
    let Some((field, rest)) = path.split_first() else {
        return;
    };
    if field.supports_presence() && !message.has_field(field) {
        return;
    }
    let mut enter = |value: &Value| match value {
        Value::Message(inner) if !rest.is_empty() => walk(inner, rest, see),
        value => see(field, value),
    };
    match message.get_field(field).as_ref() {
        Value::List(list) => list.iter().for_each(enter),
        value => enter(value),
    }
}

fn names(message: &MessageDescriptor) -> String {
    let names: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
    names.join(", ")
}

/// `FIELD=VALUE`.
#[derive(Debug)]
pub struct Filter {
    field: String,
    value: String,
}

impl Filter {
    /// # Errors
    /// When the text has another form, or the record has no such field, or the field is a message.
    pub fn parse(record: &MessageDescriptor, text: &str) -> anyhow::Result<Self> {
        let (field, value) = text.split_once('=').with_context(|| format!("expected FIELD=VALUE, got {text:?}"))?;
        let path = Path::parse(record, field)?;
        if let Some(Kind::Message(inner)) = path.last().map(FieldDescriptor::kind) {
            bail!("{field} is a message; choose {field}.FIELD of {}", names(&inner));
        }
        Ok(Self { field: field.to_owned(), value: value.to_owned() })
    }

    /// Whether the field has the value, or one of its values is it. A record whose schema lacks the field does not match. Hex
    /// and names of enums match in either case.
    pub fn matches(&self, message: &DynamicMessage) -> bool {
        let Ok(path) = Path::parse(&message.descriptor(), &self.field) else {
            return false;
        };
        let mut found = false;
        path.walk(message, &mut |field, value| {
            let text = text(field, value);
            found |= match value {
                Value::Bytes(_) | Value::EnumNumber(_) => text.eq_ignore_ascii_case(&self.value),
                _ => text == self.value,
            };
        });
        found
    }
}

/// A single value as text: money in base units, other bytes as hex, enums by name. Empty bytes are an empty text.
pub fn text(field: &FieldDescriptor, value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        Value::String(value) => value.clone(),
        Value::EnumNumber(number) => {
            let named = field.kind().as_enum().and_then(|kind| kind.get_value(*number).map(|value| value.name().to_owned()));
            named.unwrap_or_else(|| number.to_string())
        }
        Value::Bytes(bytes) => match Amount::from_wire(bytes) {
            Ok(amount) if is_amount(field) => amount.to_string(),
            _ if bytes.is_empty() => String::new(),
            _ => topics::hex(bytes),
        },
        // Not a single value.
        Value::Message(_) | Value::List(_) | Value::Map(_) => String::new(),
    }
}

/// Whether bytes are money, which the schemas tell in comments only.
fn is_amount(field: &FieldDescriptor) -> bool {
    match field.name() {
        "amount" | "amount_received" | "underpaid_tolerance" | "overpaid_tolerance" | "total" => true,
        "effective_gas_price" | "gas_price" | "fee" => true,
        "value" => field.parent_message().name() != "Quarantined",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::testing::{compile, descriptor};
    use topics::{Topic, wire};

    fn dynamic(topic: Topic, record: &impl prost::Message) -> DynamicMessage {
        DynamicMessage::decode(descriptor(topic), record.encode_to_vec().as_slice()).unwrap()
    }

    fn event() -> DynamicMessage {
        let transfer = |token: &str| wire::payment_event::Transfer {
            token: token.to_owned(),
            amount: vec![1, 0].into(),
            transaction_hash: vec![0xab; 32].into(),
            ..Default::default()
        };
        let event = wire::PaymentEvent {
            r#type: "payment.detected".to_owned(),
            status: "detected".to_owned(),
            chain_id: 137,
            amount: vec![0x0f, 0x42, 0x40].into(),
            transfers: vec![transfer("USDC"), transfer("USDT")],
            ..Default::default()
        };
        dynamic(Topic::Events, &event)
    }

    fn matches(filter: &str) -> bool {
        Filter::parse(&descriptor(Topic::Events), filter).unwrap().matches(&event())
    }

    #[test]
    fn a_filter_compares_with_what_is_shown() {
        for filter in [
            "type=payment.detected",
            "chain_id=137",
            "amount=1000000",
            "amount_received=0",
            "exception=",
            "transfers.token=USDT",
            "transfers.amount=256",
            &format!("transfers.transaction_hash=0x{}", "AB".repeat(32)),
        ] {
            assert!(matches(filter), "{filter}");
        }
        // The event is about no transfer, so no field of it has any value.
        for filter in ["type=payment", "chain_id=1", "amount=0", "transfers.token=DAI", "transfer.token=", "status=Detected"] {
            assert!(!matches(filter), "{filter}");
        }
    }

    #[test]
    fn a_filter_that_can_match_nothing_is_refused_and_says_what_there_is() {
        let refused = |filter| Filter::parse(&descriptor(Topic::Events), filter).unwrap_err().to_string();
        assert!(refused("status").contains("FIELD=VALUE"));
        let unknown = refused("state=confirmed");
        assert!(unknown.contains("\"state\"") && unknown.contains("status") && unknown.contains("occurred_at"), "{unknown}");
        let unknown = refused("transfer.to=0x00");
        assert!(unknown.contains("Transfer has no field \"to\"") && unknown.contains("transaction_hash"), "{unknown}");
        assert!(refused("transfer=1").contains("transfer.FIELD"));
        assert!(refused("status.x=1").contains("no fields of its own"));
    }

    #[test]
    fn a_record_whose_schema_lacks_the_field_does_not_match() {
        let newer = compile(&Topic::Events.schema().replacen('{', "{\n  string added = 1000;", 1));
        let filter = Filter::parse(&newer, "added=").unwrap();
        assert!(filter.matches(&DynamicMessage::new(newer)));
        assert!(!filter.matches(&event()));
    }

    /// A schema does not tell which bytes are money: a new field has to be put on one side.
    #[test]
    fn every_field_of_bytes_is_known_as_money_or_not() {
        let mut money = Vec::new();
        for message in
            Topic::ALL.into_iter().flat_map(|topic| descriptor(topic).parent_pool().all_messages().collect::<Vec<_>>())
        {
            for field in message.fields() {
                assert!(!field.is_map(), "{}: maps are not shown", field.full_name());
                let other = [
                    "address",
                    "data",
                    "from",
                    "hash",
                    "key",
                    "parent_hash",
                    "receipts_root",
                    "sender",
                    "to",
                    "token",
                    "token_address",
                    "topics",
                    "block_hash",
                    "transaction_hash",
                    "transactions_root",
                ];
                if field.kind() == Kind::Bytes && !other.contains(&field.name()) {
                    money.push((field.full_name().trim_start_matches("ctrip.v1.").to_owned(), is_amount(&field)));
                }
            }
        }
        money.sort();
        let expected = [
            ("BlockRecord.Credit.value", true),
            ("BlockRecord.InternalTransfer.value", true),
            ("BlockRecord.Transaction.effective_gas_price", true),
            ("BlockRecord.Transaction.value", true),
            ("ChainCursor.Block.unagreed_content", false),
            ("LogsRecord.transactions", false),
            ("MatchesRecord.Transfer.amount", true),
            ("PaymentEvent.Settlement.fee", true),
            ("PaymentEvent.Summary.amount", true),
            ("PaymentEvent.Transfer.amount", true),
            ("PaymentEvent.amount", true),
            ("PaymentEvent.amount_received", true),
            ("PaymentIntent.amount", true),
            ("PaymentIntent.overpaid_tolerance", true),
            ("PaymentIntent.request_hash", false),
            ("PaymentIntent.underpaid_tolerance", true),
            ("PaymentState.Transfer.amount", true),
            ("PaymentState.amount", true),
            ("PaymentState.amount_received", true),
            ("Quarantined.value", false),
            ("SweepEvent.Moved.amount", true),
            ("SweepEvent.Moved.total", true),
            ("SweepEvent.fee", true),
            ("SweepEvent.gas_price", true),
            ("SweepEvent.raw", false),
            ("SweepEvent.request_hash", false),
        ];
        assert_eq!(money, expected.map(|(name, money)| (name.to_owned(), money)));
    }
}
