//! The id of a request: in the header `x-request-id` of its response, in its problem document and in its log lines.
//!
//! A client may send its own; otherwise [`request_layer`](crate::http::request_layer) makes one.

use axum::http::{HeaderMap, HeaderName};

/// The header, in requests and in responses.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// In bytes. A client's own id goes into every log line of its request, so a longer one is replaced.
const MAX_LENGTH: usize = 128;

tokio::task_local! {
    /// Set while a request is being handled.
    pub static CURRENT: Box<str>;
}

/// The id of the request that this task handles; `None` outside a request.
pub fn current() -> Option<Box<str>> {
    CURRENT.try_with(Clone::clone).ok()
}

/// The id that the client sent, unless it is unfit for a log line.
pub fn from_client(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = (1..=MAX_LENGTH).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_would_break_a_log_line_is_replaced() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, value.parse().unwrap());
            from_client(&headers)
        };
        assert_eq!(read("a-1:b/2").as_deref(), Some("a-1:b/2"));
        for bad in ["", "a b", "a\tb", &"x".repeat(MAX_LENGTH + 1)] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(from_client(&HeaderMap::new()), None);
    }
}
