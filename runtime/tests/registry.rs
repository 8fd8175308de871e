//! The registry's client against a server that plays the registry.

use clap::Parser as _;
use runtime::{Kafka, Registry, RegistryError, Settings};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use topics::Topic;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

fn settings(url: &str) -> Settings {
    Cli::parse_from(["test", "--schema-registry-url", url, "--topic-prefix", "lab."]).settings
}

/// Gives the answers in order, the last one for ever, and keeps the requests.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<VecDeque<(u16, &'static str)>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: &[(u16, &'static str)]) -> (Self, SocketAddr) {
        let server = Self { answers: Arc::new(Mutex::new(answers.iter().copied().collect())), ..Self::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(stream).await });
            }
        });
        (server, address)
    }

    async fn serve(&self, stream: TcpStream) -> anyhow::Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let start = head.len();
            stream.read_line(&mut head).await?;
            let line = head[start..].trim().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        self.requests.lock().await.push(head + &String::from_utf8(body)?);
        let mut answers = self.answers.lock().await;
        let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() };
        let (status, answer) = next.unwrap_or((500, "{}"));
        let length = answer.len();
        let response = format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}");
        Ok(stream.write_all(response.as_bytes()).await?)
    }

    async fn requests(&self) -> Vec<String> {
        self.requests.lock().await.clone()
    }
}

const SCHEMA: &str = r#"{"id":7,"schemaType":"PROTOBUF","schema":"syntax = \"proto3\"; message M { string name = 1; }"}"#;
const NOT_FOUND: &str = r#"{"error_code":40403,"message":"Schema not found"}"#;

/// `name: "x"` with schema 7.
const RECORD: [u8; 9] = [0, 0, 0, 0, 7, 0, 0x0a, 1, b'x'];

fn registry(url: &str) -> Registry {
    Registry::new(&settings(url)).expect("a URL")
}

#[tokio::test]
async fn a_record_is_decoded_by_its_schema_which_is_asked_for_once() {
    let (server, address) = Server::start(&[(200, SCHEMA)]).await;
    let registry = registry(&format!("http://{address}"));
    for _ in 0..2 {
        let record = registry.decode(&RECORD).await.unwrap();
        assert_eq!(record.get_field_by_name("name").unwrap().as_str(), Some("x"));
    }
    let requests = server.requests().await;
    assert!(requests.len() == 1 && requests[0].starts_with("GET /schemas/ids/7"), "{requests:?}");
}

#[tokio::test]
async fn a_registry_that_is_away_is_retried() {
    let (server, address) = Server::start(&[(503, "{}"), (502, "busy"), (200, SCHEMA)]).await;
    registry(&format!("http://{address}")).decode(&RECORD).await.unwrap();
    assert_eq!(server.requests().await.len(), 3);
}

#[tokio::test]
async fn an_unknown_schema_is_an_error_at_once() {
    let (server, address) = Server::start(&[(404, NOT_FOUND)]).await;
    let error = registry(&format!("http://{address}")).decode(&RECORD).await.unwrap_err();
    let RegistryError::Permanent(cause) = &error else { panic!("{error}") };
    assert!(cause.contains("404") && cause.contains("Schema not found"), "{cause}");
    assert_eq!(server.requests().await.len(), 1);
}

#[tokio::test]
async fn bytes_that_are_no_record_are_an_error_of_their_own() {
    let (_, address) = Server::start(&[(200, SCHEMA)]).await;
    let registry = registry(&format!("http://{address}"));
    for bytes in [&b""[..], b"{\"json\":1}", &[0, 0, 0, 0, 7], &[0, 0, 0, 0, 7, 0, 0xff], &[0, 0, 0, 0, 7, 2, 8]] {
        let error = registry.decode(bytes).await.unwrap_err();
        assert!(matches!(error, RegistryError::Permanent(_)), "{bytes:?}: {error}");
    }
}

#[tokio::test]
async fn the_next_url_is_tried_and_the_password_is_sent_and_never_shown() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (server, address) = Server::start(&[(200, SCHEMA), (401, "{}")]).await;
    let registry = registry(&format!("http://ctrip:hunter2@{nobody}, http://ctrip:hunter2@{address}/apis/ccompat/v7/"));
    registry.decode(&RECORD).await.unwrap();
    let request = server.requests().await.remove(0);
    assert!(request.starts_with("GET /apis/ccompat/v7/schemas/ids/7"), "{request}");
    assert!(request.to_lowercase().contains("authorization: basic y3ryaxa6ahvudgvymg=="), "{request}");

    let refused = format!("{:#}", registry.ping().await.unwrap_err());
    assert!(refused.contains("401") && !refused.contains("hunter2"), "{refused}");
    let away = Registry::new(&settings(&format!("http://ctrip:hunter2@{nobody}"))).unwrap().ping().await.unwrap_err();
    let away = format!("{away:#}");
    assert!(away.contains("refused") && !away.contains("hunter2"), "{away}");
    let malformed = Registry::new(&settings("http://ctrip:hunter2@[")).err().unwrap();
    assert!(!format!("{malformed:#}").contains("hunter2"), "{malformed:#}");
}

#[tokio::test]
async fn a_role_asks_for_the_id_of_its_own_schema_and_registers_nothing() {
    let (server, address) = Server::start(&[(200, r#"{"subject":"s","version":1,"id":41,"schema":""}"#)]).await;
    let kafka = Kafka::connect(&settings(&format!("http://{address}"))).await.unwrap();
    assert!(Topic::ALL.into_iter().all(|topic| kafka.schema_id(topic) == 41));
    let requests = server.requests().await;
    assert_eq!(requests.len(), Topic::ALL.len());
    for (topic, request) in Topic::ALL.into_iter().zip(requests) {
        let path = request.split(['?', ' ']).nth(1).unwrap();
        assert!(request.starts_with("POST ") && path == format!("/subjects/lab.{topic}-value"), "{request}");
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["schema"], &body["schemaType"]), (&topic.schema().into(), &"PROTOBUF".into()));
    }

    let (_, address) = Server::start(&[(404, NOT_FOUND)]).await;
    let missing = Kafka::connect(&settings(&format!("http://{address}"))).await.unwrap_err();
    let missing = format!("{missing:#}");
    assert!(missing.contains("ctrip topics apply") && missing.contains("lab.chain.blocks-value"), "{missing}");
}

#[tokio::test]
async fn a_registry_that_was_restored_with_other_ids_is_noticed() {
    let answers = vec![(200, r#"{"subject":"s","version":1,"id":41,"schema":""}"#); 2 * Topic::ALL.len()];
    let restored = (200, r#"{"subject":"s","version":1,"id":42,"schema":""}"#);
    let (_server, address) = Server::start(&[answers, vec![restored]].concat()).await;
    let url = format!("http://{address}");
    let kafka = Kafka::connect(&settings(&url)).await.unwrap();
    kafka.check_schema_ids(&registry(&url)).await.unwrap();
    let error = kafka.check_schema_ids(&registry(&url)).await.unwrap_err().to_string();
    assert!(error.contains("lab.chain.blocks") && error.contains("41") && error.contains("restart all roles"), "{error}");
}

#[tokio::test]
async fn the_latest_record_of_a_topic_is_found_under_its_subject() {
    let (server, address) = Server::start(&[(200, SCHEMA)]).await;
    let record = registry(&format!("http://{address}")).latest(Topic::Events).await.unwrap();
    assert_eq!(record.full_name(), "M");
    assert!(server.requests().await[0].starts_with("GET /subjects/lab.payment.events-value/versions/latest"));
}
