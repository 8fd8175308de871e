//! Merchants, their keys and their own accounts.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Plan, Process, XPUB, eventually};
use futures::FutureExt as _;
use merchants::{KeyCache, KeyRefused};
use recovery::installation;
use reqwest::{Method, StatusCode};
use runtime::db;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use uuid::Uuid;
use wallet::AccountXpub;

/// m/44'/60'/0' of BIP-39's `legal winner thank year wave sausage worth useful legal winner thank yellow`.
pub const OTHER_XPUB: &str =
    "xpub6Bh6Cg7bvjFdW6VEAaZmsyhZh86WdJ9Kr5aqqY5LN7UFLpxTrxsiys213UCu8MAYjcq5JhF7jzZXvruGfWfPbxqsByNNhwWaNQRuhP3JcC3";

struct Running {
    lab: Lab,
    api: Api,
    _process: Process,
}

async fn running() -> Result<Running> {
    let lab = Lab::start(Plan::default()).await?;
    let (process, api) = lab.serve("api", "shop").await?;
    Ok(Running { lab, api, _process: process })
}

async fn status(api: &Api, method: Method) -> Result<StatusCode> {
    let body = (method == Method::POST).then(|| json!({ "chain": "anvil", "amount": 1 }));
    Ok(api.request(method, "/api/v1/payments", body, &[]).await?.0)
}

#[tokio::test]
async fn a_revoked_key_ends_and_a_rotated_one_lives_on_for_its_grace() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    ensure!(status(&api, Method::GET).await? == StatusCode::OK);
    let listed = lab.ctrip(&["keys", "list", "--merchant", "shop"])?;
    ensure!(listed.contains(&api.key_id()) && !listed.contains(&api.key), "{listed}");

    let new = api.with_key(&lab.ctrip(&["keys", "rotate", &api.key_id(), "--grace", "3600"])?);
    ensure!(status(&api, Method::POST).await? == StatusCode::CREATED, "the old one within its grace");
    ensure!(status(&new, Method::POST).await? == StatusCode::CREATED, "the new one");
    lab.ctrip(&["keys", "rotate", &api.key_id(), "--grace", "7200"])?;
    let sql = "SELECT expires_at < now() + interval '1 hour' FROM api_keys WHERE id = $1";
    let ends: bool = lab.database().await?.query_one(sql, &[&api.key_id()]).await?.get(0);
    ensure!(ends, "a second rotation lengthens the life of a key that ends");
    lab.ctrip(&["keys", "rotate", &new.key, "--grace", "0"])?;
    let ended = |api: Api| async move {
        let since = Instant::now();
        let refused = async || Ok((status(&api, Method::GET).await? == StatusCode::UNAUTHORIZED).then_some(()));
        eventually("the key to end", refused).await?;
        // Five seconds while Postgres is well, and some for a slow machine.
        ensure!(since.elapsed() < Duration::from_secs(15), "it lived on for {:?}", since.elapsed());
        anyhow::Ok(())
    };
    ended(new.clone()).await?;
    ensure!(status(&api, Method::GET).await? == StatusCode::OK, "the other one of the merchant goes on");
    let said = [lab.ctrip(&["keys", "revoke", &api.key_id()])?, lab.ctrip(&["keys", "revoke", &api.key_id()])?];
    ensure!(!said[0].contains("already") && said[1].contains("revoked already, at 20"), "{said:?}");
    ended(api.clone()).await?;
    let again = lab.ctrip(&["keys", "rotate", &api.key_id()]);
    ensure!(again.is_err(), "a revoked key came back to life");
    Ok(())
}

/// The index has the beginning of a hash, and the rest is compared.
#[tokio::test]
async fn a_key_whose_hash_only_begins_as_a_stored_one_is_unknown() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let (api, db) = (lab.merchant("shop")?, lab.database().await?);
    let grant = async || -> Result<_> {
        let pool = || db::pool(&lab.env["DATABASE_URL"], 1);
        Ok(Arc::new(KeyCache::new(pool()?, pool()?, None)).grant(&api.key, None).await)
    };
    ensure!(grant().await?.is_ok());
    for byte in [8, 31] {
        let sql = "UPDATE api_keys SET hash = set_byte(hash, $1, get_byte(hash, $1) # 1) WHERE id = $2";
        ensure!(db.execute(sql, &[&byte, &api.key_id()]).await? == 1);
        ensure!(matches!(grant().await?, Err(KeyRefused::Unknown)), "another key with the same id works");
    }
    Ok(())
}

#[tokio::test]
async fn last_use_is_recorded_and_the_key_is_stored_nowhere() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    let db = lab.database().await?;
    status(&api, Method::GET).await?;
    let used = async || {
        let row = db.query_one("SELECT last_used_at IS NOT NULL FROM api_keys", &[]).await?;
        Ok(row.get::<_, bool>(0).then_some(()))
    };
    eventually("the last use", used).await?;
    let row = db.query_one("SELECT k::text FROM api_keys k", &[]).await?;
    let secret = api.key.strip_prefix("ctrip_").context("the prefix")?;
    ensure!(!row.get::<_, &str>(0).contains(secret), "the key is in its row");
    Ok(())
}

/// After a start it does not queue among invented ones.
#[tokio::test]
async fn a_key_that_was_used_of_late_is_known_from_the_start() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let [used, other] = ["shop", "clerk"].map(|name| lab.merchant(name));
    let sql = "UPDATE api_keys k SET last_used_at = now() - interval '1 day' FROM merchants m WHERE m.id = k.merchant_id AND m.name = 'shop'";
    lab.database().await?.execute(sql, &[]).await?;
    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let look_ups = db::pool(&format!("postgres://ctrip@{}/ctrip", silent.local_addr()?), 1)?;
    let keys = Arc::new(KeyCache::new(db::pool(&lab.env["DATABASE_URL"], 1)?, look_ups, None));
    keys.fill().await?;
    let known = keys.grant(&used?.key, None).now_or_never();
    ensure!(known.is_some_and(|granted| granted.is_ok()), "it has to be looked up");
    ensure!(keys.grant(&other?.key, None).now_or_never().is_none(), "nobody has asked for it");
    Ok(())
}

#[tokio::test]
async fn a_key_that_may_read_changes_nothing() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    let payment = api.coin(5).await?;
    let reader = api.with_key(&lab.ctrip(&["keys", "create", "shop", "--scope", "read"])?);
    ensure!(reader.get(payment.id()).await?.id() == payment.id());
    for path in ["/api/v1/payments".to_owned(), format!("/api/v1/payments/{}/cancel", payment.id())] {
        let (status, answer) = reader.request(Method::POST, &path, Some(json!({ "chain": "anvil", "amount": 1 })), &[]).await?;
        ensure!(status == StatusCode::FORBIDDEN, "{path}: {status} {answer}");
        ensure!(answer["type"] == "urn:ctrip:problem:insufficient-scope", "{answer}");
    }
    ensure!(reader.get(payment.id()).await?.status() == "pending");
    Ok(())
}

#[tokio::test]
async fn a_merchants_own_account_has_its_own_sequence_of_addresses() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    let (ours, theirs) = (AccountXpub::parse(XPUB)?, AccountXpub::parse(OTHER_XPUB)?);
    lab.ctrip(&["merchants", "create", "sovereign", "--own-xpub", OTHER_XPUB])?;
    let other = lab.merchant("sovereign")?;
    for index in 0..3 {
        ensure!(api.coin(1).await?.address()? == ours.address(index)?, "ours at {index}");
        ensure!(other.coin(1).await?.address()? == theirs.address(index)?, "theirs at {index}");
    }
    // Payments of both in one batch.
    let many = (0..20).map(|place| if place % 2 == 0 { api.coin(1) } else { other.coin(1) });
    let many = futures::future::try_join_all(many).await?;
    let mut addresses = many.iter().map(e2e::Payment::address).collect::<Result<Vec<_>>>()?;
    let mut expected: Vec<_> =
        (3..13).map(|i| Ok([ours.address(i)?, theirs.address(i)?])).collect::<Result<Vec<_>>>()?.concat();
    addresses.sort_unstable();
    expected.sort_unstable();
    ensure!(addresses == expected);
    let listed = lab.ctrip(&["merchants", "list"])?;
    ensure!(listed.contains(&theirs.fingerprint()), "{listed}");

    lab.ctrip(&["merchants", "update", "sovereign", "--no-own-xpub"])?;
    let ours_again = async || Ok((other.coin(1).await?.address()? == ours.address(13)?).then_some(()));
    eventually("the merchant to be on cTrip's account", ours_again).await?;
    Ok(())
}

/// The last index of BIP-32 is 2^31 - 1. Beyond it each batch with a request of such a merchant failed for all.
#[tokio::test]
async fn an_account_without_addresses_is_refused_by_name_and_costs_no_other_a_payment() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    lab.ctrip(&["merchants", "create", "sovereign", "--own-xpub", OTHER_XPUB])?;
    let (other, theirs) = (lab.merchant("sovereign")?, AccountXpub::parse(OTHER_XPUB)?);
    let last = format!("SELECT setval('address_index_{}', 2147483646)", theirs.fingerprint());
    lab.database().await?.query_one(&last, &[]).await?;
    let post = async |api: &Api, path: &str, body, headers: &[(&str, &str)]| {
        api.request(Method::POST, path, Some(body), headers).await
    };
    let (payments, order) = ("/api/v1/payments", || json!({ "chain": "anvil", "amount": 1 }));
    let key = [("Idempotency-Key", "once")];
    let (status, first) = post(&other, payments, order(), &key).await?;
    ensure!(status == StatusCode::CREATED, "{first}");
    ensure!(first["address"] == theirs.address(2_147_483_647)?.to_checksum(None), "{first}");

    let many = (0..20).map(|place| post(if place % 2 == 0 { &api } else { &other }, payments, order(), &[]));
    for (place, (status, answer)) in futures::future::try_join_all(many).await?.into_iter().enumerate() {
        let expected = if place % 2 == 0 { StatusCode::CREATED } else { StatusCode::CONFLICT };
        ensure!(status == expected, "{place}: {status} {answer}");
        ensure!(place % 2 == 0 || answer["type"] == "urn:ctrip:problem:addresses-exhausted", "{answer}");
    }
    let (status, answer) = post(&other, "/api/v1/addresses", json!({ "external_id": "anyone" }), &[]).await?;
    ensure!(status == StatusCode::CONFLICT, "{status} {answer}");
    let (_, again) = post(&other, payments, order(), &key).await?;
    ensure!(again["id"] == first["id"], "the key has lost its payment: {again}");
    Ok(())
}

#[tokio::test]
async fn any_lost_address_of_another_account_than_the_settings_name_is_doubt_whatever_is_newer() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let id = Uuid::from_u128;
    let (of_newer, of_older, none) = (id(1), id(2), id(3));
    let db = runtime::db::pool(&lab.env["DATABASE_URL"], 1)?.get().await?;
    db.batch_execute(
        "INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('old', 'x', 's'), ('new', 'y', 't');
         INSERT INTO merchants (id, name, xpub) SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid, n, 'old'
         FROM unnest('{1,2,3}'::text[]) AS n",
    )
    .await?;
    // The second has changed to `new`, and a replica with its settings of before has made the last address of `old`.
    let lost = [
        (of_newer, "old", id(11)),
        (of_newer, "new", id(12)),
        (of_older, "new", id(13)),
        (of_older, "new", id(14)),
        (of_older, "old", id(15)),
        (none, "old", id(16)),
    ];
    merchants::note_restored_accounts(&db, &lost).await?;
    let noted = db.query("SELECT merchant_id, account, issued FROM restored_accounts ORDER BY 1", &[]).await?;
    let noted: Vec<(Uuid, String, Uuid)> = noted.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    ensure!(noted == [(of_newer, "new".to_owned(), id(12)), (of_older, "new".to_owned(), id(14))], "{noted:?}");
    Ok(())
}

/// After a restore an operator does again what was done since, before the roles start and find what was lost.
#[tokio::test]
async fn an_account_that_an_operator_has_said_again_is_not_doubted_by_addresses_of_before() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let [old, new] = [XPUB, OTHER_XPUB].map(|xpub| AccountXpub::parse(xpub).map(|account| account.fingerprint()));
    let (old, new) = (old?, new?);
    let shop: Uuid = lab.ctrip(&["merchants", "create", "shop", "--own-xpub", XPUB])?.parse()?;
    let before = [Uuid::now_v7(), Uuid::now_v7()];
    lab.ctrip(&["merchants", "update", "shop", "--own-xpub", OTHER_XPUB])?;
    let db = db::pool(&lab.env["DATABASE_URL"], 1)?.get().await?;
    let noted = async |lost: &[(Uuid, &str, Uuid)]| {
        merchants::note_restored_accounts(&db, lost).await?;
        let rows = db.query("SELECT account, issued FROM restored_accounts", &[]).await?;
        anyhow::Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(String, Uuid)>>())
    };
    let doubts = noted(&[(shop, &old, before[0]), (shop, &new, before[1])]).await?;
    ensure!(doubts.is_empty(), "{doubts:?}");
    let since = Uuid::now_v7();
    let doubts = noted(&[(shop, &old, since), (shop, &old, before[1])]).await?;
    ensure!(doubts == [(old, since)], "{doubts:?}");
    Ok(())
}

/// The statement of one waits for the other's, and its snapshot shows what was there before.
#[tokio::test]
async fn of_two_apis_that_start_at_once_with_different_xpubs_one_is_refused() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let (mut db, watch) = (lab.database().await?, lab.database().await?);
    db.batch_execute(
        "INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ('old', 'x', 's'), ('new', 'y', 't');
         INSERT INTO installation (id) VALUES (gen_random_uuid())",
    )
    .await?;
    let pool = db::pool(&lab.env["DATABASE_URL"], 1)?;
    for before in [None, Some("old")] {
        db.execute("UPDATE installation SET own_account = $1", &[&before]).await?;
        let first = db.transaction().await?;
        first.execute("UPDATE installation SET own_account = 'new'", &[]).await?;
        let late = pool.get().await?;
        let late = tokio::spawn(async move { installation::note_own_account(&late, "old", None).await });
        let sql = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("the second to wait", async || Ok(watch.query_opt(sql, &[]).await?.map(drop))).await?;
        first.commit().await?;
        let refused = late.await?.err().with_context(|| format!("two accounts are in use, after {before:?}"))?;
        ensure!(refused.to_string().contains("CTRIP_XPUB_REPLACES=new"), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn a_merchant_whose_name_a_restore_has_lost_gets_no_twin_by_mistake() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let created = lab.output(&["keys", "create", "shop"])?;
    ensure!(created.status.success() && String::from_utf8(created.stderr)?.contains("created the merchant \"shop\""));
    let again = lab.output(&["keys", "create", "shop"])?;
    ensure!(again.status.success() && again.stderr.is_empty(), "it was there");
    let db = lab.database().await?;
    // A restore, after which no role has run that finds what was lost.
    db.execute("INSERT INTO installation (id, lineage) VALUES (gen_random_uuid(), 'another')", &[]).await?;
    lab.ctrip(&["keys", "create", "shop"])?;
    for command in ["keys", "merchants"] {
        let refused = lab.output(&[command, "create", "lost shop"])?;
        let said = String::from_utf8(refused.stderr)?;
        ensure!(
            !refused.status.success() && said.contains("Start the roles first") && said.contains("--new-merchant"),
            "{said}"
        );
    }
    db.execute("DELETE FROM installation", &[]).await?;
    let lost = db.query_one("UPDATE merchants SET name = 'restored ' || id RETURNING name", &[]).await?;
    let lost: &str = lost.get(0);
    for command in ["keys", "merchants"] {
        let refused = lab.output(&[command, "create", "shop"])?;
        let said = String::from_utf8(refused.stderr)?;
        ensure!(!refused.status.success() && said.contains(lost) && said.contains("--rename"), "{said}");
    }
    ensure!(db.query_one("SELECT count(*) FROM merchants", &[]).await?.get::<_, i64>(0) == 1);
    lab.ctrip(&["keys", "create", "other shop", "--new-merchant"])?;
    lab.ctrip(&["keys", "create", "other shop"])?;
    lab.ctrip(&["merchants", "update", lost, "--rename", "shop"])?;
    lab.ctrip(&["keys", "create", "shop"])?;
    lab.ctrip(&["merchants", "create", "third shop"])?;
    Ok(())
}

#[tokio::test]
async fn another_xpub_than_before_is_refused_until_it_is_said_to_replace_it() -> Result<()> {
    let Running { mut lab, api, _process: mut process } = running().await?;
    let (first, second) = (AccountXpub::parse(XPUB)?, AccountXpub::parse(OTHER_XPUB)?);
    ensure!(api.coin(1).await?.address()? == first.address(0)?);
    // A customer's address, and then a restore from which nobody knows which account is the merchant's.
    let customer = json!({ "external_id": "customer" });
    let ask = async |customer: &Value| api.request(Method::POST, "/api/v1/addresses", Some(customer.clone()), &[]).await;
    let (status, known) = ask(&customer).await?;
    ensure!(status == StatusCode::CREATED, "{status} {known}");
    ensure!(process.terminate()?.success(), "{}", process.tail());
    lab.env.insert("CTRIP_XPUB".to_owned(), OTHER_XPUB.to_owned());
    for wrong in ["", "0123456789abcdef"] {
        lab.env.insert("CTRIP_XPUB_REPLACES".to_owned(), wrong.to_owned());
        let mut refused = lab.spawn("api")?;
        let (status, said) = (refused.end().await?, refused.tail());
        let remedy = format!("CTRIP_XPUB_REPLACES={}", first.fingerprint());
        ensure!(!status.success() && said.contains(&remedy) && said.contains(&second.fingerprint()), "{said}");
    }
    lab.env.insert("CTRIP_XPUB_REPLACES".to_owned(), first.fingerprint());
    let mut process = lab.spawn("api")?;
    api.ready(&mut process).await?;
    ensure!(api.coin(1).await?.address()? == second.address(0)?);

    let db = lab.database().await?;
    let doubt = "INSERT INTO restored_accounts (merchant_id, account, issued) SELECT id, $1, gen_random_uuid() FROM merchants";
    db.execute(doubt, &[&first.fingerprint()]).await?;
    eventually("a new address to be refused", async || {
        let (status, _) = ask(&json!({ "external_id": Uuid::new_v4().to_string() })).await?;
        Ok((status == StatusCode::SERVICE_UNAVAILABLE).then_some(()))
    })
    .await?;
    let (status, again) = ask(&customer).await?;
    ensure!(status == StatusCode::OK && again["address"] == known["address"], "{status} {again}");
    Ok(())
}

/// What was started with the account of before runs on for a while.
#[tokio::test]
async fn an_api_that_runs_gives_out_no_address_of_an_account_that_was_replaced_since_its_start() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    let second = AccountXpub::parse(OTHER_XPUB)?.fingerprint();
    let known = api.coin(1).await?;
    let db = lab.database().await?;
    let create =
        async || api.request(Method::POST, "/api/v1/payments", Some(json!({ "chain": "anvil", "amount": 5 })), &[]).await;
    // As the start of another one with CTRIP_XPUB_REPLACES does.
    let replace =
        "WITH other AS (INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ($1, $2, 'none') RETURNING fingerprint)
                   UPDATE installation SET own_account = fingerprint FROM other";
    db.execute(replace, &[&second, &OTHER_XPUB]).await?;
    eventually("new addresses to be refused", async || {
        let (status, answer) = create().await?;
        let says = answer["detail"].as_str().is_some_and(|detail| detail.contains("taken the place"));
        ensure!(status == StatusCode::CREATED || (status == StatusCode::SERVICE_UNAVAILABLE && says), "{status} {answer}");
        Ok(says.then_some(()))
    })
    .await?;
    let customer = json!({ "external_id": "customer" });
    let (status, answer) = api.request(Method::POST, "/api/v1/addresses", Some(customer), &[]).await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "a static address: {status} {answer}");
    ensure!(api.get(known.id()).await?.address()? == known.address()?, "what was given out is shown");
    let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
    ensure!(health["components"]["topics"]["error"].as_str().is_some_and(|error| error.contains(&second)), "{health}");
    // As in a backup from before any start.
    db.execute("UPDATE installation SET own_account = NULL", &[]).await?;
    eventually("it to be noted again", async || Ok((create().await?.0 == StatusCode::CREATED).then_some(()))).await
}

#[tokio::test]
async fn settings_out_of_bounds_are_refused_and_change_nothing() -> Result<()> {
    let lab = Lab::without_topics().await?;
    lab.ctrip(&["merchants", "create", "m", "--underpaid-tolerance-bps", "50", "--accept-late", "true"])?;
    for wrong in [
        ["--underpaid-tolerance-bps", "10001"],
        ["--metadata", "[]"],
        ["--metadata", "{"],
        ["--own-xpub", "xpub1"],
        ["--rename", " "],
    ] {
        ensure!(lab.ctrip(&[&["merchants", "update", "m"], &wrong[..]].concat()).is_err(), "{wrong:?}");
    }
    ensure!(lab.ctrip(&["merchants", "create", "m"]).is_err(), "a second one of the name");
    ensure!(lab.ctrip(&["merchants", "update", "nobody", "--accept-late", "false"]).is_err());
    lab.ctrip(&["merchants", "update", "m", "--overpaid-tolerance-bps", "7", "--metadata", r#"{"plan": "gold"}"#])?;
    let db = lab.database().await?;
    let row = db.query_one("SELECT m::text FROM merchants m", &[]).await?;
    let text: &str = row.get(0);
    ensure!(text.contains(",50,7,t,") && text.contains("gold"), "{text}");
    Ok(())
}

#[tokio::test]
async fn payments_have_their_merchants_terms_or_their_own() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    let settings = ["--underpaid-tolerance-bps", "100", "--overpaid-tolerance-bps", "250", "--accept-late", "true"];
    lab.ctrip(&[&["merchants", "update", "shop"], &settings[..]].concat())?;
    let order = json!({ "chain": "anvil", "amount": 1_050 });
    // Running APIs follow within seconds.
    let made = eventually("the merchant's terms", async || {
        Ok(Some(api.create(order.clone()).await?).filter(|payment| payment.0["accept_late"] == true))
    })
    .await?;
    ensure!(made.text("underpaid_tolerance") == "10" && made.text("overpaid_tolerance") == "26", "{}", made.0);
    let own =
        json!({ "chain": "anvil", "amount": 1_050, "underpaid_tolerance": "7", "overpaid_tolerance": 0, "accept_late": false });
    let own = api.create(own).await?;
    ensure!(own.text("underpaid_tolerance") == "7" && own.text("overpaid_tolerance") == "0", "{}", own.0);
    ensure!(own.0["accept_late"] == false, "{}", own.0);

    // A change of the settings changes no payment that is there.
    lab.ctrip(&["merchants", "update", "shop", "--underpaid-tolerance-bps", "0", "--accept-late", "false"])?;
    eventually("the new terms", async || {
        let new = api.create(order.clone()).await?;
        Ok((new.0["accept_late"] == false && new.text("underpaid_tolerance") == "0").then_some(()))
    })
    .await?;
    for payment in [&made, &own] {
        let now = api.get(payment.id()).await?;
        for term in ["underpaid_tolerance", "overpaid_tolerance", "accept_late", "confirmations_required"] {
            ensure!(now.0[term] == payment.0[term], "{term}: {} was {}", now.0, payment.0);
        }
    }
    Ok(())
}

/// Whoever does it: a key, a command, or somebody at the database.
#[tokio::test]
async fn who_made_and_changed_keys_webhooks_merchants_and_addresses_is_recorded() -> Result<()> {
    let Running { lab, api, _process } = running().await?;
    let thief = api.with_key(&lab.ctrip(&["keys", "create", "shop"])?);
    let hook = json!({ "url": "https://shop.example/hook" });
    let (status, made) = api.request(Method::POST, "/api/v1/webhooks", Some(hook), &[]).await?;
    ensure!(status == StatusCode::CREATED, "{status} {made}");
    let path = format!("/api/v1/webhooks/{}", made["id"].as_str().context("the id")?);
    let moved = json!({ "url": "https://thief.example", "description": "of the shop" });
    for (method, body) in
        [(Method::PATCH, Some(moved)), (Method::PATCH, Some(json!({ "enabled": true }))), (Method::DELETE, None)]
    {
        let (status, answer) = thief.request(method, &path, body, &[]).await?;
        ensure!(status.is_success(), "{status} {answer}");
    }
    let order = json!({ "external_id": "customer 1" });
    let (status, address) = thief.request(Method::POST, "/api/v1/addresses", Some(order), &[]).await?;
    ensure!(status == StatusCode::CREATED, "{status} {address}");
    let id = thief.key_id();
    lab.ctrip(&["keys", "revoke", &id])?;
    lab.ctrip(&["merchants", "update", "shop", "--own-xpub", OTHER_XPUB])?;
    let db = lab.database().await?;
    db.execute("UPDATE merchants SET xpub = NULL", &[]).await?;
    let rival = lab.merchant("rival")?;
    let hook = json!({ "url": "https://rival.example" });
    let (status, made) = rival.request(Method::POST, "/api/v1/webhooks", Some(hook), &[]).await?;
    ensure!(status == StatusCode::CREATED, "{status} {made}");
    let shop = "SELECT id FROM merchants WHERE name = 'shop'";
    db.execute(&format!("UPDATE webhook_endpoints SET merchant_id = ({shop}) WHERE url = 'https://rival.example'"), &[])
        .await?;
    db.execute("DELETE FROM webhook_endpoints WHERE url = 'https://rival.example'", &[]).await?;
    let asked: Option<String> = db.query_one("SELECT asked_by FROM deposit_addresses", &[]).await?.get(0);
    ensure!(asked.as_deref() == Some(id.as_str()), "{asked:?}");

    let history = lab.ctrip(&["merchants", "history", "shop"])?;
    let theirs = AccountXpub::parse(OTHER_XPUB)?.fingerprint();
    let expected = [
        ("merchant", "created as shop".to_owned(), "-"),
        ("key", "created, may write".to_owned(), "-"),
        ("key", "created, may write".to_owned(), "-"),
        ("webhook", "created for https://shop.example/hook".to_owned(), &*api.key_id()),
        ("webhook", "https://thief.example instead of https://shop.example/hook".to_owned(), &*id),
        ("webhook", "deleted".to_owned(), &*id),
        ("key", "revoked".to_owned(), "-"),
        ("merchant", format!("account {theirs} instead of cTrip's"), "-"),
        ("merchant", format!("account cTrip's instead of {theirs}"), "-"),
        ("webhook", "taken from ".to_owned(), &*rival.key_id()),
        ("webhook", "removed".to_owned(), "-"),
    ];
    let lines: Vec<&str> = history.lines().skip(1).collect();
    ensure!(lines.len() == expected.len(), "{history}");
    for (line, (kind, change, key)) in lines.iter().zip(expected) {
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        ensure!(cells.get(1) == Some(&kind) && cells.get(4) == Some(&key), "{line}");
        ensure!(cells.get(3).is_some_and(|cell| cell.starts_with(&*change)), "{line}");
    }
    Ok(())
}
