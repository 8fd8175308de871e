//! What librdkafka says of its connections: it tries again for ever, and tells the cause to callbacks alone.

use anyhow::anyhow;
use base::locked;
use rdkafka::ClientContext;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// It tries each broker once a second.
const RECENT: Duration = Duration::from_secs(30);
const MAX_KEPT: usize = 64;

/// The errors of one client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Heard {
    errors: Arc<Mutex<VecDeque<HeardError>>>,
    user: String,
    /// Whether they are in the log too.
    logs: bool,
}

#[derive(Clone)]
struct HeardError {
    at: Instant,
    code: RDKafkaErrorCode,
    reason: String,
}

impl Heard {
    pub fn new(user: Option<&str>, logs: bool) -> Self {
        Self { errors: Arc::default(), user: user.unwrap_or("nobody").to_owned(), logs }
    }

    /// Why a broker refuses us, or we refuse it, with what helps; `None` if a retry may.
    pub fn refusal(&self) -> Option<anyhow::Error> {
        self.recent().iter().find_map(|error| Some(anyhow!("{}", error.reason).context(self.remedy(error)?)))
    }

    /// What was said last.
    pub fn last(&self) -> Option<String> {
        self.recent().into_iter().rfind(|error| error.code != RDKafkaErrorCode::AllBrokersDown).map(|error| error.reason)
    }

    fn recent(&self) -> Vec<HeardError> {
        locked(&self.errors).iter().filter(|error| error.at.elapsed() < RECENT).cloned().collect()
    }

    /// What helps where no retry does.
    fn remedy(&self, HeardError { code, reason, .. }: &HeardError) -> Option<String> {
        // librdkafka tells a handshake that fails as soon as it is connected as an error of the connection.
        let is_tls = *code == RDKafkaErrorCode::SSL || reason.contains("SSL routines");
        // A broker that is about to stop hangs up amid one.
        if is_tls && !reason.contains("Disconnected") {
            let remedy = "no TLS with it: KAFKA_SECURITY_PROTOCOL says whether the port speaks TLS, KAFKA_SSL_CA_LOCATION has to name the \
                          authority that signed its certificate, which has to be of the host in KAFKA_BROKERS and not to have expired, and a \
                          broker that asks for ours needs KAFKA_SSL_CERTIFICATE_LOCATION";
            return Some(remedy.to_owned());
        }
        let is_login = matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed);
        is_login.then(|| {
            let user = &self.user;
            format!(
                "it refuses the login of {user}: KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD (or its _FILE) and KAFKA_SASL_MECHANISM have to be \
                 the broker's"
            )
        })
    }

    fn keep(&self, code: RDKafkaErrorCode, reason: &str) {
        let mut errors = locked(&self.errors);
        if errors.len() == MAX_KEPT {
            errors.pop_front();
        }
        errors.push_back(HeardError { at: Instant::now(), code, reason: reason.to_owned() });
    }
}

impl ClientContext for Heard {
    /// A connection that ends is in the log alone.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if facility == "FAIL" {
            let reason = line.split_once("]: ").map_or(line, |(_thread, reason)| reason);
            self.keep(RDKafkaErrorCode::BrokerTransportFailure, reason);
        }
        if self.logs {
            DefaultClientContext.log(level, facility, line);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.keep(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail), reason);
        if self.logs {
            DefaultClientContext.error(error, reason);
        }
    }
}

impl ConsumerContext for Heard {}

impl ProducerContext for Heard {
    /// Who waits for a record's acknowledgement.
    type DeliveryOpaque = Box<oneshot::Sender<Result<(), KafkaError>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, waits: Self::DeliveryOpaque) {
        // Nobody may wait any more.
        let _ = waits.send(result.as_ref().map(drop).map_err(|(error, _)| error.clone()));
    }
}
