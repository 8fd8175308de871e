//! JSON-RPC replies, of one call or of a batch: which part answers which call.

use super::error::RpcError;
use crate::text::one_line;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// The body of a reply, to one call or to a batch.
#[derive(Debug)]
pub struct Reply {
    body: Bytes,
    method: &'static str,
    endpoint: String,
}

/// The JSON of one result, as it came.
#[derive(Clone, Debug)]
pub struct Answer(Bytes);

impl Answer {
    /// The JSON text.
    pub fn get(&self) -> &str {
        // It is a slice of a text.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// One response object.
#[derive(Deserialize)]
struct Envelope<T> {
    #[serde(default)]
    id: Value,
    #[serde(default = "Option::default", deserialize_with = "some", bound(deserialize = "T: Deserialize<'de>"))]
    result: Option<T>,
    error: Option<ErrorObject>,
}

/// JSON-RPC's error object.
#[derive(Debug, Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// A result of null is a result.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<T> Envelope<T> {
    fn id(&self) -> Option<u64> {
        // Some nodes return it as text.
        self.id.as_u64().or_else(|| self.id.as_str()?.parse().ok())
    }
}

impl Envelope<&RawValue> {
    fn outcome(&self, reply: &Reply, method: &'static str) -> Result<Answer, RpcError> {
        match (&self.error, self.result) {
            (Some(error_object), _) => Err(reply.refused(method, error_object)),
            (None, Some(result)) => Ok(Answer(reply.body.slice_ref(result.get().as_bytes()))),
            (None, None) => Err(reply.malformed(method, serde::de::Error::missing_field("result"))),
        }
    }
}

impl Reply {
    /// A body that `endpoint` sent, for a call of `method` or a batch that begins with it.
    pub fn new(body: impl Into<Bytes>, method: &'static str, endpoint: &str) -> Self {
        Self { body: body.into(), method, endpoint: endpoint.to_owned() }
    }

    /// The answer to a single call.
    pub(super) fn single(&self, method: &'static str) -> Result<Answer, RpcError> {
        self.one::<Envelope<&RawValue>>()?.outcome(self, method)
    }

    /// Reads the reply to a batch of two calls in one pass. `None` unless both have results of these types, in the order of the
    /// calls.
    pub fn read<A: DeserializeOwned, B: DeserializeOwned>(&self) -> Option<(A, B)> {
        // JSON is UTF-8, also in the fields that are skipped (RFC 8259, 8.1).
        let text = std::str::from_utf8(&self.body).ok()?;
        let (one, two): (Envelope<A>, Envelope<B>) = serde_json::from_str(text).ok()?;
        let in_order = one.id() == Some(0) && two.id() == Some(1) && one.error.is_none() && two.error.is_none();
        one.result.zip(two.result).filter(|_| in_order)
    }

    /// Splits the reply to a batch into one answer per call, in the order of the calls, whatever the node's order was.
    ///
    /// # Errors
    /// If a call has no answer.
    pub fn split(&self, methods: &[&'static str]) -> Result<Vec<Result<Answer, RpcError>>, RpcError> {
        let envelopes: Vec<Envelope<&RawValue>> = match self.one() {
            Ok(envelopes) => envelopes,
            // One error for the whole batch: the node accepts none, or none of this size, or we exceeded its rate limit.
            Err(error) => {
                let Ok(Envelope { error: Some(error_object), .. }) = self.one::<Envelope<&RawValue>>() else {
                    return Err(error);
                };
                let refused = self.refused(self.method, &error_object);
                return Err(if refused.is_rate_limit() || refused.is_batch_limit() {
                    refused
                } else {
                    self.incomplete_batch()
                });
            }
        };
        let find = |id| envelopes.iter().find(|envelope| envelope.id() == Some(id));
        let answers = methods.iter().zip(0..).map(|(method, id)| find(id).map(|envelope| envelope.outcome(self, method)));
        answers.collect::<Option<_>>().ok_or_else(|| self.incomplete_batch())
    }

    fn one<'a, T: Deserialize<'a>>(&'a self) -> Result<T, RpcError> {
        serde_json::from_slice(&self.body).map_err(|source| self.malformed(self.method, source))
    }

    fn refused(&self, method: &'static str, error_object: &ErrorObject) -> RpcError {
        let (endpoint, message) = (self.endpoint.clone(), one_line(&error_object.message));
        RpcError::Refused { method, endpoint, code: error_object.code, message }
    }

    fn malformed(&self, method: &'static str, source: serde_json::Error) -> RpcError {
        RpcError::Malformed { method, endpoint: self.endpoint.clone(), source }
    }

    /// The error of a batch that is too large.
    pub(super) fn batch_refused(&self) -> RpcError {
        self.incomplete_batch()
    }

    fn incomplete_batch(&self) -> RpcError {
        RpcError::IncompleteBatch { method: self.method, endpoint: self.endpoint.clone() }
    }
}
