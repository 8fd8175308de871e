//! Request bodies as the crate `fuzz` reads them: any bytes are refused in few words, or read as what stays within its bounds.

use crate::chains::catalog::Catalog;
use crate::create::order::Order;
use crate::http::fields::Fields;
use crate::http::problem::Problem;
use crate::routes::{payments_batch, webhook_redeliver, webhooks};
use ::webhooks::Guard;
use chain::Chain;
use merchants::DefaultTerms;
use serde_json::Value;

/// A refusal repeats parts of the body, and no more than this.
const MAX_PROBLEM_BYTES: usize = 16 * 1024;

/// Reads a body as each route does that takes one.
///
/// # Panics
/// When what is read breaks a rule: a finding.
pub fn read_body(body: &[u8], chains: &[Chain]) {
    let (catalog, terms) = (Catalog::of(chains.to_vec()), DefaultTerms::default());
    if let Some(order) = accepted(Order::read(body, &catalog, terms)) {
        check(&order);
        let item = Order::read_item(body, &catalog, terms);
        assert_eq!(item, (Ok(order), None), "an order is another in a batch");
    }
    for item in accepted(payments_batch::read_items(body)).into_iter().flatten() {
        if let Some(order) = accepted(Order::read_item(item.get().as_bytes(), &catalog, terms).0) {
            check(&order);
        }
    }
    accepted(webhook_redeliver::read_request(body));
    if let Some(mut fields) = accepted(Fields::read(body)) {
        webhooks::read_changes(&mut fields, &Guard::new(Vec::new(), false));
        accepted(fields.finish(&webhooks::FIELDS));
    }
}

fn accepted<T>(read: Result<T, Problem>) -> Option<T> {
    read.map_err(|problem| {
        let text = serde_json::to_vec(&problem).expect("a problem is JSON");
        assert!(text.len() < MAX_PROBLEM_BYTES, "{}", String::from_utf8_lossy(&text));
    })
    .ok()
}

fn check(order: &Order) {
    assert!(!order.amount.is_zero());
    assert!(order.external_id.as_ref().is_none_or(|id| !id.is_empty() && !id.contains('\0')));
    let metadata = order.metadata.as_ref().map(|text| serde_json::from_str::<Value>(text));
    assert!(metadata.is_none_or(|read| read.is_ok_and(|value| value.is_object())), "{order:?}");
}
