//! cTrip on the real go-ethereum. Skipped where it can't be had, as `make test` then says.

use anyhow::{Context as _, Result, ensure};
use e2e::{Fork, HistoryReader, Lab, eventually};
use topics::U256;

/// A payment's life on geth, with a reorg that takes it back, and a history that has the node's nonces, gas and prices.
async fn pays(fork: Fork) -> Result<()> {
    let Some(lab) = Lab::on_geth(fork).await? else { return Ok(()) };
    let (mut process, api) = lab.serve("up", "shop").await?;
    let payment = api.coin(1_000).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    api.until(payment.id(), "detected").await?;
    lab.node.reorg(1).await?;
    api.until(payment.id(), "pending").await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.pay_token(payment.address()?, U256::from(1)).await?;
    lab.node.mine(2).await?;
    let confirmed = api.until(payment.id(), "confirmed").await?;
    ensure!(confirmed.text("amount_received") == "1000", "{}", confirmed.0);

    let reader = HistoryReader::new(31337);
    let head = lab.node.head_hash().await?;
    let history = eventually("the head in chain.blocks", || async {
        Ok(Some(reader.read(&lab).await?).filter(|history| history.tip().as_deref() == Some(head.as_str())))
    })
    .await?;
    history.check(&lab.node.url, 0).await?;
    ensure!(history.removed == 1, "{} blocks were removed", history.removed);
    let transactions = || history.stack.iter().flat_map(|step| &step.block.transactions);
    let known = transactions().filter(|one| one.gas_used.is_some() && one.effective_gas_price.is_some()).count();
    ensure!(known == transactions().count() && known >= 3, "{known}: geth has receipts of whole blocks");
    ensure!(process.terminate()?.success(), "{}", process.tail());
    Ok(())
}

#[tokio::test]
async fn a_payment_is_detected_taken_back_and_confirmed_on_osaka() -> Result<()> {
    pays(Fork::Osaka).await.context("osaka")
}

#[tokio::test]
async fn a_payment_is_detected_taken_back_and_confirmed_on_amsterdam() -> Result<()> {
    pays(Fork::Amsterdam).await.context("amsterdam")
}
