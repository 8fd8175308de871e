//! Schemas under the ids that records carry. A registry that was made anew, or restored with other ids, gives our schemas new ones, and
//! other programs can't read what was written before.
//!
//! - Confluent's registry, and those that follow it, take a chosen id in their mode IMPORT.
//! - Apicurio Registry takes an archive, as it exports one, through an API of its own.
//!
//! Both keep a text under one id. Where the registry has our text under another one, a comment makes it another text.

use super::{Registered, Registry};
use anyhow::{Context as _, bail};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::{Cursor, Write as _};
use topics::Topic;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Where Apicurio has Confluent's API, and where its own takes archives.
const APICURIO: &str = "/apis/ccompat/";
const APICURIO_IMPORT: &str = "/apis/registry/v2/admin/import";

/// How a registry takes an id.
enum Way {
    Import,
    Archive,
}

impl Registry {
    /// Registers the topic's schema under an id that its records carry, and under which the registry has nothing: where it has another
    /// schema, an archive would give that one to our subject.
    ///
    /// # Errors
    /// When the registry does not take it; says what helps.
    pub(crate) async fn bring_back(&self, topic: Topic, id: u32) -> anyhow::Result<()> {
        let mut refusals = Vec::new();
        let texts = [topic.schema().to_owned(), format!("{}// For records with the schema id {id}.\n", topic.schema())];
        'texts: for text in &texts {
            for way in [Way::Import, Way::Archive] {
                match self.look_up(topic, id).await? {
                    Registered::Record => return Ok(()),
                    Registered::Other => {
                        refusals.push("it has another schema under it".to_owned());
                        break 'texts;
                    }
                    Registered::Nothing => {}
                }
                let outcome = match way {
                    Way::Import => self.import(topic, id, text).await,
                    Way::Archive => self.import_archive(topic, id, text).await,
                };
                refusals.extend(outcome.err().map(|refusal| format!("{refusal:#}")));
            }
        }
        if self.look_up(topic, id).await? == Registered::Record {
            return Ok(());
        }
        refusals.dedup();
        bail!(
            "records of {} have the schema id {id}, under which the registry has no schema of theirs, and it takes none: {}. Other programs \
             can't read them until it is restored from a backup that has its ids",
            self.settings.topic_name(topic),
            refusals.join("; ")
        )
    }

    /// Confluent's way.
    async fn import(&self, topic: Topic, id: u32, text: &str) -> anyhow::Result<()> {
        let subject = self.subject(topic);
        self.set_mode(&subject, "IMPORT").await.context("the mode IMPORT")?;
        let body = json!({ "schemaType": "PROTOBUF", "schema": text, "id": id });
        let registered = self.request(|url| self.http.post(format!("{url}/subjects/{subject}/versions")).json(&body)).await;
        self.leave_import(topic).await?;
        registered.context("registering it in the mode IMPORT")
    }

    /// Takes the topic's subject out of the mode IMPORT, in which a kill may have left it: nothing is registered there without an id.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub(crate) async fn leave_import(&self, topic: Topic) -> anyhow::Result<()> {
        let subject = self.subject(topic);
        let Some(found) = self.find(&format!("mode/{subject}")).await? else { return Ok(()) };
        if found.json::<Value>().await?["mode"] != "IMPORT" {
            return Ok(());
        }
        // Then the registry's mode counts again.
        if self.request(|url| self.http.delete(format!("{url}/mode/{subject}"))).await.is_ok() {
            return Ok(());
        }
        self.set_mode(&subject, "READWRITE").await.with_context(|| format!("setting the mode of {subject} back to READWRITE"))
    }

    async fn set_mode(&self, subject: &str, mode: &str) -> anyhow::Result<()> {
        let body = json!({ "mode": mode });
        Ok(self.request(|url| self.http.put(format!("{url}/mode/{subject}?force=true")).json(&body)).await?)
    }

    /// Apicurio's way. It says nothing of what it leaves out.
    async fn import_archive(&self, topic: Topic, id: u32, text: &str) -> anyhow::Result<()> {
        let subject = self.subject(topic);
        let version = self.next_version(&subject).await?;
        let archive = archive(&subject, version, id, text)?;
        for url in &self.urls {
            let Some((server, _)) = url.split_once(APICURIO) else { continue };
            let request = self.http.post(format!("{server}{APICURIO_IMPORT}")).header(CONTENT_TYPE, "application/zip");
            let request =
                request.header("X-Registry-Preserve-ContentId", "true").header("X-Registry-Preserve-GlobalId", "false");
            self.send(request.body(archive.clone())).await.context("importing an archive")?;
        }
        Ok(())
    }

    async fn next_version(&self, subject: &str) -> anyhow::Result<u32> {
        let Some(found) = self.find(&format!("subjects/{subject}/versions")).await? else { return Ok(1) };
        let versions: Vec<u32> = found.json().await.with_context(|| format!("the versions of {subject}"))?;
        Ok(versions.into_iter().max().unwrap_or_default() + 1)
    }
}

/// A version of a subject, and its text under the id, as Apicurio exports it.
fn archive(subject: &str, version: u32, id: u32, text: &str) -> anyhow::Result<Vec<u8>> {
    let hash = format!("{:x}", Sha256::digest(text));
    let content = json!({ "contentId": id, "contentHash": hash, "artifactType": "PROTOBUF" });
    let of_subject = json!({
        "globalId": id, "artifactId": subject, "version": version.to_string(), "versionId": version, "artifactType": "PROTOBUF",
        "state": "ENABLED", "createdOn": 0, "isLatest": version == 1, "contentId": id,
    });
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let version_file = format!("groups/default/artifacts/{subject}/versions/{version}.ArtifactVersion.json");
    for (name, data) in [
        ("ctrip.Manifest.json".to_owned(), json!({ "systemName": "apicurio-registry", "exportVersion": "1.0" }).to_string()),
        (format!("content/{hash}.Content.json"), content.to_string()),
        (format!("content/{hash}.Content.data"), text.to_owned()),
        (version_file, of_subject.to_string()),
    ] {
        archive.start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored))?;
        archive.write_all(data.as_bytes())?;
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::Cli;
    use clap::Parser as _;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    /// A registry of Confluent's kind: schemas by id, and the mode of each subject. It has nothing of Apicurio's.
    #[derive(Default)]
    struct Confluent {
        schemas: BTreeMap<u64, String>,
        modes: BTreeMap<String, String>,
    }

    impl Confluent {
        fn answer(&mut self, method: &str, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
            let parts: Vec<&str> = path.split(['/', '?']).skip(1).collect();
            match (method, parts.as_slice()) {
                ("PUT", ["mode", subject, "force=true"]) => {
                    self.modes.insert((*subject).to_owned(), body["mode"].as_str().unwrap().to_owned());
                    (200, body.clone())
                }
                ("GET", ["mode", subject]) if self.modes.contains_key(*subject) => {
                    (200, json!({ "mode": self.modes[*subject] }))
                }
                ("DELETE", ["mode", subject]) => (200, json!({ "mode": self.modes.remove(*subject) })),
                ("POST", ["subjects", subject, "versions"]) => {
                    assert_eq!(self.modes[*subject], "IMPORT", "an id is taken in this mode alone");
                    let (id, text) = (body["id"].as_u64().unwrap(), body["schema"].as_str().unwrap());
                    if self.schemas.contains_key(&id) || self.schemas.values().any(|other| other == text) {
                        return (422, json!({ "error_code": 42205, "message": "Overwrite is not permitted" }));
                    }
                    self.schemas.insert(id, text.to_owned());
                    (200, json!({ "id": id }))
                }
                ("GET", ["schemas", "ids", id, ..]) => match self.schemas.get(&id.parse().unwrap()) {
                    Some(text) => (200, json!({ "schemaType": "PROTOBUF", "schema": text })),
                    None => (404, json!({ "error_code": 40403, "message": "Schema not found" })),
                },
                _ => (404, json!({ "error_code": 404, "message": "HTTP 404 Not Found" })),
            }
        }
    }

    async fn serve(mut stream: TcpStream, registry: &Mutex<Confluent>) {
        let (mut request, mut buffer) = (String::new(), vec![0; 64 * 1024]);
        let (head, body) = loop {
            let read = stream.read(&mut buffer).await.unwrap();
            request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
            let lengths = head.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| *name == "content-length");
            if body.len() >= lengths.map(|(_, length)| length.parse::<usize>().unwrap()).sum() {
                break (head, serde_json::from_str(body).unwrap_or_default());
            }
        };
        let mut words = head.split(' ');
        let (status, answer) = registry.lock().unwrap().answer(words.next().unwrap(), words.next().unwrap(), &body);
        let answer = answer.to_string();
        let length = answer.len();
        let response = format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}");
        stream.write_all(response.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn a_registry_that_lost_the_ids_of_records_takes_them_back() {
        let (state, listener) = (Arc::new(Mutex::new(Confluent::default())), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream, &serving).await;
            }
        });
        let registry = Registry::new(&Cli::parse_from(["ctrip", "--schema-registry-url", &url]).settings).unwrap();
        for id in [41, 7] {
            assert_eq!(registry.look_up(Topic::Events, id).await.unwrap(), Registered::Nothing);
            registry.bring_back(Topic::Events, id).await.unwrap();
            assert_eq!(registry.look_up(Topic::Events, id).await.unwrap(), Registered::Record);
            assert_eq!(registry.look_up(Topic::State, id).await.unwrap(), Registered::Other);
        }
        assert_eq!(state.lock().unwrap().schemas[&41], Topic::Events.schema(), "the newest id is that of our text");

        state.lock().unwrap().schemas.insert(8, Topic::State.schema().to_owned());
        let refused = registry.bring_back(Topic::Intents, 8).await.unwrap_err().to_string();
        assert!(refused.contains("the schema id 8") && refused.contains("another schema"), "{refused}");
        assert!(state.lock().unwrap().modes.is_empty(), "{:?}", state.lock().unwrap().modes);

        // As after a kill.
        state.lock().unwrap().modes.insert("payment.events-value".to_owned(), "IMPORT".to_owned());
        registry.leave_import(Topic::Events).await.unwrap();
        registry.leave_import(Topic::State).await.unwrap();
        assert!(state.lock().unwrap().modes.is_empty(), "{:?}", state.lock().unwrap().modes);
    }
}
