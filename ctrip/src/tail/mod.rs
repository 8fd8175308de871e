//! `ctrip tail`: a topic as text for people, or as JSON.
//!
//! - A record is decoded with the schema that its frame names, which the registry has. So records of a newer program show
//!   their new fields, and records of an older one only those that they had.
//! - `--filter` names fields of the topic's latest schema.
//! - It joins no group and commits no offset, so it disturbs no consumer.
//! - It ends at `--limit`, or when the reader of its output is gone. Ctrl-C ends it like any program.

mod fields;
mod show;
#[cfg(test)]
mod testing;

use anyhow::{Context as _, bail};
use fields::Filter;
use prost_reflect::DynamicMessage;
use runtime::kafka::{Record, Start, TopicReader};
use runtime::{Registry, RegistryError, Settings};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use show::{JsonLayout, Metadata};
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write as _};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use topics::Topic;

/// How long a poll waits for a record, and so how often an idle `tail` checks that its output still has a reader.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct Tail {
    /// payment.events, payment.state, payment.intents, chain.blocks, chain.logs, chain.matches, chain.cursors, sweep.events or
    /// quarantine; TOPIC_PREFIX is added
    topic: String,
    /// Where to start: `beginning`, `end`, an offset (of every partition), or a time such as 2026-01-31T12:00:00Z or 2026-01-31
    #[arg(long, value_name = "PLACE", default_value = "end", value_parser = start)]
    from: Start,
    /// Only records whose field has this value: status=confirmed, transfer.token=USDT. A list matches if one element does.
    /// Repeated filters must all match
    #[arg(long = "filter", value_name = "FIELD=VALUE")]
    filters: Vec<String>,
    /// Print each record as a JSON object with all its fields, on one line; --json=pretty spreads it over many
    #[arg(long, value_name = "LAYOUT", num_args = 0..=1, require_equals = true, default_missing_value = "line")]
    json: Option<JsonLayout>,
    /// Exit after this many records
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Prints records until `--limit`, or until the reader of the output is gone.
///
/// # Errors
/// When there is no such topic or field, and when Kafka or the registry fails.
pub fn run(settings: &Settings, tail: &Tail) -> anyhow::Result<()> {
    let topic = topic(&tail.topic, &settings.topic_prefix)?;
    let reader = TopicReader::open(settings, topic, tail.from)?;
    let registry = Registry::new(settings)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the async runtime")?;
    let filters: Vec<Filter> = if tail.filters.is_empty() {
        Vec::new()
    } else {
        let latest = tokio.block_on(registry.latest(topic)).with_context(|| format!("the schema of {topic}"))?;
        let parsed = tail.filters.iter().map(|text| Filter::parse(&latest, text));
        parsed.collect::<Result<_, _>>().with_context(|| format!("--filter on {topic}"))?
    };
    tracing::info!("reading {}, Ctrl-C ends it", settings.topic_name(topic));
    let mut printer = Printer {
        topic,
        registry,
        tokio,
        filters,
        json: tail.json,
        left: tail.limit,
        out: BufWriter::new(io::stdout().lock()),
    };
    match printer.follow(&reader) {
        // As when `head` has its lines.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        outcome => outcome,
    }
}

struct Printer {
    topic: Topic,
    registry: Registry,
    tokio: tokio::runtime::Runtime,
    filters: Vec<Filter>,
    json: Option<JsonLayout>,
    left: Option<u64>,
    out: BufWriter<StdoutLock<'static>>,
}

impl Printer {
    fn follow(&mut self, reader: &TopicReader) -> anyhow::Result<()> {
        while self.left != Some(0) {
            let mut record = reader.poll(Duration::ZERO)?;
            if record.is_none() {
                self.out.flush()?;
                if closed(self.out.get_ref()) {
                    return Ok(());
                }
                record = reader.poll(POLL_TIMEOUT)?;
            }
            if let Some(record) = record {
                self.print(&record)?;
            }
        }
        Ok(self.out.flush()?)
    }

    fn print(&mut self, record: &Record<'_>) -> anyhow::Result<()> {
        let metadata = Metadata {
            topic: self.topic,
            partition: record.partition(),
            offset: record.offset(),
            time_ms: record.timestamp_ms(),
            key: String::from_utf8_lossy(record.key()).into_owned(),
        };
        let value = match self.decode(record.payload()) {
            Ok(value) => value,
            Err(RegistryError::Permanent(cause)) => {
                let Metadata { partition, offset, .. } = metadata;
                tracing::warn!("skipping {} partition {partition} offset {offset}: {cause}", self.topic);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let wanted = match &value {
            Some(value) => self.filters.iter().all(|filter| filter.matches(value)),
            None => self.filters.is_empty(),
        };
        if wanted {
            writeln!(self.out, "{}", show::record(&metadata, value.as_ref(), self.json)?)?;
            self.left = self.left.map(|left| left - 1);
        }
        Ok(())
    }

    /// None is a tombstone.
    fn decode(&self, value: &[u8]) -> Result<Option<DynamicMessage>, RegistryError> {
        if value.is_empty() { Ok(None) } else { self.tokio.block_on(self.registry.decode(value)).map(Some) }
    }
}

/// Whether the other end of a pipe is gone. A program that writes nothing does not notice otherwise.
fn closed(out: &StdoutLock<'_>) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let [fd] = match poll(&mut fds, Some(&now)) {
        Ok(_) => fds,
        Err(_) => return false,
    };
    fd.revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// A topic by its public name, or by its name with `TOPIC_PREFIX`.
fn topic(name: &str, prefix: &str) -> anyhow::Result<Topic> {
    let bare = name.strip_prefix(prefix).unwrap_or(name);
    let found = Topic::ALL.into_iter().find(|topic| [name, bare].contains(&topic.name()));
    let Some(topic) = found else {
        bail!("there is no topic {name:?}; expected one of {}", Topic::ALL.map(Topic::name).join(", "));
    };
    Ok(topic)
}

/// Parses `--from`.
fn start(text: &str) -> Result<Start, String> {
    match text {
        "beginning" => return Ok(Start::Beginning),
        "end" => return Ok(Start::End),
        _ => {}
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Start::Offset).map_err(|_| format!("offset {text} is too large"));
    }
    let midnight = format!("{text}T00:00:00Z");
    let time = OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(&midnight, &Rfc3339));
    let time = time.map_err(|_| {
        "expected beginning, end, an offset such as 1200, or a time such as 2026-01-31T12:00:00Z or 2026-01-31".to_owned()
    })?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).map(Start::Time).map_err(|_| "the time is out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_word_an_offset_or_a_time() {
        assert_eq!(start("beginning"), Ok(Start::Beginning));
        assert_eq!(start("end"), Ok(Start::End));
        assert_eq!(start("1200"), Ok(Start::Offset(1200)));
        assert_eq!(start("1970-01-01T00:00:01.5Z"), Ok(Start::Time(1500)));
        assert_eq!(start("1970-01-02"), Ok(Start::Time(86_400_000)));
        for wrong in ["", "-1", "start", "12:00", "99999999999999999999"] {
            assert!(start(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_topic_is_known_with_and_without_its_prefix() {
        assert_eq!(topic("payment.events", "lab.").unwrap(), Topic::Events);
        assert_eq!(topic("lab.payment.events", "lab.").unwrap(), Topic::Events);
        let refused = topic("payment.event", "lab.").unwrap_err().to_string();
        assert!(Topic::ALL.iter().all(|topic| refused.contains(topic.name())), "{refused}");
    }
}
