//! Kafka's ACLs as docs/consuming.md documents them: the test runs its commands as they stand, then tries everything else.

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{Lab, Plan, events, eventually, root};
use rdkafka::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use topics::Topic;

const PATIENCE: Duration = Duration::from_secs(30);
const PARTITIONS: i32 = Topic::Events.partitions();

/// Credentials of `user`; the local stack knows three users.
fn login(user: &str) -> [(&'static str, String); 4] {
    [
        ("security.protocol", "SASL_PLAINTEXT".to_owned()),
        ("sasl.mechanisms", "PLAIN".to_owned()),
        ("sasl.username", user.to_owned()),
        ("sasl.password", user.to_owned()),
    ]
}

fn client(lab: &Lab, user: &str) -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", lab.stack.get("KAFKA_SASL_BROKERS")?);
    for (name, value) in login(user) {
        config.set(name, value);
    }
    Ok(config)
}

/// Runs the commands of the page with the stack's `kafka-acls.sh`: those for the forwarder, then those for each merchant and
/// its user.
fn run_documented(lab: &Lab, folder: &Path, merchants: &[(&str, &str)]) -> Result<()> {
    let page = std::fs::read_to_string(root().join("docs/consuming.md"))?;
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let blocks: Vec<&str> = blocks.into_iter().filter(|block| block.contains("kafka-acls.sh")).collect();
    let [forwarders, merchants_block] = blocks.as_slice() else {
        bail!("{} blocks of kafka-acls.sh in docs/consuming.md", blocks.len());
    };
    let mut commands = vec![((*forwarders).to_owned(), "")];
    commands.extend(merchants.iter().map(|(user, merchant)| (merchants_block.replace("User:shop", user), *merchant)));
    let tools = lab.stack.kafka_tools(folder)?;
    for (block, merchant) in commands {
        let output = Command::new("sh")
            .args(["-euc", &block])
            .envs(&lab.env)
            .envs(tools.iter().cloned())
            .env("MERCHANT", merchant)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        // The tool exits with 0 even when it failed.
        let commands = block.lines().filter(|line| line.starts_with("$add ")).count();
        ensure!(
            output.status.success() && said.matches("Adding ACLs").count() == commands,
            "{block}\n{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Reads a topic to its end as `user` in `group`; returns the records' keys, or Kafka's refusal.
fn read(lab: &Lab, user: &str, group: &str, topic: &str) -> Result<Result<Vec<String>, RDKafkaErrorCode>> {
    let consumer: BaseConsumer = client(lab, user)?
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()?;
    consumer.subscribe(&[topic])?;
    let (mut keys, mut ended, started) = (Vec::new(), BTreeSet::new(), Instant::now());
    while ended != (0..PARTITIONS).collect() {
        ensure!(started.elapsed() < PATIENCE, "{user} reads {topic} in {group}: neither an end nor a refusal");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(record)) => keys.push(String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned()),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(code @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed)) => {
                    return Ok(Err(code));
                }
                _ => return Err(error).with_context(|| format!("{user} reads {topic}")),
            },
        }
    }
    keys.sort();
    Ok(Ok(keys))
}

/// Keeps a record's delivery report.
#[derive(Default)]
struct Told(Mutex<Option<Result<(), RDKafkaErrorCode>>>);

impl ClientContext for Told {}

impl ProducerContext for Told {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Ok(mut told) = self.0.lock() {
            let code = |error: &KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            *told = Some(result.as_ref().map(drop).map_err(|(error, _)| code(error)));
        }
    }
}

/// Writes a record as `user`; returns its delivery report.
fn write(lab: &Lab, user: &str, topic: &str) -> Result<Result<(), RDKafkaErrorCode>> {
    let producer: BaseProducer<Told> = client(lab, user)?.create_with_context(Told::default())?;
    producer.send(BaseRecord::<str, str>::to(topic).key("forged").payload("forged")).map_err(|(error, _)| error)?;
    producer.flush(PATIENCE)?;
    let told = producer.context().0.lock().ok().and_then(|mut told| told.take());
    told.with_context(|| format!("nothing was told of {user}'s record for {topic}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merchant_reads_its_own_topic_and_may_do_nothing_else() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut ctrip = lab.spawn("up")?;
    let (ours, theirs) = (lab.merchant("ours")?, lab.merchant("theirs")?);
    ours.ready(&mut ctrip).await?;
    let mut payments = Vec::new();
    for amount in 1..=5 {
        payments.push(ours.coin(amount).await?.id().to_owned());
        theirs.coin(amount).await?;
    }
    payments.sort();
    let all = eventually("all events", || async { Ok(Some(events(&lab).await?).filter(|all| all.len() == 10)) }).await?;
    let (mine, others): (Vec<_>, Vec<_>) = all.iter().partition(|event| payments.contains(&event.payment_id));
    let (merchant, other) = (mine[0].merchant_id.clone(), others[0].merchant_id.clone());
    ensure!(ctrip.terminate()?.success(), "ctrip up:\n{}", ctrip.tail());

    let folder = tempfile::tempdir()?;
    let properties = folder.path().join("forward.properties");
    let mut text = String::new();
    for (name, value) in login("forward") {
        writeln!(text, "{name}={value}")?;
    }
    std::fs::write(&properties, text)?;
    let forward = || -> Result<std::process::Output> {
        let mut command = Command::new(e2e::built("forward")?);
        command.args(["--create", "--to-end", &merchant]).envs(&lab.env).env("KAFKA_PROPERTIES", &properties);
        Ok(command.env("KAFKA_BROKERS", lab.stack.get("KAFKA_SASL_BROKERS")?).output()?)
    };
    ensure!(!forward()?.status.success(), "forward may do everything before anybody allowed it");
    run_documented(&lab, folder.path(), &[("User:shop", &merchant), ("User:rival", &other)])?;
    let output = forward()?;
    ensure!(output.status.success(), "forward: {}", String::from_utf8_lossy(&output.stderr));

    tokio::task::spawn_blocking(move || {
        use RDKafkaErrorCode::{GroupAuthorizationFailed, TopicAuthorizationFailed};
        let prefix = &lab.env["TOPIC_PREFIX"];
        let (own, all) = (format!("{prefix}merchant.{merchant}.events"), format!("{prefix}payment.events"));
        let (group, forward) = (format!("{prefix}merchant.{merchant}.table"), format!("{prefix}forward"));
        let rivals = format!("{prefix}merchant.{other}.table");
        ensure!(read(&lab, "shop", &group, &own)? == Ok(payments), "what the shop reads of its own");
        for (user, group, topic, expected) in [
            ("shop", &group, &all, TopicAuthorizationFailed),
            ("shop", &forward, &own, GroupAuthorizationFailed),
            ("rival", &group, &own, GroupAuthorizationFailed),
            ("rival", &rivals, &own, TopicAuthorizationFailed),
        ] {
            let outcome = read(&lab, user, group, topic)?;
            ensure!(outcome == Err(expected), "{user} reads {topic} in {group}: {outcome:?}");
        }
        for (user, topic) in [("shop", &own), ("shop", &all), ("rival", &own)] {
            let refused = write(&lab, user, topic)?;
            ensure!(refused == Err(TopicAuthorizationFailed), "{user} writes to {topic}: {refused:?}");
        }
        // It sees no names of other topics either.
        let shop: BaseConsumer = client(&lab, "shop")?.set("group.id", &group).create()?;
        let metadata = shop.fetch_metadata(None, PATIENCE)?;
        let names: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).filter(|n| n.starts_with(prefix)).collect();
        ensure!(names == [own.as_str()], "the shop sees {names:?}");
        Ok(())
    })
    .await?
}
