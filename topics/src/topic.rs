use std::fmt;

/// A topic of the pipeline, with its settings and schema. `TOPIC_PREFIX` is put in front of the name by the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Every block, added and removed.
    Blocks,
    /// Every block's logs.
    Logs,
    /// Where ingest stands.
    Cursors,
    /// Transfers to issued addresses.
    Matches,
    /// Every address ever issued.
    Intents,
    /// The life of every payment.
    Events,
    /// The latest state of each payment.
    State,
    /// What could not be read.
    Quarantine,
}

/// What Kafka does with old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Deleted after a time, or kept for ever when there is none.
    Delete {
        /// `retention.ms`; `None` keeps everything.
        retention_ms: Option<u64>,
    },
    /// The last record of each key stays.
    Compact,
}

/// A block of nothing but transfers makes 80,000 logs, some 15 MB.
const MAX_MESSAGE_BYTES: u32 = 32 * 1024 * 1024;
const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1000;

impl Topic {
    /// All topics, in the order of a payment's way.
    pub const ALL: [Self; 8] =
        [Self::Blocks, Self::Logs, Self::Cursors, Self::Intents, Self::Matches, Self::Events, Self::State, Self::Quarantine];

    /// The public name, without prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocks => "chain.blocks",
            Self::Logs => "chain.logs",
            Self::Cursors => "chain.cursors",
            Self::Matches => "chain.matches",
            Self::Intents => "payment.intents",
            Self::Events => "payment.events",
            Self::State => "payment.state",
            Self::Quarantine => "quarantine",
        }
    }

    /// Retention policy. Blocks and logs are large and can be fetched again; matches and events are small and are the
    /// history that a rebuild reads.
    pub const fn cleanup(self) -> Cleanup {
        match self {
            Self::Blocks | Self::Logs => Cleanup::Delete { retention_ms: Some(WEEK_MS) },
            Self::Matches | Self::Events | Self::Quarantine => Cleanup::Delete { retention_ms: None },
            Self::Cursors | Self::Intents | Self::State => Cleanup::Compact,
        }
    }

    /// Partitions. A key stays where its hash put it, so a count never changes; the chain topics share one, since the
    /// detector joins blocks with logs partition by partition.
    pub const fn partitions(self) -> i32 {
        match self {
            Self::Blocks | Self::Logs | Self::Cursors | Self::Matches => 8,
            Self::Intents | Self::Events | Self::State => 8,
            Self::Quarantine => 1,
        }
    }

    /// `max.message.bytes`.
    pub const fn max_message_bytes(self) -> u32 {
        MAX_MESSAGE_BYTES
    }

    /// The full name of the record's message.
    pub const fn record(self) -> &'static str {
        match self {
            Self::Blocks => "ctrip.v1.BlockRecord",
            Self::Logs => "ctrip.v1.LogsRecord",
            Self::Cursors => "ctrip.v1.ChainCursor",
            Self::Matches => "ctrip.v1.MatchesRecord",
            Self::Intents => "ctrip.v1.PaymentIntent",
            Self::Events => "ctrip.v1.PaymentEvent",
            Self::State => "ctrip.v1.PaymentState",
            Self::Quarantine => "ctrip.v1.Quarantined",
        }
    }

    /// The Protobuf schema, whole: its first message is the record.
    pub const fn schema(self) -> &'static str {
        match self {
            Self::Blocks => include_str!("../proto/block_record.proto"),
            Self::Logs => include_str!("../proto/logs_record.proto"),
            Self::Cursors => include_str!("../proto/chain_cursor.proto"),
            Self::Matches => include_str!("../proto/matches_record.proto"),
            Self::Intents => include_str!("../proto/payment_intent.proto"),
            Self::Events => include_str!("../proto/payment_event.proto"),
            Self::State => include_str!("../proto/payment_state.proto"),
            Self::Quarantine => include_str!("../proto/quarantined.proto"),
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
