//! One attempt at one message.

use crate::guard::Guard;
use crate::queue::Due;
use crate::schedule::Answer;
use crate::signature;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From looking the name up to the answer's status.
pub const WITHIN: Duration = Duration::from_secs(15);
/// From there to the kept part of its body.
const BODY_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of the answer's body that are kept.
const KEPT: usize = 1024;
/// No attempt holds its connection longer.
pub const LONGEST: Duration = WITHIN.saturating_add(BODY_WITHIN);

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What decides.
    pub answer: Answer,
    /// The first kilobyte of the answer's body, for people.
    pub reply: String,
    /// Why there was no answer, for people.
    pub error: Option<String>,
    /// How long it took until there was an answer, or none.
    pub took: Duration,
    /// And until the connection was not needed any more.
    pub held: Duration,
}

/// Sends a message, signed for this moment. It never fails: that there was no answer is an outcome.
pub async fn send(client: &Client, guard: &Guard, due: &Due) -> Outcome {
    let started = Instant::now();
    let answered = tokio::time::timeout(WITHIN, attempt(client, guard, due)).await;
    let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())));
    let took = started.elapsed();
    let (response, now) = match answered {
        Ok(answered) => answered,
        // A certificate for other names, for one, has them all in its error.
        Err(error) => return Outcome { error: Some(storable(error.as_bytes())), took, held: took, ..Outcome::default() },
    };
    let answer = Answer { status: Some(response.status().as_u16()), retry_after: retry_after(response.headers(), now) };
    let reply = reply(response).await;
    Outcome { answer, reply, error: None, took, held: started.elapsed() }
}

/// The answer, and the time that it was asked for.
async fn attempt(client: &Client, guard: &Guard, due: &Due) -> Result<(Response, SystemTime), String> {
    // Settings may have changed since the endpoint was made.
    let url = guard.check_url(&due.url).map_err(|refused| refused.to_string())?;
    let now = SystemTime::now();
    let timestamp = now.duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?.as_secs();
    let timestamp = i64::try_from(timestamp).map_err(|error| error.to_string())?;
    let request = client
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("webhook-id", &due.event_id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature::header(&due.secrets, &due.event_id, timestamp, &due.body))
        .body(due.body.clone());
    // The URL may have a token in it, and the log has readers of its own.
    let response = request.send().await.map_err(|error| runtime::chain_of(&error.without_url()))?;
    Ok((response, now))
}

/// What there is of the body; the status has come, so that it breaks off or takes its time is no failure.
async fn reply(mut response: Response) -> String {
    let mut kept = Vec::new();
    let read = async {
        while kept.len() < KEPT {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            kept.extend_from_slice(&chunk);
        }
    };
    // What has come by then is kept.
    let _ = tokio::time::timeout(BODY_WITHIN, read).await;
    storable(&kept)
}

/// The first kilobyte of what somebody else has written; Postgres keeps no U+0000.
fn storable(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(KEPT)]).replace('\0', "\u{fffd}")
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_written_is_cut_and_can_be_stored() {
        assert_eq!(storable(b"a\0b\xff"), "a\u{fffd}b\u{fffd}");
        assert_eq!(storable(&[b'x'; 5000]), "x".repeat(KEPT));
        assert!(storable("ä".repeat(KEPT).as_bytes()).len() <= KEPT + 2);
    }

    #[test]
    fn retry_after_is_read_in_both_its_forms() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(77)));
        for nothing in ["", "-1", "soon", "Sun, 06 Nov 1994 08:00:00 GMT"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
