//! `ctrip set-aside`: what one fault keeps from being processed, by name, which `/health` does not tell to anyone who asks.

use anyhow::Context as _;
use base::text;
use runtime::{Settings, db, set_aside};

pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let pool = db::pool(&settings.database_url, 1)?;
    let db = pool.get().await.context("Postgres (DATABASE_URL)")?;
    let all = set_aside::all(&db, &settings.topic_prefix).await?;
    let head = ["stage", "item", "cause"].map(str::to_owned).to_vec();
    let rows = all.into_iter().map(|aside| vec![aside.stage, aside.item, aside.cause]);
    print!("{}", text::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    Ok(())
}
