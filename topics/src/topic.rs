//! The topics: names, retention, partitions and schemas. A new topic begins here.

use std::fmt;

/// A topic of the pipeline, with its settings and schema. The runtime puts `TOPIC_PREFIX` in front of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Every block, added and removed.
    Blocks,
    /// Every block's logs.
    Logs,
    /// Each chain's cursor: how far ingest has come.
    Cursors,
    /// Transfers to issued addresses.
    Matches,
    /// Every address ever issued.
    Intents,
    /// Every event of every payment.
    Events,
    /// The latest state of each payment.
    State,
    /// Every transaction that sweeps, before it is sent, and what became of it.
    Sweeps,
    /// Records that a stage could not read.
    Quarantine,
}

/// What Kafka does with old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Deletes them after the retention time, if there is one.
    Delete {
        /// `retention.ms`; `None` keeps everything.
        retention_ms: Option<u64>,
    },
    /// Keeps the last record of each key.
    Compact,
}

/// The header of a block's record, and of those of its logs and matches, that names the transaction which wrote block and logs. Where Kafka
/// has lost the end of a topic, the same block may come again under the same sequence, with other content.
pub const WRITING: &str = "ctrip-writing";

/// The largest record of any topic. A block full of transfers has 80,000 logs, some 15 MB.
pub const MAX_MESSAGE_BYTES: u32 = 32 * 1024 * 1024;
/// The logs of a block that have more bytes are in several records of `chain.logs`. Each part but the last has at least half.
pub const MAX_LOGS_BYTES: usize = 16 * 1024 * 1024;
const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1000;
const TEN_MINUTES_MS: u64 = 10 * 60 * 1000;

impl Topic {
    /// All topics, in the order in which a payment passes through them.
    pub const ALL: [Self; 9] = [
        Self::Blocks,
        Self::Logs,
        Self::Cursors,
        Self::Intents,
        Self::Matches,
        Self::Events,
        Self::State,
        Self::Sweeps,
        Self::Quarantine,
    ];

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
            Self::Sweeps => "sweep.events",
            Self::Quarantine => "quarantine",
        }
    }

    /// The cleanup policy. Blocks and logs are large and can be fetched again; matches and events are small, and a rebuild
    /// reads their whole history.
    pub const fn cleanup(self) -> Cleanup {
        match self {
            Self::Blocks | Self::Logs => Cleanup::Delete { retention_ms: Some(WEEK_MS) },
            Self::Matches | Self::Events | Self::Sweeps | Self::Quarantine => Cleanup::Delete { retention_ms: None },
            Self::Cursors | Self::Intents | Self::State => Cleanup::Compact,
        }
    }

    /// `segment.ms` of a compacted topic whose keys change often: Kafka compacts what is no longer being written to, and by default
    /// begins a new file once a week.
    pub const fn segment_ms(self) -> Option<u64> {
        match self {
            Self::Cursors => Some(TEN_MINUTES_MS),
            Self::Blocks | Self::Logs | Self::Matches | Self::Intents | Self::Events | Self::State => None,
            Self::Sweeps | Self::Quarantine => None,
        }
    }

    /// The number of partitions. It never changes, since a key's hash decides its partition. The chain topics have the same
    /// number, since the detector joins blocks with logs partition by partition.
    pub const fn partitions(self) -> i32 {
        match self {
            Self::Blocks | Self::Logs | Self::Cursors | Self::Matches => 8,
            Self::Intents | Self::Events | Self::State | Self::Sweeps => 8,
            Self::Quarantine => 1,
        }
    }

    /// `max.message.bytes`.
    pub const fn max_message_bytes(self) -> u32 {
        MAX_MESSAGE_BYTES
    }

    /// The full name of the record's Protobuf message.
    pub const fn record(self) -> &'static str {
        match self {
            Self::Blocks => "ctrip.v1.BlockRecord",
            Self::Logs => "ctrip.v1.LogsRecord",
            Self::Cursors => "ctrip.v1.ChainCursor",
            Self::Matches => "ctrip.v1.MatchesRecord",
            Self::Intents => "ctrip.v1.PaymentIntent",
            Self::Events => "ctrip.v1.PaymentEvent",
            Self::State => "ctrip.v1.PaymentState",
            Self::Sweeps => "ctrip.v1.SweepEvent",
            Self::Quarantine => "ctrip.v1.Quarantined",
        }
    }

    /// The whole Protobuf schema. Its first message is the record.
    pub const fn schema(self) -> &'static str {
        match self {
            Self::Blocks => include_str!("../proto/block_record.proto"),
            Self::Logs => include_str!("../proto/logs_record.proto"),
            Self::Cursors => include_str!("../proto/chain_cursor.proto"),
            Self::Matches => include_str!("../proto/matches_record.proto"),
            Self::Intents => include_str!("../proto/payment_intent.proto"),
            Self::Events => include_str!("../proto/payment_event.proto"),
            Self::State => include_str!("../proto/payment_state.proto"),
            Self::Sweeps => include_str!("../proto/sweep_event.proto"),
            Self::Quarantine => include_str!("../proto/quarantined.proto"),
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
