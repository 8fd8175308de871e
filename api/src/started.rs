//! Which chains are followed already.
//!
//! A chain without a `start_block` begins at the head that ingest finds when it first runs. What is paid in blocks before that
//! one is never seen, so no address is given out for such a chain before its first block has gone through the pipeline.

use crate::app::App;
use crate::problem::Problem;
use runtime::db;
use std::collections::HashSet;
use std::sync::RwLock;
use topics::ChainId;

/// The chains that were found to have begun; none ever stops having done so.
#[derive(Default)]
pub struct Started(RwLock<HashSet<ChainId>>);

impl Started {
    /// # Errors
    /// A 503 that names the chain if it has not begun.
    pub async fn ensure(app: &App, id: ChainId) -> Result<(), Problem> {
        let fixed = app.catalog.0.iter().any(|chain| chain.id == id && chain.start_block.is_some());
        if fixed || app.started.0.read().is_ok_and(|known| known.contains(&id)) {
            return Ok(());
        }
        let db = app.db().await?;
        let number = i64::try_from(id.0).map_err(|_| Problem::internal())?;
        let row = db.query_opt("SELECT FROM chain_heads WHERE chain_id = $1", &[&number]).await.map_err(db::failure)?;
        if row.is_none() {
            return Err(Problem::unavailable(
                2,
                format!("Chain {id} is not followed yet: its first block is on its way. Try again"),
            ));
        }
        if let Ok(mut known) = app.started.0.write() {
            known.insert(id);
        }
        Ok(())
    }
}
