//! The contracts that sweep: what is committed is what the pinned compiler makes of the sources; on the real go-ethereum, what
//! a swept address costs, and that nothing an address or a token does keeps others from being swept. Skipped where geth can't
//! be had.

use alloy::eips::eip7702::{Authorization, SignedAuthorization};
use alloy::hex;
use alloy::primitives::{Address, B256, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use e2e::{Fork, Node, PAYER, eventually, quantity, root};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use sweeper::engine::content::{Content, SignedBytes};
use sweeper::engine::fees::Fees;
use sweeper::keys::{LocalKey, Signer as _};
use topics::ChainId;

const CHAIN: ChainId = ChainId(31337);
/// The key of [`PAYER`], anvil's first account, which everybody knows.
const PAYER_KEY: [u8; 32] = hex!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
/// More than any test's block asks for.
const FEES: Fees = Fees { tip: 1, cap: 100_000_000_000 };
/// What one call of a token may take: more than two new slots on Amsterdam.
const GAS_EACH: u64 = 400_000;
/// Below the limit of a transaction (EIP-7825).
const GAS: u64 = 16_000_000;
const MUCH: u64 = 1 << 40;

#[test]
fn what_is_committed_is_what_the_pinned_compiler_makes_of_the_sources() -> Result<()> {
    let output = Command::new(root().join("dev/contracts")).arg("--check").output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

/// A chain with a token and the contracts.
struct Chain {
    node: Node,
    payer: LocalKey,
    token: Address,
    treasury: Address,
    delegate: Address,
    batch: Address,
    puller: Address,
}

/// A call whose last argument is an array of tuples of words.
fn call(signature: &str, head: &[B256], items: &[Vec<B256>]) -> Vec<u8> {
    let mut data = keccak256(signature)[..4].to_vec();
    head.iter().for_each(|word| data.extend(word));
    data.extend(word((head.len() + 1) * 32));
    data.extend(word(items.len()));
    items.iter().flatten().for_each(|word| data.extend(word));
    data
}

fn word<T>(number: T) -> B256
where
    U256: TryFrom<T>,
{
    B256::from(U256::try_from(number).unwrap_or_default())
}

/// What the compiler made of a contract.
fn committed(name: &str) -> Result<Value> {
    let file: PathBuf = root().join(format!("sweeper/contracts/{name}.json"));
    Ok(serde_json::from_str(&std::fs::read_to_string(file)?)?)
}

/// The code that makes a contract, without 0x.
fn creation(contract: &Value, arguments: &[u8]) -> Result<String> {
    Ok(format!("{}{}", contract["creation"].as_str().context("no code")?, hex::encode(arguments)))
}

fn new_key() -> Result<LocalKey> {
    Ok(LocalKey::new(&rand::random())?)
}

fn payees(accounts: &[LocalKey]) -> Vec<Address> {
    accounts.iter().map(|account| account.address()).collect()
}

fn addresses(accounts: &[LocalKey]) -> Vec<Vec<B256>> {
    accounts.iter().map(|account| vec![account.address().into_word()]).collect()
}

impl Chain {
    async fn start(fork: Fork, token: &str) -> Result<Option<Self>> {
        let folder = root().join(format!("target/lab/contracts_{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder)?;
        let Some(node) = Node::geth(&folder, fork).await? else { return Ok(None) };
        let token = node.create(&std::fs::read_to_string(root().join(format!("testdata/sweeping/{token}.hex")))?).await?;
        let treasury = new_key()?.address();
        let deploy = async |name: &str, arguments: &[u8]| {
            let contract = committed(name)?;
            let address = node.create(&creation(&contract, arguments)?).await?;
            // What `immutables` says is what a check of the code on the chain needs.
            let mut expected = hex::decode(contract["runtime"].as_str().context("no code")?)?;
            for place in contract["immutables"].as_array().context("no places")? {
                let place = usize::try_from(place.as_u64().context("no place")?)?;
                expected[place..place + 32].copy_from_slice(arguments);
            }
            let code = node.call("eth_getCode", json!([address, "latest"])).await?;
            ensure!(code == hex::encode_prefixed(&expected), "{name} has other code on the chain than is committed");
            Ok(address)
        };
        let arguments = treasury.into_word();
        let (delegate, puller) =
            (deploy("Sweeper7702", arguments.as_slice()).await?, deploy("Puller", arguments.as_slice()).await?);
        let batch = deploy("SweepBatch", &[]).await?;
        let chain = Self { payer: LocalKey::new(&PAYER_KEY)?, token, treasury, delegate, batch, puller, node };
        chain.pay(&[treasury], 1).await?;
        Ok(Some(chain))
    }

    /// Pays each, and returns the gas of the last payment.
    async fn pay(&self, payees: &[Address], amount: u64) -> Result<u64> {
        let mut last = B256::ZERO;
        for payee in payees {
            last = self.node.pay_with(self.token, *payee, U256::from(amount)).await?;
        }
        let receipt = eventually("the payments", || self.node.receipt(last)).await?;
        quantity(&receipt["gasUsed"])
    }

    /// New addresses with this much each.
    async fn paid(&self, count: usize, amount: u64) -> Result<Vec<LocalKey>> {
        let accounts: Vec<LocalKey> = (0..count).map(|_| new_key()).collect::<Result<_>>()?;
        self.pay(&payees(&accounts), amount).await?;
        Ok(accounts)
    }

    /// Sends a call from the payer, with so much gas, and returns its receipt.
    async fn send(&self, to: Address, input: &[u8], gas: u64, authorizations: Vec<SignedAuthorization>) -> Result<Value> {
        let nonce = quantity(&self.node.call("eth_getTransactionCount", json!([PAYER, "pending"])).await?)?;
        let content = Content { to: Some(to), value: U256::ZERO, data: input.to_vec().into(), gas_limit: gas, authorizations };
        let transaction = content.unsigned(CHAIN, nonce, FEES).context("no transaction does it")?;
        let signature = self.payer.sign_transaction(&transaction).await?;
        let signed = SignedBytes::new(transaction, signature, self.payer.address()).context("signed by another")?;
        self.node.call("eth_sendRawTransaction", json!([signed.raw])).await?;
        eventually("the receipt", || self.node.receipt(signed.hash)).await
    }

    /// Delegates an account to the contract, if its nonce is this one by then.
    async fn delegation(&self, account: &LocalKey, nonce: u64) -> Result<SignedAuthorization> {
        let authorization = Authorization { chain_id: U256::from(CHAIN.0), address: self.delegate, nonce };
        let signature = account.sign_authorization(&authorization).await?;
        Ok(authorization.into_signed(signature))
    }

    async fn estimate(&self, to: Address, input: &[u8]) -> Result<u64> {
        let data = hex::encode_prefixed(input);
        quantity(&self.node.call("eth_estimateGas", json!([{ "from": PAYER, "to": to, "data": data }])).await?)
    }

    async fn ask(&self, signature: &str, arguments: &[B256]) -> Result<B256> {
        let data = [&keccak256(signature)[..4], &arguments.concat()].concat();
        let call = json!([{ "to": self.token, "data": hex::encode_prefixed(data) }, "latest"]);
        Ok(self.node.call("eth_call", call).await?.as_str().context("no answer")?.parse()?)
    }

    async fn balance(&self, account: Address) -> Result<U256> {
        Ok(self.ask("balanceOf(address)", &[account.into_word()]).await?.into())
    }

    fn swept(&self, accounts: &[LocalKey]) -> Vec<u8> {
        let head = [self.token.into_word(), word(GAS_EACH)];
        call("sweep(address,uint256,address[])", &head, &addresses(accounts))
    }

    fn pulled(&self, leave: u64, accounts: &[LocalKey]) -> Vec<u8> {
        let head = [self.token.into_word(), word(leave), word(GAS_EACH)];
        call("pull(address,uint256,uint256,address[])", &head, &addresses(accounts))
    }

    async fn permits(&self, accounts: &[LocalKey]) -> Result<Vec<u8>> {
        let kind = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        let mut items = Vec::new();
        for one in accounts {
            let content = [kind, one.address().into_word(), self.puller.into_word(), word(U256::MAX), B256::ZERO, word(MUCH)];
            let [v, r, s] = self.sign(one, &content).await?;
            items.push(vec![one.address().into_word(), v, r, s]);
        }
        let head = [self.token.into_word(), B256::ZERO, word(GAS_EACH), word(U256::MAX), word(MUCH)];
        let signature = "permitAndPull(address,uint256,uint256,uint256,uint256,(address,uint8,bytes32,bytes32)[])";
        Ok(call(signature, &head, &items))
    }

    /// Authorizations of transfers to the treasury, of 1000 units each, with the sender's address as their nonce.
    async fn authorizations(&self, accounts: &[LocalKey]) -> Result<Vec<Vec<B256>>> {
        let kind = keccak256(concat!(
            "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,",
            "bytes32 nonce)"
        ));
        let mut items = Vec::new();
        for one in accounts {
            let (from, nonce) = (one.address().into_word(), keccak256(one.address()));
            let content = [kind, from, self.treasury.into_word(), word(1000), B256::ZERO, word(MUCH), nonce];
            let [v, r, s] = self.sign(one, &content).await?;
            items.push(vec![from, word(1000), nonce, v, r, s]);
        }
        Ok(items)
    }

    fn authorized(&self, items: &[Vec<B256>]) -> Vec<u8> {
        let signature = "authorized(address,uint256,uint256,(address,uint256,bytes32,uint8,bytes32,bytes32)[])";
        call(signature, &[self.token.into_word(), word(GAS_EACH), word(MUCH)], items)
    }

    /// Signs typed data of the token (EIP-712): v, r and s.
    async fn sign(&self, signer: &LocalKey, content: &[B256]) -> Result<[B256; 3]> {
        let domain = self.ask("DOMAIN_SEPARATOR()", &[]).await?;
        let signature = signer.sign_message(domain, keccak256(content.concat())).await?;
        Ok([word(27 + u64::from(signature.v())), word(signature.r()), word(signature.s())])
    }
}

/// The gas of each way, per address in batches of fifty, and what each may cost at most.
async fn costs(fork: Fork, at_most: &[(&str, u64)]) -> Result<()> {
    const COUNT: usize = 50;
    let Some(chain) = Chain::start(fork, "Dollar").await? else { return Ok(()) };
    let mut before = chain.balance(chain.treasury).await?;
    let mut costs = Vec::new();
    let mut note = async |name: &'static str, receipt: Value| {
        let after = chain.balance(chain.treasury).await?;
        ensure!(after == before + U256::from(1000 * COUNT), "{name}: {before} and then {after}: {receipt}");
        before = after;
        costs.push((name, quantity(&receipt["gasUsed"])? / u64::try_from(COUNT)?));
        Ok(())
    };

    let delegated = chain.paid(COUNT, 1000).await?;
    let authorizations = try_join_all(delegated.iter().map(|one| chain.delegation(one, 0))).await?;
    note("sweep_gas_7702_first", chain.send(chain.batch, &chain.swept(&delegated), GAS, authorizations).await?).await?;
    chain.pay(&payees(&delegated), 1000).await?;
    note("sweep_gas_7702_later", chain.send(chain.batch, &chain.swept(&delegated), GAS, vec![]).await?).await?;

    let signed = chain.paid(COUNT, 1000).await?;
    let input = chain.authorized(&chain.authorizations(&signed).await?);
    note("sweep_gas_3009", chain.send(chain.puller, &input, GAS, vec![]).await?).await?;

    let fixed = chain.paid(COUNT, 1000).await?;
    let input = chain.permits(&fixed).await?;
    note("sweep_gas_allowance_first", chain.send(chain.puller, &input, GAS, vec![]).await?).await?;
    let to_nothing = chain.pay(&payees(&fixed), 1000).await?;
    note("sweep_gas_allowance_later", chain.send(chain.puller, &chain.pulled(0, &fixed), GAS, vec![]).await?).await?;
    chain.pay(&payees(&fixed), 1001).await?;
    note("sweep_gas_allowance_leaving_one", chain.send(chain.puller, &chain.pulled(1, &fixed), GAS, vec![]).await?).await?;
    let to_one = chain.pay(&payees(&fixed), 1000).await?;

    println!("{fork:?}: {costs:?}; a payer pays {to_nothing}, and {to_one} where a unit was left");
    ensure!(to_one < to_nothing, "{to_one} {to_nothing}");
    for (name, at_most) in at_most {
        let cost = costs.iter().find(|(known, _)| known == name).with_context(|| format!("{name} was not measured"))?.1;
        ensure!(cost <= *at_most, "{name} is {cost}, more than {at_most}");
    }
    Ok(())
}

#[tokio::test]
async fn a_swept_address_costs_no_more_gas_than_it_should_on_osaka() -> Result<()> {
    let at_most = [
        ("sweep_gas_7702_first", 32_000),
        ("sweep_gas_7702_later", 11_500),
        ("sweep_gas_3009", 36_000),
        ("sweep_gas_allowance_first", 59_000),
        ("sweep_gas_allowance_later", 10_500),
    ];
    costs(Fork::Osaka, &at_most).await
}

#[tokio::test]
async fn a_swept_address_costs_no_more_gas_than_it_should_on_amsterdam() -> Result<()> {
    let at_most = [
        ("sweep_gas_7702_first", 245_000),
        ("sweep_gas_7702_later", 18_000),
        ("sweep_gas_3009", 125_000),
        ("sweep_gas_allowance_first", 240_000),
        ("sweep_gas_allowance_later", 16_500),
    ];
    costs(Fork::Amsterdam, &at_most).await
}

/// Of a batch by delegation: an authorization is stale, and the token refuses one address and burns all its gas.
#[tokio::test]
async fn an_address_that_can_not_be_swept_leaves_the_others_swept() -> Result<()> {
    let Some(chain) = Chain::start(Fork::Osaka, "MuteToken").await? else { return Ok(()) };
    let accounts = chain.paid(6, 1000).await?;
    let [stale, refused] = [1, 3];
    let refuse = [&keccak256("blacklist(address)")[..4], accounts[refused].address().into_word().as_slice()].concat();
    chain.send(chain.token, &refuse, GAS, vec![]).await?;
    let delegations = accounts.iter().enumerate().map(|(at, one)| chain.delegation(one, if at == stale { 7 } else { 0 }));
    let authorizations = try_join_all(delegations).await?;
    let receipt = chain.send(chain.batch, &chain.swept(&accounts), GAS, authorizations).await?;
    ensure!(receipt["status"] == "0x1", "{receipt}");
    for (at, account) in accounts.iter().enumerate() {
        let left = chain.balance(account.address()).await?;
        ensure!((left > U256::ZERO) == [stale, refused].contains(&at), "{left} is left of {at}");
    }
    ensure!(chain.balance(chain.treasury).await? == U256::from(1 + 4 * 1000), "the treasury has another sum");

    // In a state that does not change what an estimate finds is enough for all, and less sweeps none.
    chain.pay(&payees(&accounts), 500).await?;
    let input = chain.swept(&accounts);
    let estimate = chain.estimate(chain.batch, &input).await?;
    let short = chain.send(chain.batch, &input, estimate - GAS_EACH / 2, vec![]).await?;
    ensure!(short["status"] == "0x0", "{short}");
    ensure!(chain.balance(chain.treasury).await? == U256::from(1 + 4 * 1000), "some were swept");
    chain.send(chain.batch, &input, estimate, vec![]).await?;
    ensure!(chain.balance(chain.treasury).await? == U256::from(1 + 4 * 1500), "not all were swept with {estimate}");
    Ok(())
}

/// A batch of new addresses that has too little gas for its first call.
async fn short(fork: Fork, an_authorization: u64) -> Result<()> {
    const COUNT: u64 = 4;
    let Some(chain) = Chain::start(fork, "Dollar").await? else { return Ok(()) };
    let accounts = chain.paid(usize::try_from(COUNT)?, 1000).await?;
    let authorizations = async || try_join_all(accounts.iter().map(|one| chain.delegation(one, 0))).await;
    let delegated = async || {
        let mut delegated = 0;
        for account in &accounts {
            let of = json!([account.address(), "latest"]);
            let code = chain.node.call("eth_getCode", of.clone()).await?;
            let has = code == format!("0xef0100{}", hex::encode(chain.delegate));
            let nonce = quantity(&chain.node.call("eth_getTransactionCount", of).await?)?;
            ensure!(has || code == "0x", "{code}");
            ensure!(nonce == u64::from(has), "{nonce} {code}");
            delegated += u64::from(has);
        }
        Ok(delegated)
    };
    let input = chain.swept(&accounts);
    // What it takes before its first call, at most.
    let before = 40_000 + COUNT * an_authorization;
    if fork == Fork::Amsterdam {
        let gas = before - an_authorization;
        let receipt = chain.send(chain.batch, &input, gas, authorizations().await?).await?;
        ensure!(receipt["status"] == "0x0" && quantity(&receipt["gasUsed"])? == gas, "{receipt}");
        ensure!(delegated().await? == 0, "some authorizations were applied without gas for all");
    }
    let receipt = chain.send(chain.batch, &input, before + GAS_EACH / 2, authorizations().await?).await?;
    ensure!(receipt["status"] == "0x0" && quantity(&receipt["gasUsed"])? <= before, "{receipt}");
    ensure!(chain.balance(chain.treasury).await? == U256::from(1), "some were swept");
    ensure!(delegated().await? == COUNT, "the revert took back a delegation");
    // Its code sweeps an address then, and its authorization does no more: it is of the nonce of before.
    let receipt = chain.send(chain.batch, &input, GAS, authorizations().await?).await?;
    ensure!(chain.balance(chain.treasury).await? == U256::from(1 + 1000 * COUNT), "not all were swept: {receipt}");
    ensure!(delegated().await? == COUNT, "a stale authorization was applied");
    Ok(())
}

#[tokio::test]
async fn a_batch_with_too_little_gas_sweeps_nothing_and_its_delegations_stand_on_osaka() -> Result<()> {
    short(Fork::Osaka, 25_000).await
}

#[tokio::test]
async fn a_batch_with_too_little_gas_sweeps_nothing_and_its_delegations_stand_on_amsterdam() -> Result<()> {
    short(Fork::Amsterdam, 235_606).await
}

#[tokio::test]
async fn an_authorization_that_was_submitted_before_or_is_refused_leaves_the_others_taken() -> Result<()> {
    let Some(chain) = Chain::start(Fork::Osaka, "AskingDollar").await? else { return Ok(()) };
    let accounts = chain.paid(4, 1000).await?;
    let items = chain.authorizations(&accounts).await?;
    // A stranger sees one in the pool and is faster.
    chain.send(chain.puller, &chain.authorized(&items[1..2]), GAS, vec![]).await?;
    ensure!(chain.balance(chain.treasury).await? == U256::from(1001), "it pays the treasury all the same");
    // A delegated address has code that does not say that it has signed.
    let none = chain.swept(&[]);
    chain.send(chain.batch, &none, GAS, vec![chain.delegation(&accounts[2], 0).await?]).await?;
    let receipt = chain.send(chain.puller, &chain.authorized(&items), GAS, vec![]).await?;
    ensure!(receipt["status"] == "0x1", "{receipt}");
    ensure!(chain.balance(chain.treasury).await? == U256::from(1 + 3 * 1000), "the treasury has another sum");
    ensure!(chain.balance(accounts[2].address()).await? == U256::from(1000), "it has code and can't sign");
    // It is swept by its code, and takes coin, as far as the payer's gas reaches the code.
    chain.send(chain.batch, &chain.swept(&accounts[2..3]), GAS, vec![]).await?;
    ensure!(chain.balance(accounts[2].address()).await? == U256::ZERO, "it is not swept");
    for (gas, data, arrives) in [(21_000, "0x", false), (21_100, "0x", true), (30_000, "0x6e6f7465206f66206d696e65", true)] {
        let pay =
            json!({ "from": PAYER, "to": accounts[2].address(), "value": "0x1", "data": data, "gas": format!("{gas:#x}") });
        let hash = chain.node.send(pay).await?;
        let receipt = eventually("the receipt", || chain.node.receipt(hash)).await?;
        ensure!((receipt["status"] == "0x1") == arrives, "{gas} {data}: {receipt}");
    }
    Ok(())
}

#[tokio::test]
async fn no_contract_is_made_that_pays_nobody() -> Result<()> {
    let Some(chain) = Chain::start(Fork::Osaka, "Dollar").await? else { return Ok(()) };
    for name in ["Sweeper7702", "Puller"] {
        let contract = committed(name)?;
        let create = |treasury: Address| creation(&contract, treasury.into_word().as_slice());
        let made = |code: String| chain.node.call("eth_call", json!([{ "from": PAYER, "data": format!("0x{code}") }]));
        made(create(chain.treasury)?).await?;
        ensure!(made(create(Address::ZERO)?).await.is_err(), "{name} is made for address zero");
    }
    Ok(())
}
