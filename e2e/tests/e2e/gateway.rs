//! A client of the Python gateway, written without knowledge of cTrip, works with it unchanged.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, root};
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use topics::{Address, U256};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_python_gateway_gets_its_payments_confirmed() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_ctrip, api) = lab.serve("up", "gateway").await?;
    let mut client = Command::new("python3")
        .arg(root().join("e2e/python/gateway_client.py"))
        .env("API_URL", &api.url)
        .env("API_KEY", &api.key)
        .env("TOKEN_ADDRESS", lab.node.token.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context("python3")?;
    let output = BufReader::new(client.stdout.take().context("its output")?);
    let mut paid = 0;
    for line in output.lines() {
        let payment: Value = serde_json::from_str(&line?)?;
        let address: Address = payment["address"].as_str().context("address")?.parse()?;
        let amount = U256::from(payment["amount"].as_u64().context("amount")?);
        if payment["token"] == true {
            lab.node.pay_token(address, amount).await?;
        } else {
            lab.node.pay(address, amount).await?;
        }
        paid += 1;
        if paid == 3 {
            lab.node.mine(3).await?;
        }
    }
    let status = client.wait()?;
    ensure!(status.success() && paid == 3, "{status} after {paid} payments");
    Ok(())
}
