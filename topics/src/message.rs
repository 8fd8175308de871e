//! Which record goes to which topic, under which key.

use crate::topic::Topic;
use crate::wire;

/// A record type with its topic and key.
pub trait Message: prost::Message + Default {
    const TOPIC: Topic;

    /// The Kafka key: UTF-8 text.
    fn key(&self) -> String;
}

macro_rules! message {
    ($record:ident, $topic:ident, |$self:ident| $key:expr) => {
        impl Message for wire::$record {
            const TOPIC: Topic = Topic::$topic;

            fn key(&self) -> String {
                let $self = self;
                $key
            }
        }
    };
}

message!(BlockRecord, Blocks, |r| r.chain_id.to_string());
message!(LogsRecord, Logs, |r| r.chain_id.to_string());
// Of the cursor itself; the parts of its window have keys of their own.
message!(ChainCursor, Cursors, |r| r.chain_id.to_string());
message!(MatchesRecord, Matches, |r| r.chain_id.to_string());
message!(PaymentIntent, Intents, |r| alloy::hex::encode_prefixed(&r.address));
message!(PaymentEvent, Events, |r| r.payment_id.clone());
message!(PaymentState, State, |r| r.payment_id.clone());
message!(SweepEvent, Sweeps, |r| format!("{}/{}", r.chain_id, r.sweep_id));
message!(Quarantined, Quarantine, |r| r.source_topic.clone());
