//! Decoding by the schema registry alone. No type of a record is compiled in, so a field that is added to a schema is there
//! without a new build.

use super::client::variable;
use anyhow::{Context as _, Result};
use prost_reflect::DynamicMessage;
use schema_registry_converter::async_impl::proto_decoder::ProtoDecoder;
use schema_registry_converter::async_impl::schema_registry::SrSettings;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// A registry that accepts a connection and says nothing must not block the consumer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the registry for each schema once.
pub struct Decoder {
    tokio: Runtime,
    registry: ProtoDecoder,
}

impl Decoder {
    /// For the registry at SCHEMA_REGISTRY_URL.
    ///
    /// # Errors
    /// When SCHEMA_REGISTRY_URL is not set.
    pub fn new() -> Result<Self> {
        // As for the pipeline: several URLs of one registry, separated by commas.
        let urls = variable("SCHEMA_REGISTRY_URL")?;
        let mut urls = urls.split(',').map(|url| url.trim().trim_end_matches('/').to_owned());
        let mut settings = SrSettings::new_builder(urls.next().unwrap_or_default());
        for url in urls {
            settings.add_url(url);
        }
        let settings = settings.set_timeout(CALL_TIMEOUT).build()?;
        let tokio = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { tokio, registry: ProtoDecoder::new(settings) })
    }

    /// Decodes a record's value, which names its schema and the message in it. Blocks.
    ///
    /// # Errors
    /// When the value has no Confluent frame, the registry does not have the schema, or the two do not fit.
    pub fn decode(&self, value: &[u8]) -> Result<DynamicMessage> {
        let decoded = self.tokio.block_on(self.registry.decode_with_context(Some(value)))?;
        Ok(decoded.context("the record has no value")?.value)
    }
}
