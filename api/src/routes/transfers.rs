//! `GET /api/v1/payments/{id}/transfers` and `GET /api/v1/addresses/{id}/transfers`: all transfers in the chain's order, page by page,
//! also those that do not count.

use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::Parameters;
use crate::http::pagination::{PageQuery, PageSize, bad_cursor, no_filter};
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::read::{Snapshot, Unread};
use crate::routes::addresses::{self, AddressPath};
use crate::routes::payments::{PaymentPath, no_payment};
use crate::routes::transfer_reply::{Depths, TransferReply};
use axum::Json;
use axum::extract::State;
use payments::store::{self, TransferOwner};
use payments::{ReceivedTransfer, TransferPlace};
use serde::Serialize;
use std::iter;
use topics::{ChainId, Source};
use utoipa::ToSchema;

const CURSOR_VERSION: u8 = 3;
/// In a cursor a source is its place here.
const SOURCES: [Source; 3] = [Source::Transaction, Source::Log, Source::Trace];

/// A page of transfers.
#[derive(Debug, Serialize, ToSchema)]
pub struct TransferPage {
    data: Vec<TransferReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// `GET /api/v1/payments/{id}/transfers`
#[utoipa::path(
    get, path = "/api/v1/payments/{id}/transfers", operation_id = "listTransfers", tag = "payments",
    summary = "List the transfers to a payment",
    description = "Those on the canonical chain in its order, also those that do not count: of unlisted tokens, or below the minimum.",
    params(("id" = schemas::PaymentId, Path), schemas::ListTransfers),
    responses((status = 200, description = "A page.", body = TransferPage)),
)]
pub async fn of_payment(
    State(app): State<App>,
    caller: Caller,
    PaymentPath(id): PaymentPath,
    Parameters(parameters): Parameters,
) -> Result<Json<TransferPage>, Problem> {
    let page = read(parameters)?;
    let (app, page) = (&app, &page);
    let load = |db: Snapshot| async move {
        if !store::belongs_to_merchant(&*db, caller.merchant, id).await? {
            return Err(no_payment(id).into());
        }
        db.ensure_acknowledged(id.0).await?;
        list(app, &db, TransferOwner::Payment(id.0), page).await
    };
    app.reads.read_page(page, load).await
}

/// `GET /api/v1/addresses/{id}/transfers`
#[utoipa::path(
    get, path = "/api/v1/addresses/{id}/transfers", operation_id = "listUncredited", tag = "addresses",
    summary = "List the transfers to an address that made no deposit",
    description = "Those on the canonical chain in its order: of tokens that this service does not list, or below the minimum.",
    params(("id" = schemas::PaymentId, Path), schemas::ListTransfers),
    responses((status = 200, description = "A page.", body = TransferPage)),
)]
pub async fn of_address(
    State(app): State<App>,
    caller: Caller,
    AddressPath(id): AddressPath,
    Parameters(parameters): Parameters,
) -> Result<Json<TransferPage>, Problem> {
    let page = read(parameters)?;
    let (app, caller, page) = (&app, &caller, &page);
    let load = |db: Snapshot| async move {
        let address = addresses::find(&db, caller, id).await?;
        list(app, &db, TransferOwner::DepositAddress(address.id), page).await
    };
    app.reads.read_page(page, load).await
}

type Page = PageQuery<TransferPlace>;

fn read(parameters: Vec<(String, String)>) -> Result<Page, Problem> {
    PageQuery::read(parameters, PageSize::STANDARD, "limit, cursor", decode_cursor, no_filter)
}

async fn list(app: &App, db: &Snapshot, owner: TransferOwner, page: &Page) -> Result<Json<TransferPage>, Unread> {
    let mut transfers = store::list_transfers(&**db, owner, page.cursor.as_ref(), page.rows_to_load()).await?;
    let next_cursor = page.cut(&mut transfers, |last: &ReceivedTransfer| encode_cursor(&last.place()));
    let catalog = app.catalog();
    let depths = Depths::load(&catalog, db, transfers.iter(), iter::empty()).await?;
    Ok(Json(TransferPage { data: transfers.iter().map(|paid| depths.reply(paid)).collect(), next_cursor }))
}

fn encode_cursor(last: &TransferPlace) -> String {
    let source = SOURCES.iter().zip(0_u8..).find(|(source, _)| source.as_str() == last.source).map_or(0, |(_, byte)| byte);
    let mut bytes = vec![CURSOR_VERSION];
    for number in [last.timestamp, last.chain.0, last.number] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&last.transaction_index.to_be_bytes());
    bytes.push(source);
    bytes.extend_from_slice(&last.index.to_be_bytes());
    hex::encode(bytes)
}

/// The reverse of [`encode_cursor`].
fn decode_cursor(text: &str) -> Result<TransferPlace, String> {
    let decode = || {
        let bytes: [u8; 34] = hex::decode(text).ok()?.try_into().ok()?;
        let long = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let short = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        (bytes[0] == CURSOR_VERSION).then_some(())?;
        Some(TransferPlace {
            timestamp: long(1)?,
            chain: ChainId(long(9)?),
            number: long(17)?,
            transaction_index: short(25)?,
            source: SOURCES.get(usize::from(bytes[29]))?.as_str(),
            index: short(30)?,
        })
    };
    decode().ok_or_else(|| bad_cursor(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_decodes_to_the_place_it_was_made_from_and_other_text_is_refused() {
        let place = TransferPlace {
            timestamp: 1_700_000_000,
            chain: ChainId(1),
            number: 7,
            transaction_index: 3,
            source: "log",
            index: 9,
        };
        let whole = encode_cursor(&place);
        assert_eq!(decode_cursor(&whole), Ok(place));
        for text in ["", "03", "zz", &whole[2..], &format!("{whole}00"), &format!("02{}", &whole[2..])] {
            assert_eq!(decode_cursor(text), Err(bad_cursor(text)), "{text}");
        }
        assert!(decode_cursor(&format!("{}ff{}", &whole[..58], &whole[60..])).is_err(), "there is no such source");
    }
}
