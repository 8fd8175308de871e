//! Deliveries per second to 100 merchants' endpoints, with and without sick ones beside them, and with a million queued.

use crate::figure::{Figure, memory_mb, quantile};
use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use e2e::{Lab, Plan, Process, eventually};
use runtime::Kafka;
use runtime::kafka::TransactionalProducer;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::{Message as _, Topic, wire};
use uuid::Uuid;

const HEALTHY: usize = 100;
/// Half of them refuse connections, half accept them and never respond.
const DEAD: usize = 20;
const SLOW: usize = 10;
const SLOW_ANSWER: Duration = Duration::from_secs(5);
/// A round trip to a server elsewhere.
const ANSWER: Duration = Duration::from_millis(20);
/// Created, detected and confirmed.
const EVENTS_A_PAYMENT: usize = 3;
/// Payments per merchant whose events all come at once.
const BURST: usize = 200;
/// Events per second to healthy endpoints while delays are measured: half of the aim.
const PACE: f64 = 1_000.0;
/// Longer than the timeout of an endpoint that never responds.
const PACED: Duration = Duration::from_secs(25);
const WARM: Duration = Duration::from_secs(5);
const MILLION: i32 = 1_000_000;
const FEW: i32 = 50_000;

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("webhooks: {HEALTHY} endpoints; beside them {DEAD} dead and {SLOW} slow ones; a million queued");
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    // Alternating, since a machine's speed changes from one minute to the next.
    for sick in [false, true, true, false] {
        let (dead, slow) = if sick { (DEAD, SLOW) } else { (0, 0) };
        if sick { &mut beside } else { &mut alone }.extend(paced(dead, slow).await?);
    }
    let alone = Figure::new("webhook_ms_p99_alone", quantile(&mut alone, 0.99), "ms", "-");
    let beside = Figure::new("webhook_ms_p99_sick", quantile(&mut beside, 0.99), "ms", "-");
    let ratio = Figure::new("webhook_sick_p99_ratio", beside.value / alone.value, "ratio", "1.2");
    let burst = burst().await?;
    let rate = Figure::new("webhook_deliveries_per_s", burst.rate, "/s", "2000");
    let (few, million) = (queued(FEW).await?, queued(MILLION).await?);
    let memory = format!("flat: {:.1} with {FEW}", few.peak_mb);
    Ok(vec![
        rate,
        alone,
        beside,
        ratio,
        Figure::new("webhook_rss_mb_queued_1m", million.peak_mb, "MB", memory),
        Figure::new("webhook_deliveries_per_s_queued_1m", million.rate, "/s", "-"),
    ])
}

/// The role, merchants with an endpoint each, and their servers.
struct Field {
    lab: Lab,
    merchants: Vec<Merchant>,
    arrivals: Arc<Arrivals>,
}

struct Merchant {
    id: Uuid,
    endpoint: Uuid,
    healthy: bool,
}

/// When each event first arrived at a healthy endpoint.
#[derive(Default)]
struct Arrivals(Mutex<HashMap<String, Instant>>);

impl Arrivals {
    fn count(&self) -> usize {
        self.0.lock().map(|seen| seen.len()).unwrap_or_default()
    }

    fn taken(&self) -> HashMap<String, Instant> {
        self.0.lock().map(|mut seen| std::mem::take(&mut *seen)).unwrap_or_default()
    }
}

impl Field {
    async fn new(dead: usize, slow: usize) -> Result<Self> {
        let mut lab = Lab::start(Plan::default()).await?;
        lab.env.insert("WEBHOOK_ALLOW_NETWORKS".to_owned(), "127.0.0.0/8".to_owned());
        lab.env.insert("WEBHOOK_ALLOW_HTTP".to_owned(), "true".to_owned());
        let arrivals = Arc::<Arrivals>::default();
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
        let port = listener.local_addr()?.port();
        let routes = Router::new().route("/{kind}", post(receive)).with_state(Arc::clone(&arrivals));
        tokio::spawn(async move { axum::serve(listener, routes).await });

        let closed = e2e::free_port()?;
        let kinds = std::iter::repeat_n(("well", port), HEALTHY)
            .chain((0..dead).map(|i| if i % 2 == 0 { ("silent", port) } else { ("refused", closed) }))
            .chain(std::iter::repeat_n(("slow", port), slow));
        let database = lab.database().await?;
        lab.note_compared(&database).await?;
        let mut merchants = Vec::new();
        for (i, (kind, port)) in kinds.enumerate() {
            let merchant = Merchant { id: Uuid::now_v7(), endpoint: Uuid::now_v7(), healthy: kind == "well" };
            // Each has a host of its own, as in production.
            let url = format!("http://127.0.1.{}:{port}/{kind}", i + 1);
            let name = format!("bench {i}");
            database.execute("INSERT INTO merchants (id, name) VALUES ($1, $2)", &[&merchant.id, &name]).await?;
            database
                .execute(
                    "INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
                     VALUES ($1, $2, $3, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')",
                    &[&merchant.endpoint, &merchant.id, &url],
                )
                .await?;
            merchants.push(merchant);
        }
        Ok(Self { lab, merchants, arrivals })
    }

    /// Starts the role, and waits until each healthy endpoint has got an event.
    async fn warm(&self) -> Result<Process> {
        let mut process = self.lab.spawn("webhooks")?;
        let writer = Writer::open(self).await?;
        writer.write(events(&self.merchants, 0, &[0])).await?;
        let warm = eventually("the first deliveries", || async { Ok((self.arrivals.count() >= HEALTHY).then_some(())) });
        let warm = warm.await;
        process.check()?;
        warm?;
        Ok(process)
    }
}

async fn receive(State(arrivals): State<Arc<Arrivals>>, Path(kind): Path<String>, headers: HeaderMap) -> StatusCode {
    match kind.as_str() {
        "silent" => std::future::pending().await,
        "slow" => tokio::time::sleep(SLOW_ANSWER).await,
        _ => {
            let now = Instant::now();
            if let (Some(id), Ok(mut seen)) = (headers.get("webhook-id").and_then(|id| id.to_str().ok()), arrivals.0.lock()) {
                seen.entry(id.to_owned()).or_insert(now);
            }
            tokio::time::sleep(ANSWER).await;
        }
    }
    StatusCode::NO_CONTENT
}

struct Writer {
    kafka: Kafka,
    producer: Arc<TransactionalProducer>,
}

impl Writer {
    async fn open(field: &Field) -> Result<Self> {
        let kafka = field.lab.kafka().await?;
        let opened = {
            let kafka = field.lab.kafka().await?;
            tokio::task::spawn_blocking(move || TransactionalProducer::open(&kafka, "bench-events")).await?
        };
        Ok(Self { kafka, producer: Arc::new(opened?) })
    }

    async fn write(&self, events: Vec<wire::PaymentEvent>) -> Result<()> {
        let records: Vec<(String, Vec<u8>)> = events.iter().map(|event| (event.key(), self.kafka.encode(event))).collect();
        let producer = Arc::clone(&self.producer);
        let written = tokio::task::spawn_blocking(move || {
            for records in records.chunks(2_000) {
                let transaction = producer.begin()?;
                for (key, record) in records {
                    transaction.send(Topic::Events, key, record)?;
                }
                transaction.commit()?;
            }
            Ok::<_, runtime::Failure>(())
        });
        written.await?.map_err(Into::into)
    }
}

/// The `sequences`-th events of each merchant's `round`-th payment.
fn events(merchants: &[Merchant], round: usize, sequences: &[usize]) -> Vec<wire::PaymentEvent> {
    let of = |merchant: &Merchant, sequence: usize| event(merchant, round, sequence);
    sequences.iter().flat_map(|sequence| merchants.iter().map(move |merchant| of(merchant, *sequence))).collect()
}

fn event(merchant: &Merchant, round: usize, sequence: usize) -> wire::PaymentEvent {
    let kinds = [("payment.created", "pending"), ("payment.detected", "detected"), ("payment.confirmed", "confirmed")];
    let (kind, status) = kinds[sequence % EVENTS_A_PAYMENT];
    let payment = Uuid::from_u64_pair(merchant.id.as_u64_pair().1, round as u64);
    let transfer = wire::payment_event::Transfer {
        chain_id: 31337,
        block_number: 1,
        block_hash: vec![1; 32].into(),
        transaction_hash: vec![2; 32].into(),
        source: "transaction".to_owned(),
        from: vec![3; 20].into(),
        amount: vec![1, 0].into(),
        timestamp: 1_800_000_000,
        credited: true,
        chain: "anvil".to_owned(),
        decimals: 18,
        ..wire::payment_event::Transfer::default()
    };
    wire::PaymentEvent {
        id: format!("evt_{}_{}", payment.simple(), sequence + 1),
        r#type: kind.to_owned(),
        sequence: sequence as u64 + 1,
        payment_id: payment.to_string(),
        merchant_id: merchant.id.to_string(),
        chain_id: 31337,
        chain: "anvil".to_owned(),
        address: vec![4; 20].into(),
        amount: vec![1, 0].into(),
        status: status.to_owned(),
        confirmations_required: 3,
        created_at: 1_800_000_000,
        expires_at: 1_800_003_600,
        occurred_at: 1_800_000_000,
        transfers: if sequence > 0 { vec![transfer] } else { Vec::new() },
        ..wire::PaymentEvent::default()
    }
}

/// Milliseconds from each event to its arrival at a healthy endpoint, at a steady pace.
async fn paced(dead: usize, slow: usize) -> Result<Vec<f64>> {
    let field = Field::new(dead, slow).await?;
    let mut process = field.warm().await?;
    field.arrivals.taken();
    let writer = Writer::open(&field).await?;
    let started = Instant::now();
    let mut due = HashMap::new();
    let (mut round, mut next) = (0, 0);
    while started.elapsed() < PACED {
        // Merchants in turn: each wave tells the next event of a merchant's payment, which is confirmed by the third.
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "thousands")]
        let goal = (started.elapsed().as_secs_f64() * PACE / HEALTHY as f64 * field.merchants.len() as f64) as usize;
        let mut wave = Vec::new();
        while next + wave.len() < goal {
            let place = next + wave.len();
            let merchant = &field.merchants[place % field.merchants.len()];
            round = 1 + place / field.merchants.len();
            wave.push((event(merchant, round.div_ceil(EVENTS_A_PAYMENT), (round - 1) % EVENTS_A_PAYMENT), merchant.healthy));
        }
        next += wave.len();
        let now = Instant::now();
        if started.elapsed() > WARM {
            due.extend(wave.iter().filter(|(_, healthy)| *healthy).map(|(event, _)| (event.id.clone(), now)));
        }
        writer.write(wave.into_iter().map(|(event, _)| event).collect()).await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all = round * HEALTHY;
    let arrived = eventually("the last events", || async { Ok((field.arrivals.count() + HEALTHY >= all).then_some(())) });
    arrived.await.with_context(|| format!("{} of {all} arrived", field.arrivals.count()))?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    process.check()?;
    let mut arrivals = field.arrivals.taken();
    let delays = due.iter().map(|(id, sent)| {
        let at = arrivals.remove(id).with_context(|| format!("{id} did not arrive"))?;
        Ok(at.saturating_duration_since(*sent).as_secs_f64() * 1000.0)
    });
    delays.collect()
}

struct Run {
    rate: f64,
    peak_mb: f64,
}

/// All endpoints, sick ones included, get many events at once: how fast the healthy ones get theirs.
async fn burst() -> Result<Run> {
    let field = Field::new(DEAD, SLOW).await?;
    let mut process = field.warm().await?;
    process.terminate()?;
    let writer = Writer::open(&field).await?;
    for sequence in 0..EVENTS_A_PAYMENT {
        for round in 1..=BURST {
            writer.write(events(&field.merchants, round, &[sequence])).await?;
        }
    }
    field.arrivals.taken();
    let process = field.lab.spawn("webhooks")?;
    drain(&field, process, HEALTHY * BURST * EVENTS_A_PAYMENT).await
}

/// This many deliveries are queued, for sick endpoints and healthy ones.
async fn queued(count: i32) -> Result<Run> {
    let field = Field::new(DEAD, SLOW).await?;
    let database = field.lab.database().await?;
    let endpoints: Vec<Uuid> = field.merchants.iter().map(|merchant| merchant.endpoint).collect();
    let each = count / i32::try_from(endpoints.len())?;
    database
        .execute(
            "WITH queued AS (
                 INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state)
                 SELECT e.id, 'queued_' || e.place || '_' || i, 'payment.created',
                     md5('p' || e.place || '_' || i % ($2 / 3))::uuid, i, 'pending'
                 FROM generate_series(1, $2::integer) AS i, unnest($1::uuid[]) WITH ORDINALITY AS e (id, place)
                 RETURNING event_id, endpoint_id
             )
             INSERT INTO webhook_messages (event_id, merchant_id, body)
             SELECT event_id, merchant_id, $3 FROM queued JOIN webhook_endpoints e ON e.id = endpoint_id",
            &[&endpoints, &each, &format!("{{\"data\":\"{}\"}}", "x".repeat(1000))],
        )
        .await?;
    for statement in ["VACUUM ANALYZE webhook_deliveries", "VACUUM ANALYZE webhook_messages", "CHECKPOINT"] {
        database.batch_execute(statement).await?;
    }
    let process = field.lab.spawn("webhooks")?;
    drain(&field, process, 30_000).await
}

/// Deliveries per second from the first arrival until this many have arrived.
async fn drain(field: &Field, mut process: Process, wanted: usize) -> Result<Run> {
    let started = Instant::now();
    let mut first = None;
    loop {
        let count = field.arrivals.count();
        if count > 0 {
            let (since, before) = *first.get_or_insert((Instant::now(), count));
            if count >= wanted {
                #[expect(clippy::cast_precision_loss, reason = "thousands")]
                let rate = (count - before) as f64 / since.elapsed().as_secs_f64();
                let peak_mb = memory_mb(process.id(), "VmHWM")?;
                process.terminate()?;
                return Ok(Run { rate, peak_mb });
            }
        }
        process.check()?;
        ensure!(started.elapsed() < Duration::from_secs(300), "{count} of {wanted} deliveries after five minutes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
