//! Schemas of what goes in and out, by resource: formatted strings, query parameters, and bodies that handlers read by hand.
//!
//! Replies are not here: their structs derive their schemas where they are. Bodies and queries are read field by field, so that
//! no number goes through a float and every wrong field is named at once; these structs only document them, and a test keeps
//! their fields equal to the lists that the readers have.

mod addresses;
mod catalog;
mod payments;
mod texts;
mod webhooks;

pub use addresses::{CreateAddress, ListAddresses, ListDeposits};
pub use catalog::ListTokens;
pub use payments::{CreatePayment, CreatePayments, ListEvents, ListPayments, ListTransfers};
pub use texts::{
    Address, Amount, CoinFromContracts, DeliveryState, EventId, Exception, Finality, Hash, PaymentId, Source, Status, Time,
    TokenId, WebhookId,
};
pub use webhooks::{CreateWebhook, ListDeliveries, RedeliverWebhook, UpdateWebhook};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use utoipa::PartialSchema as _;

    /// The bodies are read by hand, so nothing else keeps the document and the readers together.
    #[test]
    fn the_document_has_the_fields_that_are_read() {
        for (schema, read) in [
            (CreatePayment::schema(), &crate::create::order::FIELDS[..]),
            (CreateAddress::schema(), &crate::routes::addresses::FIELDS[..]),
            (CreateWebhook::schema(), &crate::routes::webhooks::FIELDS[..]),
            (UpdateWebhook::schema(), &crate::routes::webhooks::UPDATE_FIELDS[..]),
            (RedeliverWebhook::schema(), &crate::routes::webhook_redeliver::FIELDS[..]),
        ] {
            let schema = serde_json::to_value(schema).unwrap();
            let documented: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(documented, read.iter().copied().collect());
        }
    }
}
