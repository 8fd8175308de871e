//! `ctrip tail`: a topic, as people read it. It knows the schemas by their descriptors alone, so a new field needs no code.
//!
//! It ends at `--limit`, or when nobody reads its output any more; Ctrl-C ends it as it ends any program. It commits nothing
//! and joins no group, so that it disturbs nobody, and it asks no registry: records of a newer program show what this one knows.

mod fields;
mod show;

use anyhow::{Context as _, bail};
use fields::Filter;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use runtime::Settings;
use runtime::kafka::{Follower, Start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use show::{Place, Shape};
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write as _};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use topics::{Topic, frame};

/// How often to look whether somebody still reads what is printed, while there is nothing to print.
const LOOK: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct Tail {
    /// payment.events, payment.state, payment.intents, chain.blocks, chain.logs, chain.matches, chain.cursors or quarantine;
    /// TOPIC_PREFIX is put in front
    topic: String,
    /// Where to begin: `beginning`, `end`, an offset (of every partition), or a time as in 2026-01-31T12:00:00Z or 2026-01-31
    #[arg(long, value_name = "PLACE", default_value = "end", value_parser = start)]
    from: Start,
    /// Only records with this in a field, all of them if given more than once: status=confirmed, transfer.token=USDT. Of a list,
    /// one element is enough
    #[arg(long = "filter", value_name = "FIELD=VALUE")]
    filters: Vec<String>,
    /// A JSON object a record, whole; --json=pretty for one over many lines
    #[arg(long, value_name = "SHAPE", num_args = 0..=1, require_equals = true, default_missing_value = "line")]
    json: Option<Shape>,
    /// End after so many records
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Prints records until there have been enough, or nobody listens.
///
/// # Errors
/// When the topic, a field or the place is none, and when Kafka can't be read.
pub fn run(settings: &Settings, tail: &Tail) -> anyhow::Result<()> {
    let topic = topic(&tail.topic, &settings.topic_prefix)?;
    let record = descriptor(topic)?;
    let filters: Vec<Filter> = tail
        .filters
        .iter()
        .map(|text| Filter::parse(&record, text))
        .collect::<Result<_, _>>()
        .with_context(|| format!("--filter on {topic}"))?;
    let follower = Follower::open(settings, topic, tail.from)?;
    tracing::info!("reading {}{topic}, Ctrl-C ends it", settings.topic_prefix);
    let mut printer =
        Printer { topic, record, filters, json: tail.json, left: tail.limit, out: BufWriter::new(io::stdout().lock()) };
    match printer.follow(&follower) {
        // `head` has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        outcome => outcome,
    }
}

struct Printer {
    topic: Topic,
    record: MessageDescriptor,
    filters: Vec<Filter>,
    json: Option<Shape>,
    left: Option<u64>,
    out: BufWriter<StdoutLock<'static>>,
}

impl Printer {
    fn follow(&mut self, follower: &Follower) -> anyhow::Result<()> {
        while self.left != Some(0) {
            let mut record = follower.poll(Duration::ZERO)?;
            if record.is_none() {
                self.out.flush()?;
                if closed(self.out.get_ref()) {
                    return Ok(());
                }
                record = follower.poll(LOOK)?;
            }
            if let Some(record) = record {
                self.print(&record)?;
            }
        }
        Ok(self.out.flush()?)
    }

    fn print(&mut self, record: &runtime::kafka::Record<'_>) -> anyhow::Result<()> {
        let place = Place {
            topic: self.topic,
            partition: record.partition(),
            offset: record.offset(),
            time: time_of(record.timestamp_ms()),
            key: String::from_utf8_lossy(record.key()).into_owned(),
        };
        let value = match self.decode(record.payload()) {
            Ok(value) => value,
            Err(error) => {
                tracing::warn!(
                    "partition {}, offset {}: no record of {}: {error:#}",
                    place.partition,
                    place.offset,
                    self.topic
                );
                return Ok(());
            }
        };
        let wanted = match &value {
            Some(value) => self.filters.iter().all(|filter| filter.matches(value)),
            None => self.filters.is_empty(),
        };
        if wanted {
            writeln!(self.out, "{}", show::record(&place, value.as_ref(), self.json)?)?;
            self.left = self.left.map(|left| left - 1);
        }
        Ok(())
    }

    /// None is a tombstone.
    fn decode(&self, bytes: &[u8]) -> anyhow::Result<Option<DynamicMessage>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        Ok(Some(DynamicMessage::decode(self.record.clone(), frame::payload(bytes)?)?))
    }
}

/// Whether the other end of a pipe is gone, which a program that has nothing to write does not notice.
fn closed(out: &StdoutLock<'_>) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let [fd] = match poll(&mut fds, Some(&now)) {
        Ok(_) => fds,
        Err(_) => return false,
    };
    fd.revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

fn descriptor(topic: Topic) -> anyhow::Result<MessageDescriptor> {
    let pool = DescriptorPool::decode(topics::DESCRIPTORS).context("the schemas' descriptors")?;
    pool.get_message_by_name(topic.record()).with_context(|| format!("no message {} in the schemas", topic.record()))
}

/// By its public name, or as it is called here.
fn topic(name: &str, prefix: &str) -> anyhow::Result<Topic> {
    let bare = name.strip_prefix(prefix).unwrap_or(name);
    let found = Topic::ALL.into_iter().find(|topic| [name, bare].contains(&topic.name()));
    let Some(topic) = found else {
        bail!("there is no topic {name:?}; expected one of {}", Topic::ALL.map(Topic::name).join(", "));
    };
    Ok(topic)
}

fn time_of(ms: Option<i64>) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms?) * 1_000_000).ok()
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "beginning" => return Ok(Start::Beginning),
        "end" => return Ok(Start::End),
        _ => {}
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Start::Offset).map_err(|_| format!("offset {text} is more than Kafka counts"));
    }
    let midnight = format!("{text}T00:00:00Z");
    let time = OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(&midnight, &Rfc3339));
    let time = time.map_err(|_| {
        "expected beginning, end, an offset such as 1200, or a time such as 2026-01-31T12:00:00Z or 2026-01-31".to_owned()
    })?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).map(Start::Time).map_err(|_| "no such time".to_owned())
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
