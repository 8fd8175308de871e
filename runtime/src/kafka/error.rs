//! Which Kafka errors a retry mends.

use crate::failure::Failure;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

const NO_RIGHT: &str = "the user of KAFKA_SASL_USERNAME lacks a right: `ctrip acl print` lists those of each role";

/// The error of a second process with this instance's name.
pub(crate) const TWIN: &str = "another process runs as this instance; each needs a CTRIP_INSTANCE of its own";

impl From<KafkaError> for Failure {
    /// A fenced producer or member is opened once more. Messages that are too large stay so. Every other error is transient, or shows
    /// again when the stage restarts: a missing right comes back with its ACL, and `/health` names it until then.
    fn from(error: KafkaError) -> Self {
        let code = match &error {
            KafkaError::Transaction(error) => Some(error.code()),
            error => error.rdkafka_error_code(),
        };
        match code {
            Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::FencedInstanceId) => {
                Self::Reopen(error.into())
            }
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => Self::retry(error).context(NO_RIGHT),
            Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => Self::halt(error),
            _ => Self::retry(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_that_is_missing_is_waited_for_and_named() {
        for code in [
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::GroupAuthorizationFailed,
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
            RDKafkaErrorCode::ClusterAuthorizationFailed,
        ] {
            let failure = Failure::from(KafkaError::MessageConsumption(code));
            assert!(matches!(&failure, Failure::Retry(_)) && failure.to_string().contains("ctrip acl print"), "{failure:?}");
        }
        let too_large = Failure::from(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge));
        assert!(matches!(too_large, Failure::Halt(_)));
    }
}
