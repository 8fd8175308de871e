//! `ctrip tail`, the real binary, on a lab's topics.

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{Lab, Plan, eventually, records};
use runtime::kafka::Publisher;
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;
use topics::{Message as _, Topic, frame, wire};

fn refused(lab: &Lab, arguments: &[&str]) -> Result<String> {
    let output = lab.output(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && output.stdout.is_empty(), "{arguments:?} was taken: {said}");
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_what_happened_in_every_topic() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_ctrip, api) = lab.serve("up", "tail").await?;
    let (other, payment) = (api.coin(7).await?, api.coin(12_345_678_901_234_567).await?);
    let hash = lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;

    // One line per event of this payment and of no other, in order, and the program ends by itself after three.
    let filter = format!("payment_id={}", payment.id());
    let of_payment = ["tail", "payment.events", "--from", "beginning", "--filter", &filter, "--limit", "3"];
    let lines = lab.ctrip(&of_payment)?;
    let kinds = ["payment.created", "payment.detected", "payment.confirmed"];
    ensure!(lines.lines().count() == 3 && !lines.contains(other.id()), "{lines}");
    for (line, kind) in lines.lines().zip(kinds) {
        ensure!(line.contains(&format!("{}  {kind}  ", payment.id())), "expected {kind}: {line}");
        ensure!(line.contains("  amount=12345678901234567"), "{line}");
        ensure!(line.contains(&format!("address={}", payment.text("address").to_lowercase())), "{line}");
    }
    ensure!(lines.contains(&format!("transfer.transaction_hash={hash}")), "{lines}");

    // The same as JSON, with two filters, one line per record.
    let json = lab.ctrip(&[&of_payment[..6], &["--filter", "type=payment.confirmed", "--json", "--limit", "1"]].concat())?;
    let record: Value = serde_json::from_str(&json).context(json)?;
    let value = &record["value"];
    ensure!(record["topic"] == "payment.events" && record["key"] == payment.id() && value["sequence"] == 3, "{record}");
    ensure!(value["transfers"][0]["amount"] == "12345678901234567" && value["transfers"][0]["confirmed"] == true, "{record}");
    ensure!(value["block"]["hash"].as_str().is_some_and(|hash| hash.len() == 66), "{record}");

    // An intent that nobody can read, not even its key, is kept; the blocks go on.
    let (kafka, strange) = (lab.kafka().await?, ("no address".to_owned(), b"no intent".to_vec()));
    let publisher = Publisher::open(&kafka, Duration::from_secs(10))?;
    publisher.publish(Topic::Intents, &[strange]).await.into_iter().collect::<Result<()>>()?;
    // Nothing was swept here.
    let swept = wire::SweepEvent { r#type: "sweep.final".to_owned(), chain_id: 1, ..wire::SweepEvent::default() };
    let swept = (swept.key(), frame::encode(kafka.schema_id(Topic::Sweeps), &swept));
    publisher.publish(Topic::Sweeps, &[swept]).await.into_iter().collect::<Result<()>>()?;
    lab.node.pay(other.address()?, other.amount()?).await?;
    api.until(other.id(), "detected").await?;
    let kept: Vec<wire::Quarantined> = records(&lab).await?;
    let [kept] = kept.as_slice() else { bail!("{kept:?}") };
    ensure!(kept.source_topic == "payment.intents" && kept.key == "no address" && kept.value == "no intent", "{kept:?}");
    ensure!(kept.stage == "detector" && kept.cause.contains("expected an address"), "{kept:?}");

    // Every topic can be read.
    for topic in Topic::ALL {
        let shown = lab.ctrip(&["tail", topic.name(), "--from", "beginning", "--limit", "1", "--json=pretty"])?;
        let record: Value = serde_json::from_str(&shown).with_context(|| format!("{topic}: {shown}"))?;
        ensure!(
            record["topic"] == topic.name() && record["value"].is_object() && shown.lines().count() > 5,
            "{topic}: {shown}"
        );
        // It is found from its own time on, and from its own offset on.
        let (time, offset) = (record["time"].as_str().context("time")?, record["offset"].to_string());
        for from in [time, &offset, "1970-01-01"] {
            let line = lab.ctrip(&["tail", topic.name(), "--from", from, "--limit", "1"])?;
            ensure!(line.lines().count() == 1, "{topic} from {from}: {line}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_follows_from_the_end_and_stops_when_nobody_reads() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_ctrip, api) = lab.serve("up", "tail").await?;
    let before = api.coin(1).await?;
    lab.ctrip(&["tail", "payment.events", "--from", "beginning", "--limit", "1"])?;

    let mut tail = lab.spawn_with(&["tail", "payment.events", "--limit", "1"])?;
    eventually("tail to read", || async { Ok(tail.tail().contains("Ctrl-C ends it").then_some(())) }).await?;
    let after = api.coin(2).await?;
    ensure!(tail.end().await?.success(), "{}", tail.tail());
    ensure!(tail.tail().contains(after.id()) && !tail.tail().contains(before.id()), "{}", tail.tail());

    // Its reader goes away while there is nothing to write.
    let mut child = lab
        .command(&["tail", "payment.events", "--from", "beginning"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?);
    let mut text = String::new();
    for _ in 0..2 {
        lines.read_line(&mut text)?;
    }
    ensure!(text.contains(before.id()) && text.contains(after.id()), "{text}");
    drop(lines);
    let ended = eventually("tail to end", || {
        let ended = child.try_wait();
        async move { Ok(ended?) }
    });
    let status = ended.await;
    // Whatever the outcome, the process does not stay.
    let _ = child.kill();
    ensure!(status?.success(), "tail failed when its reader went away");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_says_what_there_is_when_asked_for_what_is_not() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let unknown = refused(&lab, &["tail", "payment.evnts"])?;
    ensure!(Topic::ALL.iter().all(|topic| unknown.contains(topic.name())), "{unknown}");
    let unknown = refused(&lab, &["tail", "payment.events", "--filter", "state=confirmed"])?;
    ensure!(unknown.contains("PaymentEvent has no field \"state\"") && unknown.contains("status, exception"), "{unknown}");
    let unknown = refused(&lab, &["tail", "payment.events", "--from", "yesterday"])?;
    ensure!(unknown.contains("beginning, end, an offset"), "{unknown}");
    let absent = refused(&lab, &["tail", "payment.events", "--topic-prefix", "nobodys."])?;
    ensure!(absent.contains("no topic nobodys.payment.events") && absent.contains("TOPIC_PREFIX"), "{absent}");
    Ok(())
}
